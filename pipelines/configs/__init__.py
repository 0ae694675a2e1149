"""What each command is asked to do; nothing here loads torch, so that a wrong value is told at once."""
