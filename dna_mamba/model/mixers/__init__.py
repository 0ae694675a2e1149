"""Ways to mix positions or channels: a config and a class each, one signature."""
