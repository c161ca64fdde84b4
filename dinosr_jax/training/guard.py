"""Watches the updates of a run for a collapse: codes that are easy to predict and say nothing.

A collapsed run does not recover, and its loss looks better than that of a healthy one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_FRAMES_A_CODEWORD = 4  # a batch with fewer cannot be expected to use the whole of a codebook


class Bound(NamedTuple):
    """The lowest value that a field of the records may have; `unit` is how it is written."""

    name: str
    lowest: float
    unit: str


class Guard:
    """Compares every update of a run with the bounds of `config.guard`.

    A bound counts once `patience_steps` updates in a row are under it, from `after_steps` on. A
    warning is repeated after `eval_steps` updates at the earliest; where the run is to stop, every
    update that is seen counts. Records are the same in every process, and so is what follows from
    them.
    """

    def __init__(self, config: Any):
        self._config = config
        self._since: dict[str, int] = {}  # field -> the first of the updates in a row
        self._last: int | None = None  # the last time that something was said

    def history(self) -> dict[str, Any]:
        """What a run that goes on must know of the updates before, as plain values."""
        return {"since": dict(self._since), "last": self._last}

    def resume(self, history: Mapping[str, Any] | None) -> None:
        """Takes up the history of a checkpoint; older ones have None."""
        if history is not None:
            self._since, self._last = dict(history["since"]), history["last"]

    def check(self, record: Mapping[str, float], *, frames: float) -> str | None:
        """Looks at the next update.

        Args:
          record: Its plain metrics (`metrics.to_record`), with its `step`.
          frames: Masked frames of its batch.

        Returns:
          What was seen and what to do, for a person; None where all is well, or was said.
        """
        guard, step = self._config.guard, int(record["step"])
        seen: list[str] = []
        for name, lowest, unit in self._bounds(record, frames) if step > guard.after_steps else ():
            if record[name] >= lowest:
                self._since.pop(name, None)
            elif step - self._since.setdefault(name, step) + 1 >= guard.patience_steps:
                value, bound = format(record[name], unit), format(lowest, unit)
                since = self._since[name]
                seen.append(f"  {name}: {value}, the bound is {bound}; since update {since}")
        due = self._last is None or step - self._last >= self._config.eval_steps
        if not seen or not (due or guard.action == "stop"):
            return None
        self._last = step
        return self._text(record, seen)

    def _bounds(self, record: Mapping[str, float], frames: float) -> Iterator[Bound]:
        """Those that are switched on; of codebooks, one for each."""
        guard, size = self._config.guard, self._config.model.codebook_size
        usable = max(min(size, frames / _FRAMES_A_CODEWORD), 1.0)
        of_codebooks = []
        if guard.min_target_perplexity:
            lowest = 1 + guard.min_target_perplexity * (usable - 1)
            of_codebooks.append(Bound("target_perplexity", lowest, ".2f"))
        if guard.min_codeword_use:
            of_codebooks.append(
                Bound("codeword_use", guard.min_codeword_use * usable / size, ".1%")
            )
        for bound in of_codebooks:
            for k in range(self._config.model.num_codebooks):
                if f"{bound.name}_{k}" in record:  # not where there are no codebooks
                    yield bound._replace(name=f"{bound.name}_{k}")
        yield Bound("teacher_std", guard.min_target_std, ".2g")
        yield Bound("feature_encoder_std", guard.min_feature_std, ".2g")

    def _text(self, record: Mapping[str, float], seen: list[str]) -> str:
        c = self._config
        others = "loss accuracy target_perplexity codeword_use explained_variance target_std "
        others += "teacher_std feature_encoder_std"
        now = ", ".join(f"{name} {record[name]:.3g}" for name in others.split() if name in record)
        causes = [
            "a learning rate too high, or a warm-up too short, for the audio of a batch "
            f"(config.optimizer.learning_rate {c.optimizer.learning_rate:g}, warmup_steps "
            f"{c.optimizer.warmup_steps}, data.max_batch_seconds {c.data.max_batch_seconds:g})",
            f"a teacher that follows too fast (config.teacher.decay {c.teacher.decay:g}, "
            f"decay_steps {c.teacher.decay_steps})",
        ]
        if "codeword_use" in record:
            causes.append(
                "codewords that died early, far from all frames (config.codebook.decay "
                f"{c.codebook.decay:g}: start lower, as configs/quickstart.py)"
            )
        if c.teacher.scope == "encoder":
            causes.insert(
                0,
                "a student that makes its targets trivial by changing the feature encoder, which "
                "the teacher reads too (config.teacher.scope='full' gives it its own)",
            )
        if c.compute_dtype == "bfloat16":
            causes.append("bfloat16 with small batches (config.compute_dtype='float32')")
        return "\n".join(
            [
                f"COLLAPSE at update {record['step']}: what the student learns to predict has "
                f"become trivial, by {len(seen)} of the bounds in config.guard:",
                *seen,
                f"The update as a whole: {now}. A loss that falls is no good sign here; such a run "
                "does not recover.",
                "Usual causes:",
                *(f"- {cause}" for cause in causes),
                "Change one of them and start a new run, with another --workdir.",
            ]
        )
