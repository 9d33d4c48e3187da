"""Guidance: models that are steered during sampling, which are denoisers themselves."""
