"""Watches the updates of a run for a collapse: codes that are easy to predict and say nothing.

A collapsed run does not recover, and its loss looks better than that of a healthy one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

_FRAMES_A_CODEWORD = 4  # a batch with fewer cannot be expected to use the whole of a codebook


class Bound(NamedTuple):
    """The lowest value of a figure."""

    field: str  # of `config.guard`
    name: str  # of the figure in the records
    unit: str  # format of the figure
    watch: float = 0.0  # share of the codebook under which a report says to watch it


PERPLEXITY = Bound("min_target_perplexity", "target_perplexity", ".2f", watch=0.25)
CODEWORD_USE = Bound("min_codeword_use", "codeword_use", ".1%", watch=0.5)
TEACHER_STD = Bound("min_target_std", "teacher_std", ".2g")
FEATURE_STD = Bound("min_feature_std", "feature_encoder_std", ".2g")
BOUNDS = (PERPLEXITY, CODEWORD_USE, TEACHER_STD, FEATURE_STD)


class Guard:
    """Compares every update of a run with the bounds of `config.guard`.

    A bound counts once `patience_steps` updates in a row are under it, from `after_steps` on. A
    warning is repeated after `eval_steps` updates at the earliest; where the run is to stop, every
    update counts. Records are the same in every process, and so are the warnings.
    """

    def __init__(self, config: Any):
        self._config = config
        self._since: dict[str, int] = {}  # name -> the first of the updates in a row
        self._last: int | None = None  # update of the last warning

    def history(self) -> dict[str, Any]:
        """The state of the guard, as plain values, for a checkpoint."""
        return {"since": dict(self._since), "last": self._last}

    def resume(self, history: Mapping[str, Any] | None) -> None:
        """Takes up the history of a checkpoint; older checkpoints have None."""
        if history is not None:
            self._since, self._last = dict(history["since"]), history["last"]

    def check(self, record: Mapping[str, float], *, frames: float) -> str | None:
        """The warning about the next update, with causes and what to do; None where none is due.

        `record` are its metrics (`metrics.to_record`) and its `step`; its batch has so many masked
        `frames`.
        """
        guard, step = self._config.guard, int(record["step"])
        seen: list[str] = []
        bounds = self._bounds(record, frames) if step > guard.after_steps else ()
        for name, lowest, unit in bounds:
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

    def _bounds(
        self, record: Mapping[str, float], frames: float
    ) -> Iterator[tuple[str, float, str]]:
        """Name, lowest value and format of those that are switched on, each codebook's its own."""
        model = self._config.model
        usable = max(min(model.codebook_size, frames / _FRAMES_A_CODEWORD), 1.0)
        for bound in BOUNDS:
            lowest, names = self._config.guard[bound.field], [bound.name]
            if bound in (PERPLEXITY, CODEWORD_USE):
                names = [f"{bound.name}_{k}" for k in range(model.num_codebooks)] if lowest else []
                usable_share = lowest * usable / model.codebook_size
                lowest = 1 + lowest * (usable - 1) if bound is PERPLEXITY else usable_share
                names = [name for name in names if name in record]  # else there are no codebooks
            yield from ((name, lowest, bound.unit) for name in names)

    def _text(self, record: Mapping[str, float], seen: list[str]) -> str:
        c = self._config
        figures = ["loss", "accuracy", PERPLEXITY.name, CODEWORD_USE.name, "explained_variance"]
        figures += ["target_std", TEACHER_STD.name, FEATURE_STD.name]
        now = ", ".join(f"{name} {record[name]:.3g}" for name in figures if name in record)
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
        lines = [
            f"COLLAPSE at update {record['step']}: what the student learns to predict has become "
            f"trivial, by {len(seen)} of the bounds in config.guard:",
            *seen,
            f"The update as a whole: {now}. A loss that falls is no good sign here; such a run "
            "does not recover.",
            "Usual causes:",
            *(f"- {cause}" for cause in causes),
            "Change one of them and start a new run, with another --workdir.",
        ]
        return "\n".join(lines)
