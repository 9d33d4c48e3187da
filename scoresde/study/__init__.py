"""Studies of a trained run.

The studies assess the samples of a run (``evaluate``, using ``features`` computed by a ``classifier``), the likelihoods
that the run assigns to data (``report``), and the solvers (``bench``). They also draw pictures of what the model does
(``figures``, ``compass``).
"""
