"""One update of DinoSR, or of another of its objectives, in the order of the paper's algorithm.

Shapes: B batch, S samples, T frames, D model, N codebooks, V codewords.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dinosr_jax.model.dinosr import DinoSR, padding_mask
from dinosr_jax.model.feature_encoder import num_frames, receptive_field
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective import teacher as teachers
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.objective.perturbation import perturb
from dinosr_jax.training.metrics import (
    moments,
    norms,
    position_bins,
    prediction_metrics,
    prediction_statistics,
    regression_statistics,
    standard_deviations,
)
from dinosr_jax.training.optimizer import make_optimizer, make_schedule, move
from dinosr_jax.training.state import Batch, TrainState, make_model, stream_key

Array = jax.Array
SampleMask = Callable[..., Array]


def make_train_step(config: Any, *, sample_mask: SampleMask = span_mask):
    """The update of a configuration.

    Args:
      config: Parsed configuration.
      sample_mask: Draws the masks; takes what `span_mask` takes.

    Returns:
      Pure function (TrainState, Batch) -> (TrainState, metrics); each is a scalar or [N].
    """
    model, optimizer, schedule = make_model(config), make_optimizer(config), make_schedule(config)
    objective, count = OBJECTIVES[config.objective], make_statistics(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        update = state.step + 1
        # 1 mask, and the voice that the student hears
        mask = draw_mask(config, batch, stream_key(config.seed, "mask", state.step), sample_mask)
        totals = jnp.sum(mask), jnp.sum(unmasked(mask, frame_padding(config, batch)))
        batch = perturbed(config, batch, stream_key(config.seed, "perturb", state.step))
        drop_key = stream_key(config.seed, "dropout", state.step)

        def student_loss(params, frozen, batch, mask, key):
            features = apply(model, params, batch.student_waveforms, method="convolve")  # [B, T, C]
            padded = frame_padding(config, batch)
            projected = apply(model, params, features, padded, method="project_features")
            projected = jax.lax.stop_gradient(projected) if frozen else projected
            # 2 teacher targets
            clean = projected if batch.heard is None else project(model, params, batch, padded)
            targets, top = teach(config, model, state.teacher_params, clean, batch)
            # 3 codes
            answers = objective.answers(state.codebook, targets)  # [N, B, T]
            # 4 student loss and gradients
            inputs = {"mask": mask, "padding_mask": padded, "key": key, "layerdrop_key": drop_key}
            hidden = apply(model, params, projected, **inputs, method="read")
            logits = apply(model, params, hidden, method="predict")  # [N, B, T, V]
            loss = training_loss(config, logits, answers, (mask, unmasked(mask, padded)), totals)
            found = objective.statistics(targets, answers, mask, codebook_size=logits.shape[-1])
            spread = moments({"teacher_std": top, "feature_encoder_std": features}, padded)
            return loss, (found, count(logits, answers, mask), spread)

        frozen = front_end_is_frozen(config, update)
        gradient = lambda *micro: differentiate(student_loss, state.params, frozen, *micro)
        gradients, (found, statistics, spread) = sum_micro_batches(
            gradient, batch, mask, drop_key, count=config.optimizer.accumulation_steps
        )
        # 5 optimizer
        params, updates, opt_state = move(optimizer, gradients, state)
        # 6 teacher
        decay, scope = teacher_decay(config, update), config.teacher.scope
        teacher = teachers.update_teacher(state.teacher_params, params, decay=decay, scope=scope)
        # 7 codebook
        codebook = objective.update(state.codebook, found, decay=codebook_decay(config, state.step))
        # 8 metrics
        metrics = prediction_metrics(statistics) | standard_deviations(spread)
        metrics |= {"learning_rate": schedule(state.step), "ema_decay": decay}
        metrics["masked_share"] = totals[0] / mask.size
        metrics |= norms(gradients=gradients, params=params, updates=updates)
        return TrainState(update, params, teacher, opt_state, codebook), metrics

    return train_step


def make_first_codewords(config: Any):
    """What sets the codewords before the first update, where `codebook.init` is 'frames'.

    Args:
      config: Parsed configuration, of an objective that has codes.

    Returns:
      Pure function (TrainState, Batch) -> (TrainState, {}); its codewords are frames of the batch.
    """
    model = make_model(config)

    def first_codewords(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        padded = frame_padding(config, batch)
        projected = project(model, state.params, batch, padded)
        targets = teacher_targets(config, model, state.teacher_params, projected, batch)
        key = stream_key(config.seed, "codebook")
        codebook = codebooks.from_frames(key, state.codebook, targets, padded)
        return state.replace(codebook=codebook), {}

    return first_codewords


def differentiate(loss: Callable, params: Any, frozen: Array | None, *inputs: Any) -> Any:
    """Gradients of a loss, computed without those that are not needed while parts are frozen.

    Args:
      loss: (params, whether parts are frozen, *inputs) -> (scalar, auxiliary tree).
      params: To differentiate by.
      frozen: bool scalar on the device, or None where nothing ever is.
      *inputs: Of the loss.

    Returns:
      (Gradients, auxiliary tree).
    """
    of = lambda value: lambda: jax.grad(loss, has_aux=True)(params, value, *inputs)
    return of(False)() if frozen is None else jax.lax.cond(frozen, of(True), of(False))


def front_end_is_frozen(config: Any, update: Array) -> Array | None:
    """Whether this update (from 1) leaves the feature encoder as it is; None if none ever does."""
    step = config.teacher.freeze_feature_encoder_step
    return update >= step if step else None


def sum_micro_batches(
    function: Callable, batch: Batch, mask: Array, key: Array, *, count: int
) -> Any:
    """Sums what a function gives for the micro-batches of a batch, one after the other.

    Args:
      function: (Batch, mask, key) -> tree of float arrays, which add up over utterances.
      batch: The whole batch, of B utterances.
      mask: [B, T] bool.
      key: Of dropout; every micro-batch gets its own.
      count: Micro-batches; number k has the utterances k, k + count, ... so that every device
        keeps those that it has.

    Returns:
      The tree of sums.
    """
    if count == 1:
        return function(batch, mask, key)
    deal = lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
    micro = jax.tree.map(deal, (batch, mask))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    add = lambda total, inputs: (jax.tree.map(jnp.add, total, function(*inputs)), None)
    first = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], (*micro, keys)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(add, zeros, (*micro, keys))[0]


def make_statistics(config: Any) -> Callable[[Array, Array, Array], Any]:
    """What is counted of (predictions, answers, mask) for the metrics of an objective."""
    if OBJECTIVES[config.objective].predicts == "targets":
        return regression_statistics
    bins = position_bins(config.data.max_seconds, hop=receptive_field(config.model.conv_layers)[1])
    return functools.partial(prediction_statistics, bins=bins)


def apply(model: DinoSR, params: Any, *args: Any, method: str, **kwargs: Any) -> Any:
    """Runs one method of the network with the given parameters."""
    return model.apply({"params": params}, *args, method=method, **kwargs)


def project(model: DinoSR, params: Any, batch: Batch, padded: Array | None) -> Array:
    """Projected features [B, T, D] of the recordings."""
    return apply(model, params, batch.waveforms, padded, method="project")


def teacher_targets(
    config: Any, model: DinoSR, teacher_params: Any, projected: Array, batch: Batch
) -> Array:
    """Instance-normalised `ffn` tensors of the teacher's top N layers.

    Args:
      config: Parsed configuration.
      model: The network.
      teacher_params: The teacher.
      projected: [B, T, D] of the student, which a teacher of scope 'encoder' reads.
      batch: Waveforms, which a teacher of scope 'full' reads.

    Returns:
      [N, B, T, D] float32, lowest layer first; no gradient flows into them.
    """
    return teach(config, model, teacher_params, projected, batch)[0]


@jax.named_scope("teacher")
def teach(
    config: Any, model: DinoSR, teacher_params: Any, projected: Array, batch: Batch
) -> tuple[Array, Array]:
    """The same, and the output [B, T, D] of the teacher's last layer."""
    teacher_params = jax.lax.stop_gradient(teacher_params)
    padded = frame_padding(config, batch)
    if config.teacher.scope == "full":
        projected = project(model, teacher_params, batch, padded)
    inputs = {"padding_mask": padded, "all_layers": True}
    projected = jax.lax.stop_gradient(projected)
    layers = apply(model, teacher_params, projected, **inputs, method="encode")
    ffn = layers.ffn[-config.model.num_codebooks :]  # [N, B, T, D]
    return teachers.instance_normalise(ffn, padded), layers.output


def frame_padding(config: Any, batch: Batch) -> Array | None:
    """[B, T] bool, True on padding; None where nothing is padded."""
    if batch.num_samples is None:
        return None
    samples, layers = batch.waveforms.shape[1], config.model.conv_layers
    return padding_mask(batch.num_samples, samples=samples, conv_layers=layers)


def perturbed(config: Any, batch: Batch, key: Array) -> Batch:
    """The batch with what its student hears, where that is another voice."""
    c = config.perturb
    if not (c.formants or c.channel_db):
        return batch
    heard = perturb(key, batch.waveforms, formants=c.formants, channel_db=c.channel_db)
    return batch._replace(heard=heard)


def training_loss(
    config: Any, logits: Array, answers: Array, frames: tuple[Array, Array], totals: Any
) -> Array:
    """The mean over the masked frames, and `unmasked_weight` times that over the others.

    `frames` are both, [B, T] bool, and `totals` how many they are in all micro-batches.
    """
    losses = functools.partial(OBJECTIVES[config.objective].losses, logits, answers)
    loss = jnp.mean(losses(frames[0], num_masked=totals[0]))
    if weight := config.mask.unmasked_weight:
        loss += weight * jnp.mean(losses(frames[1], num_masked=totals[1]))
    return loss


def unmasked(mask: Array, padded: Array | None) -> Array:
    """[B, T] bool, the real frames that are not masked."""
    return ~mask if padded is None else ~(mask | padded)


def draw_mask(config: Any, batch: Batch, key: Array, sample_mask: SampleMask) -> Array:
    """[B, T] bool, the masked frames of a batch."""
    size, samples = batch.waveforms.shape
    real = jnp.full((size,), samples) if batch.num_samples is None else batch.num_samples
    layers, c = config.model.conv_layers, config.mask
    return sample_mask(
        key,
        num_frames(real, layers),
        frames=num_frames(samples, layers),
        prob=c.prob,
        length=c.length,
        min_spans=c.min_spans,
        group_size=mask_group_size(config, batch) if c.require_same_masks else None,
    )


def mask_group_size(config: Any, batch: Batch) -> int:
    """Utterances, padding included, whose numbers of masked frames are equalised together."""
    size, samples = batch.waveforms.shape
    seconds = config.mask.group_seconds
    return max(int(seconds * 16_000 // samples), 1) if seconds else size


def teacher_decay(config: Any, update: Array) -> Array:
    """EMA decay of the teacher at an update number (from 1)."""
    c = config.teacher
    if c.schedule == "exponential":
        schedule = {"start": c.decay, "timescale": c.timescale_steps}
        return teachers.exponential_ema_decay(update, **schedule, freeze_step=c.freeze_step)
    schedule = {"start": c.decay, "end": c.end_decay, "steps": c.decay_steps}
    return teachers.ema_decay(update, **schedule, freeze_step=c.freeze_step)


def codebook_decay(config: Any, finished: Array) -> Array:
    """Decay of the codebooks after so many finished updates."""
    c = config.codebook
    return codebooks.decay_at(finished, start=c.decay, end=c.end_decay, steps=c.decay_steps)
