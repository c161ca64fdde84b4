"""Log-probabilities of a recogniser's symbols in every frame of recordings.

Shapes: B batch, T frames, V symbols.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.recognition.decoding import Clock, Decoder
from dinosr_jax.inference.recordings import Bad, Recording, refuse
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.model.recogniser import Output

Array = jax.Array


class _Emit(NamedTuple):
    """Log-probabilities of V symbols; a function for `batched.Forward`, given all layers."""

    num_symbols: int

    def __call__(self, arrays: Any, layers: Any, padded: Array) -> Array:
        """[B, T, V] float32; the output layer's parameters are the arrays."""
        logits = Output(self.num_symbols).apply({"params": arrays}, layers.output)
        return jax.nn.log_softmax(logits, axis=-1)


def check_recogniser(model: Any) -> None:
    """Raises UserError where a network was not fine-tuned."""
    if model.vocabulary is None:
        raise UserError(
            f"{model.path}: this network was not fine-tuned, it has no output layer. Fine-tune it: "
            f"python main.py --config=configs/finetune_10h.py --config.init={model.path or 'RUN'}"
        )


def clock_of(model: Any) -> Clock:
    """When the frames of a network are."""
    return Clock(*receptive_field(model.config.model.conv_layers))


def parts(
    model: Any,
    recordings: Iterable[Recording],
    *,
    on_bad: Bad = refuse,
    options: batched.Options | None = None,
    **run: Callable,
) -> Iterator[batched.Part]:
    """Log-probabilities [T, V] float32 of recordings as whole `batched.Part`s, the longest first.

    `on_bad`, `say`, `progress` and `options` are as of `batched.run`.
    """
    check_recogniser(model)
    depth, arrays = model.config.model.num_layers, model.params["output"]
    emit = _Emit(len(model.vocabulary.symbols))
    forward = batched.Forward(model, emit, depth=depth, arrays=arrays, options=options)
    yield from batched.whole(batched.run(forward, recordings, on_bad=on_bad, **run))


def emissions(
    model: Any, recordings: Iterable[Recording], **how: Any
) -> Iterator[tuple[Recording, np.ndarray]]:
    """Recordings and their log-probabilities [T, V] float32; arguments as of `parts`."""
    for part in parts(model, recordings, **how):
        yield part.recording, part.arrays


def texts_of(
    model: Any, recordings: Sequence[Recording], decoder: Decoder, **how: Any
) -> list[str]:
    """Text of recordings in memory, in their order."""
    texts = {r.id: decoder(array).text for r, array in emissions(model, recordings, **how)}
    return [texts[recording.id] for recording in recordings]
