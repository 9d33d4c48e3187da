"""Denoisers, which estimate the data and the noise in a noisy state.

The modules define the interface (``estimate``), the meaning of a network's output (``parametrization``), trained
networks (``network``), the use of a model on another path (``convert``), and exact denoisers (``mixture``,
``empirical``).
"""
