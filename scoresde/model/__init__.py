"""Denoisers: what is asked of one (``estimate``), what the output of a network means (``parametrization``), a trained
network (``network``), a model on another path (``convert``), and exact ones (``mixture``, ``empirical``).
"""
