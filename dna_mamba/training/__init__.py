"""Losses, optimizer, checkpoints and the Lightning modules that hold them together."""
