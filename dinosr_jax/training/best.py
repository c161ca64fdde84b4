"""The checkpoint of a run whose held-out figures are the best so far, beside the last ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinosr_jax.training.checkpoint import Checkpoints


class Best:
    """Keeps the state with the least of a metric, under `directory`; a run that goes on knows it.

    Of equal ones the earlier is kept.
    """

    def __init__(self, directory: Path, *, fields: Sequence[str]):
        """`fields` of the metrics are compared, the first first."""
        self._checkpoints = Checkpoints(directory, keep=1)
        self.directory, self._fields = self._checkpoints.directory, tuple(fields)
        before = self._checkpoints.newest_data()
        self._least = None if before is None else self._figures(before["metrics"])

    def _figures(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(float(metrics[field]) for field in self._fields)

    def offer(
        self,
        step: int,
        state: Any,
        metrics: Mapping[str, float],
        about: Callable[[int], dict[str, Any]],
    ) -> bool:
        """Saves a state if it is better than all before.

        Args:
          step: Finished updates.
          state: To be saved; copied from the devices before this returns.
          metrics: Figures on held-out speech, the same in all processes.
          about: Gives the `config` and `data` that `Checkpoints.save` takes.

        Returns:
          Whether it was the best.

        Raises:
          CheckpointError: It could not be written.
        """
        figures = self._figures(metrics)
        comparable = not any(map(math.isnan, figures))
        if not comparable or (self._least is not None and figures >= self._least):
            return False
        found = about(step)
        found["data"] = found["data"] | {"metrics": dict(metrics)}
        self._checkpoints.save(step, state, **found)
        self._least = figures
        return True

    def wait(self) -> None:
        """Waits until it is on disk."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Ends the save in progress."""
        self._checkpoints.close()
