"""Collectives in one process, and their sums. Several processes: tests/processes."""

import numpy as np

from hfgd_jax.runtime import collectives


def test_a_single_process_has_its_own_values():
    collectives.barrier("name")
    collectives.check_equal("--config", "text")
    assert collectives.all_gather(3) == [3]
    assert collectives.from_process_0([5, 1]) == [5, 1] and collectives.from_process_0([]) == []
    assert not collectives.preemption_reached(1)


def test_sums_are_exact_up_to_60_bits():
    counts = np.array([[0, 1, 2**30 - 1], [2**30, 2**31 + 5, 2**45 + 3]])
    np.testing.assert_array_equal(collectives.sum_over_processes(counts), counts)
