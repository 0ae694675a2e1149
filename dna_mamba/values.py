"""Numbers as people hand them over: Python's own, and those of NumPy and torch."""

import numbers
import operator
from typing import Any


def whole(value: Any) -> int | None:
    """Give a whole number of any kind as Python's; none if it is no whole number (True and 3.0 are none)."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def real(value: Any) -> float | None:
    """Give a number of any kind as Python's float; none if it is no single number."""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return None
    if isinstance(value, numbers.Real) or getattr(value, "shape", None) == ():
        try:
            return float(value)
        except (TypeError, ValueError):
            return None
    return None
