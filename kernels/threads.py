"""Run compiled functions that release the interpreter lock on as many threads as torch uses.

Python threads, not numba's: no second thread pool to oversubscribe the cores, no threading layer to install, nothing
that breaks when two threads call at once. A pool is made anew in a forked process, where its parent's threads are gone.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run_parallel(function: Callable[..., Any], tasks: Sequence[tuple]) -> None:
    """Call the function once for each tuple of arguments; return when all are done, raise what the first raised."""
    num_threads = min(torch.get_num_threads(), len(tasks))
    if num_threads <= 1:
        for task in tasks:
            function(*task)
        return
    key = (os.getpid(), torch.get_num_threads())
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(key[1], thread_name_prefix="dna-mamba-kernel")
    for future in [_pools[key].submit(function, *task) for task in tasks]:
        future.result()
