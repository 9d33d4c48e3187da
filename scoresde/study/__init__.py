"""Studies of a trained run.

The studies judge the samples of a run (``evaluate``, with ``features`` of a ``classifier``), the likelihoods that the
run gives to data (``report``) and solvers (``bench``), and draw pictures of what the model does (``figures``,
``compass``).
"""
