"""Readings of a model: scores, vectors, classes and new sequence, through one loop over pieces."""
