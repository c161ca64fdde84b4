"""Work in threads: in order, not too far ahead, and ended when nobody takes it."""

import threading

import pytest

from dinosr_jax.data.threads import ahead, map_in_threads


def test_results_come_in_order_and_a_bounded_number_ahead():
    first, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        if item == 0:
            assert first.wait(60)
        return item * item

    results = ahead(work, range(1000), num_workers=3, per_worker=2)
    item, future = next(results)  # the first is not done: what follows is begun, up to the bound
    assert item == 0 and not future.done()
    first.set()
    assert future.result() == 0 and max(begun) < 6
    assert [future.result() for _, future in results] == [n * n for n in range(1, 1000)]


def test_an_error_is_that_of_its_item():
    def work(item):
        if item == 2:
            raise OSError("broken")
        return item

    found = [future.exception() is None for _, future in ahead(work, range(4), num_workers=2)]
    assert found == [True, True, False, True]
    results = map_in_threads(work, range(4), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="broken"):
        next(results)


def test_nothing_begins_after_it_is_closed():
    begun = []
    results = map_in_threads(lambda item: begun.append(item), iter(range(10**6)), 2)
    next(results)
    results.close()
    number = len(begun)
    assert number <= 2 * 8 + 1
    assert list(results) == [] and len(begun) == number
