"""The teacher: its weights, its schedule and the targets made of its layers.

Shapes: B batch, T frames, D model, L layers, N codebooks.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

Array = jax.Array
Scope = Literal["encoder", "full"]
EXPONENTIAL_THRESHOLD = 1e-7

_PARTS = {
    "encoder": ("encoder",),
    "full": ("feature_encoder", "feature_projection", "encoder"),
}


def teacher_parts(params: Mapping[str, Any], *, scope: Scope) -> dict[str, Any]:
    """The part of the student's parameters that the teacher has a copy of.

    Args:
      params: Parameters of the student.
      scope: 'encoder' is what comes after the projection (the teacher reads the student's
        projected features); 'full' is the feature encoder, if it has parameters, and the
        projection too.

    Returns:
      The sub-tree, sharing its arrays with `params`.
    """
    return {name: params[name] for name in _PARTS[scope] if name in params}


def ema_decay(update: Array, *, start: float, end: float, steps: int, freeze_step: int) -> Array:
    """Decay of the teacher's average after optimizer update number `update`, which counts from 1.

    Linear from `start` to `end` over `steps` updates, then `end`, then 1 (no change) from
    `freeze_step` on. float32 scalar.
    """
    share = jnp.minimum(update / max(steps, 1), 1.0).astype(jnp.float32)
    decay = start + (end - start) * share if steps else jnp.full_like(share, end)
    return jnp.where(update >= freeze_step, 1.0, decay)


def exponential_ema_decay(
    update: Array, *, start: float, timescale: float, freeze_step: int
) -> Array:
    """The same, coming closer to 1 exponentially: 1 - (1 - start) exp(-update / timescale).

    1 (no change) once it is within 1e-7 of it, and from `freeze_step` on (Poli et al., 2025).
    float32 scalar.
    """
    change = (1.0 - start) * jnp.exp(-update.astype(jnp.float32) / timescale)
    frozen = (change <= EXPONENTIAL_THRESHOLD) | (update >= freeze_step)
    return jnp.where(frozen, 1.0, 1.0 - change)


@jax.named_scope("teacher_update")
def update_teacher(teacher: Any, student: Any, *, decay: Array, scope: Scope) -> Any:
    """Moves the teacher towards the student: decay * teacher + (1 - decay) * student.

    In scope 'encoder' the positional convolution is copied from the student, not averaged, unless
    the teacher is frozen (decay 1). The official code does so where it averages layers only
    (`ema_layers_only`), which it cannot with a teacher of scope 'full'.

    Args:
      teacher: Parameters of the teacher, float32.
      student: Parameters of the student, of which the teacher has a part.
      decay: float32 scalar.
      scope: As in `teacher_parts`.

    Returns:
      The new parameters of the teacher.
    """

    def update(path, old, new):
        copied = any(getattr(entry, "key", None) == "pos_conv" for entry in path)
        if copied and scope == "encoder":
            return jnp.where(decay == 1.0, old, new)
        return jnp.where(decay == 1.0, old, decay * old + (1.0 - decay) * new)

    parts = teacher_parts(student, scope=scope)
    return jax.tree_util.tree_map_with_path(update, teacher, parts)


@jax.named_scope("targets")
def instance_normalise(z: Array, padding_mask: Array | None = None, *, eps: float = 1e-5) -> Array:
    """Normalises every channel of every utterance over time, without affine, in float32.

    Args:
      z: [..., B, T, D], any float type.
      padding_mask: [B, T] bool, True on padding, which does not count; None where there is none.
      eps: Added to the (biased) variance.

    Returns:
      [..., B, T, D] float32; zero on padding.
    """
    z = z.astype(jnp.float32)
    if padding_mask is None:
        mean = jnp.mean(z, axis=-2, keepdims=True)
        variance = jnp.mean(jnp.square(z - mean), axis=-2, keepdims=True)
        return (z - mean) * jax.lax.rsqrt(variance + eps)
    real = jnp.broadcast_to(~padding_mask[..., None], z.shape)
    mean = jnp.mean(z, axis=-2, keepdims=True, where=real)
    variance = jnp.mean(jnp.square(z - mean), axis=-2, keepdims=True, where=real)
    return jnp.where(real, (z - mean) * jax.lax.rsqrt(variance + eps), 0.0)
