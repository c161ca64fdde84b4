"""Decoding of many utterances side by side, while the next ones are computed.

Greedy decoding is NumPy, for threads. Beam search holds Python's lock, and so processes have one
decoder each. They are started afresh: forked ones would inherit the threads of jax in any state.

Shapes: T frames, V symbols.
"""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np

from dinosr_jax.inference.recognition.decoding import Decoder, Hypothesis

By = Literal["threads", "processes"]
_HERE: dict[str, Any] = {}  # of a process of a pool: how its decoder is made, and the decoder


def decode_all(
    computed: Iterable[tuple[Any, np.ndarray]],
    make_decoder: Callable[[], Decoder],
    *,
    by: By = "threads",
    num_workers: int | None = None,
) -> Iterator[tuple[Any, np.ndarray, Hypothesis]]:
    """Decodes emissions [T, V], each with anything beside it, in order.

    Where `computed` raises an Exception, what came before is decoded first. `make_decoder` gives
    the decoder; for processes it can be pickled, and each calls it. `num_workers` None is one a
    core.

    Yields:
      Anything, emissions, text.

    Raises:
      ChildProcessError: A process was killed.
    """
    workers = num_workers or os.cpu_count() or 1
    waiting: collections.deque = collections.deque()
    raised: list[Exception] = []
    with (_threads if by == "threads" else _processes)(make_decoder, workers) as submit:
        for item, array in _until_it_raises(computed, raised):
            waiting.append((item, array, submit(array)))
            while len(waiting) > 2 * workers or (waiting and waiting[0][2].done()):
                item, array, future = waiting.popleft()
                yield item, array, future.result()
        while waiting:
            item, array, future = waiting.popleft()
            yield item, array, future.result()
    for error in raised:
        raise error


def _until_it_raises(computed: Iterable, raised: list[Exception]) -> Iterator:
    try:
        yield from computed
    except Exception as error:
        raised.append(error)


@contextlib.contextmanager
def _threads(make_decoder: Callable[[], Decoder], workers: int) -> Iterator[Callable]:
    decoder = make_decoder()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            yield lambda array: pool.submit(decoder, array)
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _processes(make_decoder: Callable[[], Decoder], workers: int) -> Iterator[Callable]:
    with spawned(workers, _start, make_decoder) as pool:
        pool.submit(_make_here).result()  # its errors come before anything is computed
        yield lambda array: pool.submit(_decode_here, array)


def _start(make_decoder: Callable[[], Decoder]) -> None:
    _HERE["make"] = make_decoder


def _make_here() -> None:
    if "decoder" not in _HERE:
        _HERE["decoder"] = _HERE["make"]()


def _decode_here(array: np.ndarray) -> Hypothesis:
    _make_here()
    return _HERE["decoder"](array)


@contextlib.contextmanager
def spawned(
    workers: int, start: Callable, *arguments: Any
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """A pool of fresh processes, which end when this one does, however it does.

    Each calls start(*arguments) first. ChildProcessError: one was killed.
    """
    pool = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(start, *arguments),
    )
    try:
        with pool:
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
    except concurrent.futures.BrokenExecutor:
        raise ChildProcessError(
            "a process that decodes was killed; where memory was short, take fewer "
            "(--num_workers), or KenLM's binary form of the n-gram, which they share"
        ) from None


def _begin(start: Callable, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
