"""The training objective: weightings (``weighting``), times (``times``), pairs of data and noise (``coupling``), the
random draws of a step (``draw``), and the loss (``loss``).
"""
