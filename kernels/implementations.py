"""Names of the implementations of an operation."""

IMPLEMENTATIONS = ("auto", "naive", "cpu", "triton")
