"""Discrete units: the codes of the teacher's codebooks.

Shapes: S samples, T frames, D model, L layers, N codebooks.
"""

import jax
import numpy as np

from dinosr_jax.inference import batches
from dinosr_jax.inference.inputs import Recording, refuse
from dinosr_jax.inference.model import Model
from dinosr_jax.model.transformer import Layers
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.teacher import instance_normalise

Array = jax.Array


def codebook_of_layer(trained: Model, layer: int) -> int:
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


def extract_units(trained: Model, waveform: np.ndarray, *, layer: int) -> np.ndarray:
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
    arrays = jax.tree.map(lambda x: x[k][None], trained.codebook)
    forward = batches.Forward(trained, _codes, depth=layer, network="teacher", arrays=arrays)
    recording = Recording("", "the waveform", np.asarray(waveform, np.float32))
    (found,) = batches.whole(batches.run(forward, [recording], on_bad=refuse))
    return found.arrays


def _codes(codebook: codebooks.Codebook, layers: Layers, padded: Array) -> Array:
    """Codes [B, T] of the last layer's ffn; padded frames have codes without a meaning."""
    targets = instance_normalise(layers.ffn[-1], padded)
    return codebooks.assign(codebook, targets[None])[0]
