"""Solvers for ordinary differential equations.

This package contains embedded Runge-Kutta methods (``tableaus``), an adaptive integrator that uses them with a separate
step size for each row (``integrate``), Runge-Kutta rules for steps of a given size (``fixed``), dense output between
the steps (``dense``), and third-party integrators (``engines``).
"""
