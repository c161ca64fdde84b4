"""Features of a trained network as NumPy arrays.

Shapes: B batch, S samples, T frames, D model, L layers.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.config import parse
from dinosr_jax.data import audio
from dinosr_jax.model.dinosr import padding_mask
from dinosr_jax.model.feature_encoder import num_frames, receptive_field
from dinosr_jax.model.transformer import Layers
from dinosr_jax.objective.codebook import Codebook
from dinosr_jax.training.checkpoint import CheckpointError, Checkpoints
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.sharding import make_local_state
from dinosr_jax.training.state import init_state, make_model
from dinosr_jax.training.step import apply

Array = jax.Array
Tensor = Literal["ffn", "block"]
Network = Literal["student", "teacher"]
MAX_SECONDS = 120.0  # attention over all frames at once
_PAD_SECONDS = 1.0  # lengths are padded to multiples of it, so that few shapes are compiled


class Trained(NamedTuple):
    """A trained network, read from a run."""

    config: Any
    params: Any
    teacher_params: Any
    codebook: Codebook
    step: int

    def full_params(self, network: Network) -> Any:
        """Parameters of the student, or of the teacher with what it shares with the student."""
        return self.params if network == "student" else {**self.params, **self.teacher_params}


def load_run(path: str | Path) -> Trained:
    """Reads the last checkpoint of a run.

    Args:
      path: The workdir of a run.

    Returns:
      The network, on the first device.

    Raises:
      CheckpointError: There is no run, or it has no checkpoint.
    """
    path = Path(path)
    if not (path / "checkpoints").is_dir() or not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is not a run: expected a folder with config.json and checkpoints/, the "
            "--workdir of main.py"
        )
    config = parse(json.loads((path / "config.json").read_text()))
    optimizer = make_optimizer(config)
    abstract = make_local_state(lambda: init_state(config, optimizer=optimizer))
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    try:
        restored = checkpoints.restore_latest(abstract)
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{path} has no complete checkpoint yet; train it further first")
    state = restored.state
    return Trained(config, state.params, state.teacher_params, state.codebook, restored.step)


def check_layer(trained: Trained, layer: int) -> None:
    """Raises ValueError where `layer` is not 1 to L."""
    if not 1 <= layer <= trained.config.model.num_layers:
        raise ValueError(
            f"layer {layer}: this network has layers 1 to {trained.config.model.num_layers}"
        )


def extract(
    trained: Trained,
    waveform: np.ndarray,
    *,
    layer: int,
    tensor: Tensor = "block",
    network: Network = "student",
) -> np.ndarray:
    """Features of one utterance.

    Args:
      trained: The network.
      waveform: [S] at 16 kHz, of any level; normalised here.
      layer: 1 to L.
      tensor: 'block' is the layer's output (Hugging Face's hidden state), 'ffn' the output of its
        feed-forward block before the residual (what codebooks cluster).
      network: Student or teacher.

    Returns:
      [T, D] float32, one frame every 20 ms.

    Raises:
      ValueError: No such layer.
      AudioError: The audio is shorter than the receptive field, or longer than 120 s.
    """
    check_layer(trained, layer)
    layers, frames = padded_layers(trained, waveform, network=network)
    return np.asarray(getattr(layers, tensor)[layer - 1, 0], np.float32)[:frames]


def padded_layers(
    trained: Trained, waveform: np.ndarray, *, network: Network
) -> tuple[Layers, int]:
    """All layers of one utterance, padded to a whole number of seconds.

    Args:
      trained: The network.
      waveform: [S] at 16 kHz.
      network: Student or teacher.

    Returns:
      `Layers` with a batch of one, on the device, and the number of real frames.

    Raises:
      AudioError: The audio is too short or too long.
    """
    layers = trained.config.model.conv_layers
    shortest = receptive_field(layers)[0]
    samples, longest = len(waveform), int(MAX_SECONDS * audio.SAMPLE_RATE)
    if samples < shortest:
        raise audio.AudioError(f"found {samples} samples, expected at least {shortest}")
    if samples > longest:
        seconds = samples / audio.SAMPLE_RATE
        raise audio.AudioError(
            f"found {seconds:.0f} s, expected at most {MAX_SECONDS:.0f} s; cut it"
        )
    multiple = int(_PAD_SECONDS * audio.SAMPLE_RATE)
    padded = np.zeros((1, -(-samples // multiple) * multiple), np.float32)
    padded[0, :samples] = audio.normalise(waveform)
    params = trained.full_params(network)
    found = _forward(trained.config, params, padded, jnp.asarray([samples], jnp.int32))
    return found, num_frames(samples, layers)


@partial(jax.jit, static_argnums=0)
def _forward(config: Any, params: Any, waveforms: Array, num_samples: Array) -> Any:
    model, layers = make_model(config), config.model.conv_layers
    padded = padding_mask(num_samples, samples=waveforms.shape[1], conv_layers=layers)
    projected = apply(model, params, waveforms, method="project")
    return apply(model, params, projected, padding_mask=padded, all_layers=True, method="encode")
