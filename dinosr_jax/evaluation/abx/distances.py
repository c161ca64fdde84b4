"""Distances between frames: fastabx' angular, euclidean, symmetric KL and identical.

Shapes: T frames, D numbers a frame, E numbers of what is kept of one, W frames of a tile.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Distance = Literal["angular", "euclidean", "kl_symmetric", "identical"]
_EPSILON = 1e-6  # added to probabilities before the logarithm, as in fastabx
# arccos(x) = sqrt(1 - x) p(x) for 0 <= x <= 1, to 2e-8: Abramowitz and Stegun, 4.4.46
_ARCCOS = (
    -0.0012624911, 0.0066700901, -0.0170881256, 0.0308918810, -0.0501743046, 0.0889789874,
    -0.2145988016, 1.5707963050,
)  # fmt: skip


class Frames(NamedTuple):
    """Frames: `ids` [T] int32, equal where the frames are; `values` [T, E] and `own` [T] float32.

    `own` is what a frame brings into every distance of it. They are empty, E = 0, for 'identical'.
    """

    ids: np.ndarray
    values: np.ndarray
    own: np.ndarray


def prepare(frames: np.ndarray, *, distance: Distance) -> tuple[np.ndarray, np.ndarray]:
    """What is kept of frames [T, D], so that distances are quick: `values` and `own` of `Frames`.

    'angular' scales frames to length 1; a frame of zeros becomes one of equal numbers, as in
    fastabx. 'kl_symmetric' needs probabilities. Raises ValueError where frames are none, or too
    large.
    """
    own = np.zeros(len(frames), np.float32)
    if distance == "euclidean":
        if (largest := float(np.abs(frames).max(initial=0))) > 1e17:
            raise ValueError(
                f"found a number of {largest:.3g}, expected squares that float32 can hold"
            )
        return frames.astype(np.float32), own
    exact = frames.astype(np.float64)
    if distance == "angular":
        exact[~exact.any(axis=1)] = 1.0
        lengths = np.sqrt(np.einsum("td,td->t", exact, exact))
        if not (np.isfinite(lengths) & (lengths > 1e-150)).all():  # squares beyond float64
            exact /= np.abs(exact).max(axis=1, keepdims=True)
            lengths = np.sqrt(np.einsum("td,td->t", exact, exact))
        return (exact / lengths[:, None]).astype(np.float32), own
    if exact.min(initial=0.0) < 0 or np.abs(exact.sum(axis=1) - 1).max(initial=0.0) > 0.01:
        raise ValueError(
            "expected probabilities for kl_symmetric (none below 0, every frame adds up to 1), "
            f"found a least number of {exact.min():.3g} and a sum of {exact.sum(axis=1).max():.3g}"
        )
    # the mean of the logarithms drops out, and float32 is more exact without it
    logs = np.log(exact + _EPSILON)
    logs -= logs.mean(axis=1, keepdims=True)
    own = (exact * logs).sum(axis=1)
    return np.concatenate([exact, logs], axis=1).astype(np.float32), own.astype(np.float32)


def between(one: Frames, other: Frames, distance: Distance) -> jax.Array:
    """Distances [W, W] float32 between the frames of two tiles of W; 0 where they are equal.

    Angles are parts of a half turn, from 0 to 1; units that differ are at distance 1.
    """
    differs = one.ids[:, None] != other.ids[None, :]
    if distance == "identical":
        return differs.astype(jnp.float32)
    if distance == "angular":
        distances = _arccos(_dot(one.values, other.values)) * np.float32(1 / np.pi)
    elif distance == "euclidean":
        apart = one.values[:, None, :] - other.values[None, :, :]
        distances = jnp.sqrt(jnp.square(apart).sum(-1))
    else:
        swapped = jnp.roll(other.values, other.values.shape[1] // 2, axis=1)
        own = one.own[:, None] + other.own[None, :]
        distances = 0.5 * (own - _dot(one.values, swapped))
    return jnp.where(differs, distances, 0.0)


def _dot(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other.T, precision="highest")


def _arccos(x: jax.Array) -> jax.Array:
    """Arccos of numbers cut to [-1, 1], in a form that vectorises on CPUs."""
    size = jnp.minimum(jnp.abs(x), 1.0)
    polynomial = jnp.polyval(jnp.asarray(_ARCCOS, jnp.float32), size)
    angles = jnp.sqrt(1 - size) * polynomial
    return jnp.where(x < 0, np.float32(np.pi) - angles, angles)


def equal_frames(values: np.ndarray) -> np.ndarray:
    """[T] int32: for rows [T, E] float32 the index of the first row that has the same bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    # rows in which the sum of some columns differs are different; the others are compared, in
    # general none
    some = bits[:, :: max(1, bits.shape[1] // 16)].sum(axis=1, dtype=np.uint64)
    _, which, counts = np.unique(some, return_inverse=True, return_counts=True)
    ids = np.arange(len(values), dtype=np.int32)
    seen: dict[bytes, int] = {}
    for t in np.flatnonzero(counts[which] > 1):
        ids[t] = seen.setdefault(bits[t].tobytes(), int(t))
    return ids
