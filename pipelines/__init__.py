"""Whole jobs: each file has a Config, a Result and run(config) -> Result, called by command line, notebooks and tests."""
