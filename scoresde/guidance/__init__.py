"""Guidance: denoisers that steer a model during sampling."""
