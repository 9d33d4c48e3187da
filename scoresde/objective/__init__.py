"""What training minimises: weightings (``weighting``), times (``times``), pairs of data and noise (``coupling``), all
that a step draws (``draw``), and the loss (``loss``).
"""
