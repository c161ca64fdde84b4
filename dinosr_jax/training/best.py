"""The checkpoint of a run whose held-out figures are the best so far, beside the last ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinosr_jax.training.checkpoint import Checkpoints


class Best:
    """Keeps the state with the least of some metrics, under `directory`; of equal ones the first.

    Metrics are compared in the order of `fields`.
    """

    def __init__(self, directory: Path, *, fields: Sequence[str]):
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
        """Saves the state after `step` updates, as `Checkpoints.save`, if it is the best so far.

        `metrics` are the same in all processes; `about` gives the `config` and `data` of a step.
        Returns whether it is the best.
        """
        figures = self._figures(metrics)
        comparable = not any(map(math.isnan, figures))
        if not comparable or (self._least is not None and figures >= self._least):
            return False
        beside = about(step)
        beside["data"] = beside["data"] | {"metrics": dict(metrics)}
        self._checkpoints.save(step, state, **beside)
        self._least = figures
        return True

    def wait(self) -> None:
        """Waits until it is on disk."""
        self._checkpoints.wait()

    def close(self) -> None:
        """Ends the save in progress."""
        self._checkpoints.close()
