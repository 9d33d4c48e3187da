"""Guidance, which steers a model during sampling."""
