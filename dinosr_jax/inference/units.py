"""Discrete units: the codes of the teacher's codebooks.

Shapes: S samples, T frames, D model, L layers, N codebooks.
"""

import jax.numpy as jnp
import numpy as np

from dinosr_jax.inference.extract import Trained, extract
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.teacher import instance_normalise


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
    ffn = extract(trained, waveform, layer=layer, tensor="ffn", network="teacher")
    targets = instance_normalise(jnp.asarray(ffn)[None, None])  # [1, 1, T, D]
    one = codebooks.Codebook(trained.codebook.sums[k : k + 1], trained.codebook.counts[k : k + 1])
    return np.asarray(codebooks.assign(one, targets))[0, 0]
