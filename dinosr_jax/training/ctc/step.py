"""One update of a recogniser: CTC on the student's last layer, as fairseq fine-tunes wav2vec 2.0.

Shapes: B batch, S samples, T frames, D model, U labels, V symbols.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dinosr_jax.model.recogniser import Output
from dinosr_jax.objective.ctc import ctc_loss
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.training.metrics import norms
from dinosr_jax.training.optimizer import make_optimizer, make_schedule, move
from dinosr_jax.training.state import Batch, TrainState, make_model, stream_key
from dinosr_jax.training.step import (
    SampleMask,
    apply,
    differentiate,
    draw_mask,
    frame_padding,
    mask_group_size,
    sum_micro_batches,
)

Array = jax.Array


class _BestPaths(NamedTuple):
    """Of the rows of a batch: the loss [B] of each, and its most probable symbols [B, T] int32."""

    loss: Array
    codes: Array


def make_finetuning_step(config: Any, *, sample_mask: SampleMask = span_mask):
    """The update of a configuration whose task is 'ctc', with the symbols of its vocabulary.

    It is a pure function (TrainState, Batch with labels) -> (TrainState, metrics). The loss is the
    mean over the utterances of the global batch (fairseq's sentence_avg). `sample_mask` draws the
    masks as `span_mask`.
    """
    model, optimizer, schedule = make_model(config), make_optimizer(config), make_schedule(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        # 1 masks of frames and of channels
        masks = draw_masks(config, batch, state.step, sample_mask)
        dropout_key = stream_key(config.seed, "dropout", state.step)
        num_utterances = jnp.maximum(jnp.sum(batch.num_labels > 0), 1)

        # 2 loss and gradients; while the network is frozen, of the output layer only
        def loss(params, frozen, batch, masks, key):
            keys = {"key": key, "layerdrop_key": dropout_key}
            hidden = encode(config, model, params, batch, masks, **keys)
            hidden = jax.lax.stop_gradient(hidden) if frozen else hidden
            each = ctc_of(config, params, hidden, batch)
            return jnp.sum(each) / num_utterances, jnp.sum(each)

        steps = config.ctc.freeze_steps
        frozen = state.step < steps if steps else None
        gradient = lambda *micro: differentiate(loss, state.params, frozen, *micro)
        gradients, total = sum_micro_batches(
            gradient, batch, masks, dropout_key, count=config.optimizer.accumulation_steps
        )
        # 3 optimizer
        params, updates, opt_state = move(optimizer, gradients, state)
        # 4 metrics
        labels = jnp.maximum(jnp.sum(batch.num_labels), 1)
        metrics = {"loss": total / num_utterances, "loss_per_label": total / labels}
        metrics |= {"learning_rate": schedule(state.step), "num_utterances": num_utterances}
        metrics |= norms(gradients=gradients, params=params, updates=updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def make_recognition_step(config: Any):
    """Pure function (TrainState, Batch with labels) -> loss and best path, without dropout."""
    model = make_model(config)

    def recognition_step(state: TrainState, batch: Batch) -> _BestPaths:
        hidden = encode(config, model, state.params, batch, (None, None))
        codes = jnp.argmax(output_logits(config, state.params, hidden), axis=-1)
        return _BestPaths(ctc_of(config, state.params, hidden, batch), codes.astype(jnp.int32))

    return recognition_step


def encode(
    config: Any, model: Any, params: Any, batch: Batch, masks: tuple, **keys: Array
) -> Array:
    """Last layer's `block` [B, T, D] of a recogniser or a student.

    The feature encoder gets no gradient. `masks` are of frames [B, T] and of channels [B, D], or
    None each; `keys` are `key` and `layerdrop_key`, without which nothing is dropped.
    """
    features = jax.lax.stop_gradient(apply(model, params, batch.waveforms, method="convolve"))
    padded = frame_padding(config, batch)
    projected = apply(model, params, features, padded, method="project_features")
    inputs = {"mask": masks[0], "channel_mask": masks[1], "padding_mask": padded} | keys
    return apply(model, params, projected, **inputs, method="encode").output


@jax.named_scope("output_layer")
def output_logits(config: Any, params: Any, hidden: Array) -> Array:
    """Last layer's `block` [B, T, D] to the symbols' logits [B, T, V], float32."""
    return Output(len(config.ctc.symbols)).apply({"params": params["output"]}, hidden)


def ctc_of(config: Any, params: Any, hidden: Array, batch: Batch) -> Array:
    """CTC loss [B] of every row, in nats; 0 where it only fills the batch."""
    logits = output_logits(config, params, hidden)
    padded = frame_padding(config, batch)
    each = ctc_loss(logits, padded, batch.labels, batch.num_labels)
    return jnp.where(batch.num_labels > 0, each, 0.0)


def draw_masks(
    config: Any, batch: Batch, step: Array, sample_mask: SampleMask
) -> tuple[Array | None, Array | None]:
    """Masked frames [B, T] and channels [B, D] of an update, or None."""
    c, (size, width) = config.ctc, (len(batch.waveforms), config.model.width)
    mask = channels = None
    if config.mask.prob:
        key = stream_key(config.seed, "mask", step)
        mask = draw_mask(config, batch, key, sample_mask)
    if c.channel_mask_prob:
        channels = sample_mask(
            stream_key(config.seed, "channel_mask", step),
            jnp.full((size,), width),
            frames=width,
            prob=c.channel_mask_prob,
            length=min(c.channel_mask_length, width),
            min_spans=0,
            group_size=mask_group_size(config, batch),
        )
    return mask, channels
