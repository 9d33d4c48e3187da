"""Models that are steered while they are sampled: denoisers again."""
