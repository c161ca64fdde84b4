"""Discrete units: the codes of the teacher's codebooks.

Shapes: S samples, T frames, D model, L layers, N codebooks.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.inference.extract import Trained, padded_layers
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.teacher import instance_normalise

Array = jax.Array


def codebook_of_layer(trained: Trained, layer: int) -> int:
    """Number of the codebook (from 0) that clusters a layer (from 1).

    Raises:
      ValueError: The layer has no codebook.
    """
    model = trained.config.model
    first = model.num_layers - model.num_codebooks + 1
    if not first <= layer <= model.num_layers:
        raise ValueError(
            f"layer {layer} has no codebook; layers {first} to {model.num_layers} have one"
        )
    return layer - first


def extract_units(trained: Trained, waveform: np.ndarray, *, layer: int) -> np.ndarray:
    """Units of one utterance: the nearest codeword to every frame of the teacher's layer.

    Args:
      trained: The network.
      waveform: [S] at 16 kHz.
      layer: One of the top N layers, from 1.

    Returns:
      [T] int32, one unit every 20 ms, 0 to V - 1.

    Raises:
      ValueError: The layer has no codebook.
      AudioError: The audio is too short or too long.
    """
    k = codebook_of_layer(trained, layer)
    layers, frames = padded_layers(trained, waveform, network="teacher")
    return np.asarray(_codes(trained.codebook, layers.ffn, frames, k, layer - 1))[:frames]


@jax.jit
def _codes(codebook: codebooks.Codebook, ffn: Array, frames: int, k: int, layer: int) -> Array:
    """Codes [T] of ffn [L, 1, T, D] of one utterance, of which `frames` are real."""
    one = jax.tree.map(lambda x: x[k][None], codebook)
    z = ffn[layer][None]  # [1, 1, T, D]
    targets = instance_normalise(z, jnp.arange(z.shape[2])[None] >= frames)
    return codebooks.assign(one, targets)[0, 0]
