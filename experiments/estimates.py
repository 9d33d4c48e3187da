"""Measure the true error of every step that an adaptive solver accepts, with one or with two error estimates.

    python experiments/estimates.py            # about four minutes on one CPU core

An adaptive solver accepts or rejects a step by error estimates that it computes from the stages of the step. For
mixtures of 2 to 6 Gaussians in 1 to 64 dimensions, with 64 starting points each, every accepted step of the probability
flow is solved again at rtol 1e-10 from the point where it began. The error of the step is given in units of the
tolerance. The second estimate is ``g`` of :mod:`scoresde.ode.integrate`. The error at the end is the distance to a
complete solution at rtol 1e-10. The table shows its quantiles over all starting points of all mixtures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from sweep import Law

from scoresde import FlowMatching
from scoresde.ode.integrate import OK, TABLEAUS, integrate

STARTS = 64


def steps_of(f, x, sde, rtol: float, method: str):
    """Return the errors of all accepted steps, the numbers of evaluations ``(B,)`` and the end points ``(B, D)``.

    Errors are in units of the tolerance.
    """
    before, at, errors = x.clone(), torch.full((len(x),), sde.t_max, dtype=x.dtype), []

    def look(index, t, y, k, done):
        begin, h = at[index], t - at[index]
        # u runs from 0 to 1 within the step of each row
        fine = integrate(
            lambda z, u, rows: h[rows, None] * f(z, begin[rows] + u * h[rows]), before[index], 0.0, 1.0,
            rtol=1e-10, atol=1e-10, method="dopri5",
        )  # fmt: skip
        allowed = rtol * (1 + torch.maximum(before[index].abs(), y.abs()))
        errors.append(((y - fine.y) / allowed).square().mean(1).sqrt())
        before[index], at[index] = y, t

    found = integrate(lambda y, t, _: f(y, t), x, sde.t_max, 1e-5, rtol=rtol, atol=rtol, method=method, on_step=look)
    assert bool((found.status == OK).all())
    return torch.cat(errors).numpy(), found.nfe.double().numpy(), found.y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sde = FlowMatching()
    TABLEAUS.update({f"{name} with one": replace(tableau, g=()) for name, tableau in TABLEAUS.items()})
    print("| method | estimates | rtol | steps | error > 10 | > 50 | evaluations | end: median | 99 % | largest |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method, rtol, second in (
        *((m, r, s) for m in ("dopri5", "tsit5") for r in (1e-3, 1e-4, 1e-5, 1e-6) for s in (False, True)),
        ("bosh3", 1e-3, False), ("bosh3", 1e-4, False),
    ):  # fmt: skip
        rng, errors, nfe, ends = np.random.default_rng(args.seed), [], [], []
        for _ in range(args.mixtures):
            dims = int(rng.choice([1, 2, 4, 8, 16, 64]))
            law = Law.draw(rng, dims, False, False)
            while len(law.means) == 1:
                law = Law.draw(rng, dims, False, False)
            x = torch.from_numpy(law.start(rng, STARTS, 0.0, 1.0))
            model = law.model(sde)

            def f(y, t, model=model):
                estimate = model(y, t)
                return estimate.eps - estimate.x0

            found = steps_of(f, x, sde, rtol, method if second else f"{method} with one")
            end = integrate(lambda y, t, _: f(y, t), x, sde.t_max, 1e-5, rtol=1e-10, atol=1e-10, method="dopri5").y
            errors.append(found[0])
            nfe.append(found[1])
            ends.append((found[2] - end).square().mean(1).sqrt().numpy() / rtol)
        e, end = np.concatenate(errors), np.concatenate(ends)
        row = (
            method, "two" if second else "one", f"{rtol:g}", f"{len(e):,}", (e > 10).sum(), (e > 50).sum(),
            f"{np.concatenate(nfe).mean():.1f}", f"{np.median(end):.2f}", f"{np.quantile(end, 0.99):.1f}",
            f"{end.max():.0f}",
        )  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
