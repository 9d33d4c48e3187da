"""Guidance, which steers a model during sampling: by another model, by a function, or by a measurement.

Each of these is a wrapper of a model that is a model again, so it works with any solver, path and likelihood. A
:class:`~scoresde.Run` binds them in the units of its data. The examples use a run that was trained for a single step,
so they show what to type, not good samples.

>>> import torch
>>> from scoresde import TrainConfig, fit
>>> tiny = {"preset": "tiny", "steps": 1, "batch": 8, "cond": "class"}
>>> run = fit(TrainConfig(data="digits", **tiny), save=False, quiet=True)
>>> low, photo = torch.full((1, 1, 4, 4), 8.0), run.data().test[:1].double()

A hole in a picture is filled, and the known pixels come back exactly:

>>> torn = photo.clone()
>>> torn[..., 2:6, 2:6] = torch.nan
>>> found = run.measured("cells", torn, each=2).sample(2, "ddim")
>>> bool((found.x == torn)[:, torn[0].isfinite()].all())
True

A low-resolution picture with noise, with particles:

>>> from scoresde import Particles
>>> post = run.measured("pool:2", low, noise=0.5, each=2)
>>> post.sample(2, Particles(steps=3, particles=4)).solution.ess.shape
torch.Size([2])

Away from another class, from an earlier version of the network, or in an interval of noise levels:

>>> three, eight = run.given(3), run.given(8)
>>> away = three.guided(2.0, against=8, interval=(0, 1))
>>> worse = three.guided(2.0, against=eight)  # any run with the same units, such as load(folder, step=400).given(3)
>>> away.sample(2, "ddim").x.shape
torch.Size([2, 1, 8, 8])

Both conditions at once, as an affine combination of models:

>>> from dataclasses import replace
>>> from scoresde import Mixed
>>> both = Mixed((run.model, three.model, eight.model), (-1.0, 1.0, 1.0))
>>> replace(run, base=both).sample(2, "ddim").x.shape
torch.Size([2, 1, 8, 8])

Any function of the estimate, such as a wish for brighter pictures:

>>> bright = run.steered(lambda e: -50 * (e.x0.mean((1, 2, 3)) - 0.2) ** 2)
>>> bright.sample(2, "ddim").x.shape
torch.Size([2, 1, 8, 8])
"""
