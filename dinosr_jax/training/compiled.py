"""Compiled programs, one for every shape of batch."""

from collections.abc import Callable
from typing import Any

from dinosr_jax.training import processes


class Programs:
    """The programs of a run; all processes have theirs before one of them runs it."""

    def __init__(self, say: Callable[[str], None]):
        """`say` tells a person what takes a while."""
        self._say = say
        self._compiled: dict[str, Any] = {}

    def get(self, name: str, function: Any, *arguments: Any) -> Any:
        """The program of a jitted function for arguments of these shapes.

        Args:
          name: What it is, for a person.
          function: Jitted.
          *arguments: State and batch first.

        Returns:
          The compiled function.
        """
        size, samples = arguments[1].waveforms.shape
        key = f"{name} for batches of {size} x {samples / 16_000:.2f} s"
        if key not in self._compiled:
            self._say(f"compiling the {key} ...")
            self._compiled[key] = function.lower(*arguments).compile()
            processes.wait_for_all(key)
        return self._compiled[key]
