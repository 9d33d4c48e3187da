"""Studies of a trained run.

They judge its samples (``evaluate``, with ``features`` of a ``classifier``), the likelihoods that it gives to data
(``report``) and solvers (``bench``), and draw pictures of what it does (``figures``, ``compass``).
"""
