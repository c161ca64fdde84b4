"""The epochs of a plan, drawn when they are needed and kept while they are in use."""

from collections.abc import Callable
from typing import Any

_KEPT = 2


class Epochs:
    """Epochs by number, each a pure function of it; threads may share them."""

    def __init__(self, draw: Callable[[int], Any], *, num_batches: int):
        """`draw` makes an epoch, which has `num_batches` batches."""
        self._draw, self._num_batches = draw, num_batches
        self._found: dict[int, Any] = {}

    def at(self, step: int) -> tuple[Any, int]:
        """The epoch of a step, and which of its batches that is.

        Raises:
          ValueError: step is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more: steps count from 0.")
        number, position = divmod(int(step), self._num_batches)
        epoch = self._found.get(number)
        if epoch is None:
            epoch = self._draw(number)
            kept = list(self._found.items())[1 - _KEPT :]
            self._found = dict([*kept, (number, epoch)])  # replaced, not changed: many threads
        return epoch, position
