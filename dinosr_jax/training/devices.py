"""The check, before a run starts, that the devices can compute its attention."""

import logging
from typing import Any

import jax
import jax.numpy as jnp

from dinosr_jax.data.batches.crops import SAMPLE_RATE
from dinosr_jax.model.attention import Implementation, implementation
from dinosr_jax.model.feature_encoder import num_frames

_LOG = logging.getLogger(__name__)


def check_attention(config: Any, device: jax.Device) -> Implementation:
    """The attention of a run on a device, which is logged; ValueError where it cannot run there."""
    model, data = config.model, config.data
    samples = int(data.max_seconds * SAMPLE_RATE)
    chosen = implementation(
        model.attention,
        platform=device.platform,
        head_width=model.width // model.num_heads,
        frames=num_frames(samples, model.conv_layers),
        dtype=jnp.dtype(config.compute_dtype),
        capability=getattr(device, "compute_capability", None),
    )
    dropped = ""
    if chosen == "cudnn" and model.attention_dropout:
        dropped = (
            "; the student's by xla: cuDNN cannot drop probabilities (model.attention_dropout is "
            f"{model.attention_dropout:g})"
        )
    field = f"config.model.attention is {model.attention!r}"
    _LOG.info("attention is computed by %s on %s (%s)%s", chosen, device.platform, field, dropped)
    return chosen
