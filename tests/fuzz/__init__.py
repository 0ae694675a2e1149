"""Fuzzing of everything that reads what a stranger hands us. make fuzz runs it for ten minutes; tests/test_fuzz.py a little."""
