"""Compiled programs, one for every shape of batch."""

from collections.abc import Callable
from typing import Any

from dinosr_jax.training import processes


class Programs:
    """The programs of a run; all processes have theirs before one of them runs it."""

    def __init__(self, notify: Callable[[str], None]):
        """`notify` prints a line for a person."""
        self._notify = notify
        self._compiled: dict[str, Any] = {}

    def get(self, name: str, function: Any, *arguments: Any) -> Any:
        """The compiled program of a jitted function for a state, a batch, and other arguments."""
        size, samples = arguments[1].waveforms.shape
        key = f"{name} for batches of {size} x {samples / 16_000:.2f} s"
        if key not in self._compiled:
            self._notify(f"compiling the {key} ...")
            self._compiled[key] = function.lower(*arguments).compile()
            processes.wait_for_all(key)
        return self._compiled[key]
