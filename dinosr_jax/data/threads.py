"""Work in threads, in order, a bounded number of items ahead of what is taken."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int | None = None,
    per_worker: int = 2,
) -> Iterator[tuple[Item, futures.Future[Result]]]:
    """Yields items with the futures of their results, in order.

    Closed early, it waits for what has begun and starts nothing else. There are `num_workers`
    threads (None: one a core), each `per_worker` items ahead of what is taken.
    """
    num_workers = num_workers or os.cpu_count() or 1
    pending: collections.deque[tuple[Item, futures.Future[Result]]] = collections.deque()
    pool = futures.ThreadPoolExecutor(num_workers)
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) >= num_workers * per_worker:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None
) -> Iterator[Result]:
    """Maps in threads, in order; stops at once when closed, or at the first error."""
    for _, future in ahead(function, items, num_workers=num_workers, per_worker=8):
        yield future.result()
