"""Times sides in turn, each in a process of its own that sleeps in the turns of the others."""

import contextlib
import functools
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Side(NamedTuple):
    """What is timed.

    Attributes:
      step: Does the work once and returns a number, which must be finite.
      about: What was measured while it was made.
      peak: GiB that it has needed, at most.
      rest: Gives back what the others need in their turns; not timed.
    """

    step: Callable[[], float]
    about: dict[str, Any]
    peak: Callable[[], float]
    rest: Callable[[], None] = lambda: None


class Times(NamedTuple):
    """Wall-clock and CPU seconds of one step; the latter are those of all threads."""

    wall: float
    cpu: float


def process_memory() -> float:
    """GiB of this process, at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_in_turn(
    makers: Mapping[str, Callable[[], Side]], *, rounds: int, steps: int = 1, settle: int = 0
) -> tuple[dict[str, list[Times]], dict[str, dict]]:
    """Times `rounds` turns of every side, after two steps that do not count.

    A single side runs in this process.

    Args:
      makers: Makes a side, by name; can be pickled.
      rounds: Turns of a side.
      steps: That are timed in a turn.
      settle: Steps before them, which take back what the others needed.

    Returns:
      Times by side, and what was measured while it was made, with `peak_gib`, also by side.
    """
    with contextlib.ExitStack() as ended:
        sides = {}
        for name, make in makers.items():  # one after the other: compiling would disturb the next
            here = len(makers) == 1
            sides[name] = make() if here else ended.enter_context(_elsewhere(name, make))
        measured: dict[str, list[Times]] = {name: [] for name in sides}
        for side in sides.values():
            _turn(side, steps=2, settle=0)
        for _ in range(rounds):
            for name, side in sides.items():
                measured[name] += _turn(side, steps=steps, settle=settle)
        found = {name: side.about | {"peak_gib": side.peak()} for name, side in sides.items()}
    return measured, found


def _turn(side: Any, *, steps: int, settle: int) -> list[Times]:
    """One turn, here or in the process that the side is in."""
    if isinstance(side, _Elsewhere):
        return side.ask((steps, settle))
    times = []
    for number in range(-settle, steps):
        start, start_cpu = time.perf_counter(), time.process_time()
        found = side.step()
        times.append(Times(time.perf_counter() - start, time.process_time() - start_cpu))
        if not math.isfinite(found):
            raise ValueError(f"step {number + 1} gives {found}, expected a finite number")
    side.rest()
    return times[settle:]


class _Elsewhere:
    """A side in a process of its own."""

    def __init__(self, name: str, pipe: Any):
        self.name, self.pipe = name, pipe
        self.about = self.ask(None)
        self.peak = functools.partial(self.ask, "peak")

    def ask(self, message: Any) -> Any:
        """Sends a message, unless it is None, and waits for the answer."""
        try:
            if message is not None:
                self.pipe.send(message)
            return self.pipe.recv()
        except (EOFError, OSError):
            sys.exit(f"error: {self.name} has ended; see above")


@contextlib.contextmanager
def _elsewhere(name: str, make: Callable[[], Side]):
    """Starts a process that makes a side; it ends with the context."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Elsewhere(name, pipe)
    finally:
        pipe.close()
        process.join()  # killed at exit, it would dump its stacks


def _serve(make: Callable[[], Side], pipe: Any) -> None:
    side = make()
    pipe.send(side.about)
    with contextlib.suppress(EOFError):  # the parent has what it wants, or has given up
        while message := pipe.recv():
            if message == "peak":
                pipe.send(side.peak())
            else:
                pipe.send(_turn(side, steps=message[0], settle=message[1]))
