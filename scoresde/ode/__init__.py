"""Ordinary differential equations.

This package holds the embedded methods (``tableaus``), their driver with a step size for each row (``integrate``),
rules with a fixed step (``fixed``), dense output between the steps (``dense``), and third-party integrators
(``engines``).
"""
