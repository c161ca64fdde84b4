"""Metrics on held-out speech while a run trains.

Loss, predictions, and what codes follow besides phones are measured on the crops of `eval_split`;
unit quality, of an objective that has codes, on its whole utterances that have phones. The sums are
of all processes.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinosr_jax.data.batches.labelled import LabelledData
from dinosr_jax.data.batches.pipeline import SpeechData
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.training import sharding
from dinosr_jax.training.compiled import Programs
from dinosr_jax.training.metrics import (
    LOUDNESS_BINS,
    HeldOut,
    count_table,
    loudness_bins,
    prediction_metrics,
    table_metrics,
    to_record,
)
from dinosr_jax.training.state import Batch, TrainState, make_model, stream_key
from dinosr_jax.training.step import (
    SampleMask,
    apply,
    draw_mask,
    frame_padding,
    make_statistics,
    teacher_targets,
)

_LOG = logging.getLogger(__name__)
Array = jax.Array


class Evaluation:
    """Measures states of a run, over at most `eval_batches` batches of each kind of data."""

    def __init__(
        self,
        config: Any,
        mesh: Mesh,
        abstract_state: Any,
        programs: Programs,
        *,
        eval_data: SpeechData,
        phone_data: LabelledData | None,
    ):
        self._config, self._mesh, self._programs = config, mesh, programs
        self._eval_data, self._phone_data = eval_data, phone_data
        num_speakers = len(set(eval_data.speakers.values()))
        eval_step = make_eval_step(config, num_speakers=num_speakers)
        self._eval_step = sharding.jit_eval_step(mesh, eval_step, abstract_state, numbers=1)
        if OBJECTIVES[config.objective].predicts == "targets":
            if phone_data is not None:
                _LOG.warning("config.objective %r has no codes: no PNMI", config.objective)
            self._phone_data = phone_data = None
        if phone_data is not None:
            phone_step = _make_phone_step(config, num_phones=len(phone_data.phones))
            self._phone_step = sharding.jit_eval_step(mesh, phone_step, abstract_state)

    def measure(self, state: TrainState) -> dict[str, float]:
        """Metrics as in `prediction_metrics` and `table_metrics`; names start with eval_."""
        sums = self._held_out(state)
        tables = dict(sums.tables)
        if self._phone_data is not None:
            tables["phone"] = self._phones(state, self._phone_data)
        metrics = prediction_metrics(sums.prediction) | table_metrics(jax.device_get(tables))
        return {f"eval_{name}": value for name, value in to_record(metrics).items()}

    @staticmethod
    def summary(step: int, metrics: Mapping[str, float]) -> str:
        """A line on the metrics of `measure` after `step` updates."""
        if "eval_explained_variance" in metrics:
            return (
                f"update {step}: held-out loss {metrics['eval_loss']:.3f}, explained variance "
                f"{metrics['eval_explained_variance']:.1%}, standard deviation of the targets "
                f"{metrics['eval_target_std']:.3f}"
            )
        parts = [
            f"update {step}: held-out loss {metrics['eval_loss']:.3f}",
            f"accuracy {metrics['eval_accuracy']:.1%} "
            f"(most frequent code {metrics['eval_top_code_share']:.1%})",
            f"target perplexity {metrics['eval_target_perplexity']:.1f}",
        ]
        if "eval_pnmi" in metrics:
            best = max(value for name, value in metrics.items() if name.startswith("eval_pnmi_"))
            parts.append(f"PNMI {metrics['eval_pnmi']:.3f} (best codebook {best:.3f})")
        return ", ".join(parts)

    def _held_out(self, state: TrainState) -> Any:
        data, share = self._eval_data, sharding.local_share(self._mesh)
        number = min(self._config.eval_batches, data.batches_per_epoch)

        def fields(read: Any) -> dict[str, np.ndarray]:
            speakers = np.array([data.speakers[id_] if id_ else -1 for id_ in read.ids], np.int32)
            arrays = {"waveforms": read.waveforms, "speakers": speakers}
            if data.has_empty_rows(read.step):  # else nothing is padded
                real = np.array([bool(id_) for id_ in read.ids])
                arrays["num_samples"] = np.int32(read.waveforms.shape[1]) * real
            return arrays

        total = None
        batches = data.batches(0, number, share=share)
        for k, (_, batch) in enumerate(sharding.to_devices(self._mesh, batches, fields)):
            name = "evaluation" if batch.num_samples is None else "evaluation with empty rows"
            total = self._add(total, name, self._eval_step, state, batch, jnp.asarray(k))
        return total

    def _add(self, total: Any, name: str, step: Any, *arguments: Any) -> Any:
        """The sums, or None before the first batch, with those of one batch more."""
        sums = self._programs.get(name, step, *arguments)(*arguments)
        return sums if total is None else jax.tree.map(jnp.add, total, sums)

    def _phones(self, state: TrainState, data: LabelledData) -> jax.Array:
        """[N, P, V] counts of phones and codes."""
        share = sharding.local_share(self._mesh)
        number = min(self._config.eval_batches, data.num_batches(share[2]))
        field, hop = receptive_field(self._config.model.conv_layers)
        batches = data.batches(number, share=share, field=field, hop=hop)
        total = None
        for _, batch in sharding.to_devices(self._mesh, batches, lambda b: b._asdict()):
            total = self._add(total, "unit quality", self._phone_step, state, batch)
        return total


def make_eval_step(config: Any, *, sample_mask: SampleMask = span_mask, num_speakers: int = 0):
    """(TrainState, Batch, number of the batch) -> HeldOut, without dropout and without any update.

    Masks depend on the seed and the number of the batch alone; `sample_mask` is as in
    `make_train_step`.
    """
    model, objective = make_model(config), OBJECTIVES[config.objective]
    count = make_statistics(config)

    def eval_step(state: TrainState, batch: Batch, number: Array) -> HeldOut:
        mask = draw_mask(config, batch, stream_key(config.seed, "eval_mask", number), sample_mask)
        padded = frame_padding(config, batch)
        projected = apply(model, state.params, batch.waveforms, padded, method="project")
        targets = teacher_targets(config, model, state.teacher_params, projected, batch)
        answers = objective.answers(state.codebook, targets)
        inputs = {"mask": mask, "padding_mask": padded}
        hidden = apply(model, state.params, projected, **inputs, method="read")
        statistics = count(apply(model, state.params, hidden, method="predict"), answers, mask)
        if objective.predicts == "targets":
            return HeldOut(statistics, {})
        return HeldOut(statistics, _follow_tables(config, batch, answers, num_speakers))

    return eval_step


def _make_phone_step(config: Any, *, num_phones: int):
    """(TrainState, Batch with phones) -> counts [N, P, V] of phones and codes of the teacher."""
    model, size = make_model(config), config.model.codebook_size

    def phone_step(state: TrainState, batch: Batch) -> Array:
        padded = frame_padding(config, batch)
        projected = apply(model, state.params, batch.waveforms, padded, method="project")
        targets = teacher_targets(config, model, state.teacher_params, projected, batch)
        codes = codebooks.assign(state.codebook, targets)
        return count_table(batch.phones, codes, num_labels=num_phones, codebook_size=size)

    return phone_step


def _follow_tables(config: Any, batch: Batch, codes: Array, num_speakers: int) -> dict[str, Array]:
    """Counts of codes [N, B, T] with what they should not follow: loudness, and the speaker."""
    field, hop = receptive_field(config.model.conv_layers)
    labels = {"loudness": (loudness_bins(batch.waveforms, field=field, hop=hop), LOUDNESS_BINS)}
    if batch.speakers is not None:
        speakers = jnp.broadcast_to(batch.speakers[:, None], codes.shape[1:])
        labels["speaker"] = (speakers, num_speakers)
    padded, size = frame_padding(config, batch), config.model.codebook_size
    real = lambda x: x if padded is None else jnp.where(padded, -1, x)
    count = lambda x, n: count_table(real(x), codes, num_labels=n, codebook_size=size)
    return {name: count(*numbers) for name, numbers in labels.items()}
