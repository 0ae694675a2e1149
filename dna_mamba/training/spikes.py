"""Losses that leap above those before them."""

import math
from collections import deque

SPIKE_DEVIATIONS = 6
FEWEST_BEFORE_A_SPIKE, MOST_SPIKES_IN_A_ROW = 20, 10


class SpikeDetector:
    """Tells losses more than six standard deviations above the mean of the hundred before them, at the same window length.

    A spike does not make the next one usual; after ten in a row the level has changed, and the count begins anew.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=100)
        self._window_bases = self._in_a_row = 0

    def leap(self, window_bases: int, loss: float) -> tuple[float, float] | None:
        """Take a step's loss; give mean and deviation of those before it if it leaps above them."""
        if window_bases != self._window_bases or self._in_a_row >= MOST_SPIKES_IN_A_ROW:
            self._recent.clear()
            self._window_bases, self._in_a_row = window_bases, 0
        if not math.isfinite(loss):
            return None
        if len(self._recent) >= FEWEST_BEFORE_A_SPIKE:
            mean = sum(self._recent) / len(self._recent)
            deviation = max(math.sqrt(sum((x - mean) ** 2 for x in self._recent) / len(self._recent)), 1e-3)
            if loss > mean + SPIKE_DEVIATIONS * deviation:
                self._in_a_row += 1
                return mean, deviation
        self._recent.append(loss)
        self._in_a_row = 0
        return None
