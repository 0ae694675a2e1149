"""Work is shared among threads without loss, also from several callers and in forked processes."""

import os
import threading

import numpy as np
import pytest
import torch

from dna_mamba.kernels.selective_scan import selective_scan
from dna_mamba.kernels.threads import run_parallel


@pytest.mark.parametrize("num_items", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("num_threads", [1, 2, 4])
def test_every_item_is_done_once(num_items, num_threads):
    done = np.zeros(num_items, int)

    def count(array, first, end):
        array[first:end] += 1

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(num_threads)
        run_parallel(count, (done,), num_items)
    finally:
        torch.set_num_threads(threads)
    assert (done == 1).all()


def test_an_error_in_a_thread_reaches_the_caller():
    def fail(first, end):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_parallel(fail, (), 8)


def inputs():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, 100, 32, generator=generator)
    return {"u": u, "delta": u, "A": -torch.ones(32, 4), "B": u[..., :4].clone(), "C": u[..., 4:8].clone()}


def test_several_threads_may_call_at_once():
    expected = selective_scan(**inputs(), delta_softplus=True, implementation="cpu")
    given = [None] * 4

    def call(i):
        given[i] = selective_scan(**inputs(), delta_softplus=True, implementation="cpu")

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(y, expected) for y in given)


def test_a_forked_process_makes_threads_of_its_own():
    run_parallel(lambda first, end: None, (), 8)  # the parent's pool exists
    child = os.fork()
    if child == 0:
        done = np.zeros(8, int)

        def count(first, end):
            done[first:end] += 1

        run_parallel(count, (), 8)
        os._exit(0 if (done == 1).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
