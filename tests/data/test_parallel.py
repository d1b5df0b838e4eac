"""Work on many records at once: in order and in bounds."""

import threading

import pytest

from hfgd_jax.data.builders.parallel import ordered_map


def test_results_come_in_the_items_order():
    second_is_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_is_done.wait(10)  # only another thread can let this one end
        if item == 1:
            second_is_done.set()
        return item * item

    assert list(ordered_map(work, range(20), threads=2)) == [i * i for i in range(20)]


def test_at_most_two_items_a_thread_are_ahead():
    started = []
    results = ordered_map(lambda item: started.append(item), iter(range(1000)), threads=3)
    for _ in range(5):
        next(results)
    results.close()
    assert len(started) <= 5 + 2 * 3


def test_an_exception_is_raised_in_its_items_place():
    def work(item):
        if item == 7:
            raise KeyError(item)
        return item

    seen = []
    with pytest.raises(KeyError, match="7"):
        for result in ordered_map(work, range(100), threads=4):
            seen.append(result)
    assert seen == list(range(7))
