"""Run compiled functions that release the interpreter lock on as many threads as torch uses.

Python threads, not numba's: no second thread pool to oversubscribe the cores, no threading layer to install, nothing
that breaks when two threads call at once. A pool is made anew in a forked process, where its parent's threads are gone.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_parallel(function: Callable[..., object], arguments: tuple, num_items: int) -> None:
    """Call function(*arguments, first, end) on parts of range(num_items), and return when all are done.

    Few calls with many items each: passing twenty arrays to a compiled function costs as much as a small item. Which items
    share a call depends on the number of threads, so no item may depend on another.
    """
    num_threads = min(torch.get_num_threads(), num_items)
    if num_threads <= 1:
        function(*arguments, 0, num_items)
        return
    key = (os.getpid(), torch.get_num_threads())
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(key[1], thread_name_prefix="dna-mamba-kernel")
    num_parts = min(2 * num_threads, num_items)  # two a thread, so that one slow core does not hold up half of the work
    bounds = [num_items * i // num_parts for i in range(num_parts + 1)]
    futures = [_pools[key].submit(function, *arguments, *part) for part in itertools.pairwise(bounds)]
    for future in futures:
        future.result()
