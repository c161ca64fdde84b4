"""What SUPERB learns on frozen features: a weighted sum of the layers, and a small network on it.

Shapes: B batch, T frames, L layers, D width, P projected width, H width of an LSTM, C outputs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
_NARROWEST = 15  # a mask takes at most this part of the features: those of MFCC are few
_MOST_MASKS = 20


class Augment(NamedTuple):
    """SpecAugment on features (Park et al. 2019): warped in time, then masked with zeros.

    A point in time is moved by `warp_frames` at most; masks are of 0 to `_width` frames or
    features, drawn for every utterance. `time_mask_share` above 0: as many masks in time as this
    share of the frames, 20 at most, and none of a larger share.
    """

    warp_frames: int = 5
    num_feature_masks: int = 4
    feature_mask_width: int = 50
    num_time_masks: int = 2
    time_mask_width: int = 40
    time_mask_share: float = 0.0


class Head(nn.Module):
    """Sum of the layers, projection, bidirectional LSTMs, mean over the frames, linear output.

    `lstm_widths` H of each layer, none where it is empty; `pooled` for one output an utterance;
    `augment` and `dropout` (after each LSTM) while it learns.
    """

    num_outputs: int
    project_width: int
    lstm_widths: tuple[int, ...] = ()
    dropout: float = 0.0
    augment: Augment | None = None
    pooled: bool = False

    @nn.compact
    def __call__(self, features: Array, lengths: Array, *, learning: bool = False) -> Array:
        """Outputs, as logits.

        Args:
          features: [B, T, L, D], of any type; anything after the end.
          lengths: [B] frames of each, 0 of what only fills the batch.
          learning: With dropout and augmentation, from the random streams of these names.

        Returns:
          [B, T, C] float32, or [B, C] where it is pooled.
        """
        weights = self.param("weights", nn.initializers.zeros, (features.shape[2],))
        x = jnp.einsum("btld,l->btd", features.astype(jnp.float32), jax.nn.softmax(weights))
        real = jnp.arange(x.shape[1])[None] < lengths[:, None]
        x = jnp.where(real[..., None], x, 0.0)
        if learning and self.augment:
            x = augmented(self.make_rng("augment"), x, lengths, settings=self.augment)
        x = _linear(self.project_width, "project")(x)
        for i, width in enumerate(self.lstm_widths):
            x = BiLSTM(width, name=f"lstm_{i}")(x, lengths)
            x = nn.Dropout(self.dropout, deterministic=not learning)(x)
        if self.pooled:
            total = jnp.where(real[..., None], x, 0.0).sum(axis=1)
            x = total / jnp.maximum(lengths, 1)[:, None]
        return _linear(self.num_outputs, "classify")(x)


def _uniform(fan_in: int | None = None, *, draws: int = 1) -> Callable:
    """Uniform within 1 / sqrt(fan_in), as PyTorch has it; None: the first axis of a kernel."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        bound = (fan_in or shape[0]) ** -0.5
        return jax.random.uniform(key, (draws, *shape), dtype, -bound, bound).sum(axis=0)

    return init


def _linear(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, kernel_init=_uniform(), name=name)


class BiLSTM(nn.Module):
    """An LSTM in each direction; the one backwards starts at the last frame that is real."""

    width: int

    @nn.compact
    def __call__(self, x: Array, lengths: Array) -> Array:
        """[B, T, D] and the frames [B] of each to [B, T, 2 H]."""
        one = _uniform(self.width)
        forward, backward = (
            nn.RNN(  # PyTorch adds two biases, and so one is their sum
                nn.OptimizedLSTMCell(
                    self.width,
                    kernel_init=one,
                    recurrent_kernel_init=one,
                    bias_init=_uniform(self.width, draws=2),
                    name=name,
                )
            )
            for name in ("forward", "backward")
        )
        return nn.Bidirectional(forward, backward)(x, seq_lengths=lengths)


def augmented(key: Array, x: Array, lengths: Array, *, settings: Augment) -> Array:
    """Warps and masks features [B, T, D] of `lengths` [B] frames; the lengths stay."""
    keys = jax.random.split(key, 3)
    if settings.warp_frames:
        x = _warped(keys[0], x, lengths, window=settings.warp_frames)
    narrow = min(settings.feature_mask_width, x.shape[2] // _NARROWEST)
    everywhere = jnp.full(len(x), x.shape[2])
    few = jnp.full(len(x), settings.num_feature_masks)
    features = _masks(
        keys[1], everywhere, size=x.shape[2], numbers=few, longest=jnp.full(len(x), narrow)
    )
    numbers, longest = (
        jnp.full(len(x), n) for n in (settings.num_time_masks, settings.time_mask_width)
    )
    if settings.time_mask_share:
        share = (settings.time_mask_share * lengths).astype(jnp.int32)
        numbers, longest = share, jnp.minimum(longest, share)
    times = _masks(keys[2], lengths, size=x.shape[1], numbers=numbers, longest=longest)
    return jnp.where(features[:, None, :] | times[:, :, None], 0.0, x)


def _masks(key: Array, lengths: Array, *, size: int, numbers: Array, longest: Array) -> Array:
    """[B, size] bool: True in `numbers` [B] spans of 0 to `longest` [B], within the length."""
    of_widths, of_starts = jax.random.split(key)
    shape = (len(lengths), _MOST_MASKS)
    widths = jax.random.randint(of_widths, shape, 0, longest[:, None] + 1)
    widths = jnp.where(jnp.arange(_MOST_MASKS)[None] < numbers[:, None], widths, 0)
    last = jnp.maximum(lengths[:, None] - widths, 1)  # starts are before it
    starts = (jax.random.uniform(of_starts, shape) * last).astype(jnp.int32)
    places = jnp.arange(size)[None, None]
    inside = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return inside.any(axis=1)


def _warped(key: Array, x: Array, lengths: Array, *, window: int) -> Array:
    """Moves a point of each utterance by up to `window` frames; what is beside it is stretched."""
    of_centres, of_targets = jax.random.split(key)
    long_enough = lengths > 2 * window
    between = lambda key, low, high: (
        low + jax.random.uniform(key, lengths.shape) * (high - low)
    ).astype(jnp.int32)
    centre = between(of_centres, jnp.full_like(lengths, window), lengths - window)
    target = between(of_targets, centre - window, centre + window) + 1
    places = jnp.arange(x.shape[1])[None] + 0.5
    centre, target, end = (n[:, None].astype(jnp.float32) for n in (centre, target, lengths))
    left = jnp.clip(places * centre / target - 0.5, 0, centre - 1)
    ratio = (end - centre) / jnp.maximum(end - target, 1)
    right = jnp.clip(centre + (places - target) * ratio - 0.5, centre, end - 1)
    source = jnp.where(places < target, left, right)
    source = jnp.where(long_enough[:, None] & (places < end), source, places - 0.5)
    below = jnp.floor(source).astype(jnp.int32)
    share = (source - below)[..., None]
    above = jnp.minimum(below + 1, x.shape[1] - 1)
    pick = lambda index: jnp.take_along_axis(x, index[..., None], axis=1)
    return pick(below) * (1 - share) + pick(above) * share
