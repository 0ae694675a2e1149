"""Models as directories: ours, and those of others."""
