"""Denoisers: their interface (``estimate``), the meaning of a network's output (``parametrization``), trained networks
(``network``), models on another path (``convert``), and exact denoisers (``mixture``, ``empirical``).
"""
