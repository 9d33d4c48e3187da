"""Differential equations: the embedded methods (``tableaus``), their driver with a step for each row (``integrate``),
rules of fixed step (``fixed``), what lies between the steps (``dense``), and other people's integrators (``engines``).
"""
