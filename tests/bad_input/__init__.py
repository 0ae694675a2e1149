"""Seventy-eight kinds of bad input, by number, through the command line and the Python API; docs/reliability.md lists them."""
