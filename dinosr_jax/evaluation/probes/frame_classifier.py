"""Which phone is said in a frame: a linear classifier of every layer, and of their learned sum.

All are trained at once, each with its own loss. The weighted sum is SUPERB's: the softmax of one
weight a layer, zero at first, and layers as they are (one number for all brings them to a scale).
A single layer is centred and scaled by channel, which changes no linear classifier but how fast it
is learnt.

Shapes: n frames, L layers, D width, P phones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.utterances import LabelError

Array = jax.Array
_EPSILON = 1e-5
_TEST_FRAMES = 4096  # classified at a time


class ClassifierSettings(NamedTuple):
    """How classifiers are trained: Adam with a cosine to 0, on frames drawn by chance."""

    num_steps: int = 1000
    batch_frames: int = 1024
    learning_rate: float = 1e-2
    seed: int = 0


class LabelledFrames(NamedTuple):
    """Frames with a phone: frame `frames[i]` of utterance `ids[owners[i]]` has `phones[i]`.

    `owners`, in rising order, `frames` and `phones` are numbers [n].
    """

    features: Features
    ids: Sequence[str]
    owners: np.ndarray
    frames: np.ndarray
    phones: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Features [k, L, D] of frames [k]."""
        owners = self.owners[rows]
        order = np.argsort(owners, kind="stable")
        arrays = [
            self.features.arrays[self.ids[owners[own[0]]]][:, self.frames[rows[own]]]
            for own in np.split(order, np.flatnonzero(np.diff(owners[order])) + 1)
        ]
        taken = np.empty((len(rows), *arrays[0].shape[::2]), arrays[0].dtype)
        taken[order] = np.concatenate(arrays, axis=1).swapaxes(0, 1)
        return taken

    def pieces(self) -> Iterator[np.ndarray]:
        """Features [L, k, D] of the frames, an utterance at a time."""
        owners, starts = np.unique(self.owners, return_index=True)
        for owner, frames in zip(owners, np.split(self.frames, starts[1:]), strict=True):
            yield self.features.arrays[self.ids[owner]][:, frames]


class Accuracy(NamedTuple):
    """Share of the test frames that are classified rightly.

    `of_layers` [L]; `weighted` is that of the learned sum, whose softmax `weights` [L] are;
    `most_frequent` what always guessing the most frequent phone of the training frames gives.
    """

    of_layers: np.ndarray
    weighted: float
    weights: np.ndarray
    most_frequent: float


def gather(
    features: Features, labels: Mapping[str, np.ndarray], *, phones: Sequence[str]
) -> LabelledFrames:
    """Frames of the utterances of `labels`, whose phones [T] are given, one after the other.

    A frame of a phone that is not in `phones` is left out. Raises LabelError where there is none.
    """
    number = {phone: i for i, phone in enumerate(phones)}
    ids = [id_ for id_ in labels if id_ in features.arrays]
    numbers = [np.asarray([number.get(p, -1) for p in labels[id_]], np.int32) for id_ in ids]
    if not any((codes >= 0).any() for codes in numbers):
        raise LabelError("no frame has a phone; expected utterances with phones")
    counts = [len(codes) for codes in numbers]
    codes, owners = np.concatenate(numbers), np.repeat(np.arange(len(ids)), counts)
    frames = np.concatenate([np.arange(count) for count in counts])
    known = codes >= 0
    return LabelledFrames(features, ids, owners[known], frames[known], codes[known])


def probe(
    train: LabelledFrames,
    test: LabelledFrames,
    *,
    num_phones: int,
    settings: ClassifierSettings | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Accuracy:
    """Trains classifiers of frames, and tests them; `progress` is called with 1 after each step."""
    settings = settings or ClassifierSettings()
    scale = Scale.of(train)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))
    params = init(*scale.mean.shape, num_phones)
    state = optimizer.init(params)
    update = _compile_update(optimizer)
    generator = np.random.default_rng(settings.seed)
    size = min(settings.batch_frames, len(train.phones))
    for _ in range(settings.num_steps):
        rows = generator.integers(0, len(train.phones), size)
        params, state = update(params, state, train.take(rows), train.phones[rows], scale)
        progress(1)
    right = _right(params, test, scale) / len(test.phones)
    guess = np.bincount(train.phones, minlength=num_phones).argmax()
    return Accuracy(
        of_layers=right[:-1],
        weighted=float(right[-1]),
        weights=np.asarray(jax.nn.softmax(params["weights"])),
        most_frequent=float(np.mean(test.phones == guess)),
    )


class Scale(NamedTuple):
    """Mean [L, D] and deviation [L, D] of the channels; `overall` that of all layers together."""

    mean: np.ndarray
    deviation: np.ndarray
    overall: np.ndarray

    @classmethod
    def of(cls, frames: LabelledFrames) -> "Scale":
        """Of the frames, in float64."""
        mean = _sum_of_frames(piece.astype(np.float64) for piece in frames.pieces())
        mean /= len(frames.phones)
        apart = (piece.astype(np.float64) - mean[:, None] for piece in frames.pieces())
        deviation = np.sqrt(_sum_of_frames(map(np.square, apart)) / len(frames.phones))
        overall = np.sqrt(np.mean(np.square(deviation) + np.square(mean)))
        numbers = (mean, deviation + _EPSILON * (overall or 1.0), overall or 1.0)
        return cls(*(np.asarray(number, np.float32) for number in numbers))


def _sum_of_frames(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Sum [L, D] of arrays [L, k, D] over all k, one frame after the other."""
    total = None
    for piece in pieces:
        whole = piece if total is None else np.concatenate([total[:, None], piece], axis=1)
        total = whole.sum(axis=1)
    return total


def init(num_layers: int, width: int, num_phones: int) -> dict[str, Array]:
    """Parameters: linear classifiers of the layers and, last, of their sum; and its weights."""
    return {
        "kernel": jnp.zeros((num_layers + 1, width, num_phones)),
        "bias": jnp.zeros((num_layers + 1, num_phones)),
        "weights": jnp.zeros(num_layers),
    }


def logits(params: Mapping[str, Array], features: Array, scale: Scale) -> Array:
    """Features [n, L, D] to logits [L + 1, n, P]: of every layer, and of the weighted sum."""
    x = features.astype(jnp.float32)
    layers = (x - scale.mean[None]) / scale.deviation[None]
    summed = jnp.einsum("nld,l->nd", x, jax.nn.softmax(params["weights"])) / scale.overall
    inputs = jnp.concatenate([layers, summed[:, None]], axis=1)  # [n, L + 1, D]
    with jax.default_matmul_precision("highest"):
        outputs = jnp.einsum("nld,ldp->lnp", inputs, params["kernel"])
    return outputs + params["bias"][:, None]


def _compile_update(optimizer: optax.GradientTransformation) -> Callable:
    def loss(params: Any, features: Array, phones: Array, scale: Scale) -> Array:
        outputs = logits(params, features, scale)
        labels = jnp.broadcast_to(phones[None], outputs.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean(axis=1).sum()

    @jax.jit
    def update(params: Any, state: Any, *batch: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return optax.apply_updates(params, updates), state

    return update


@jax.jit
def _count_right(params: Any, features: Array, phones: Array, scale: Scale) -> Array:
    best = logits(params, features, scale).argmax(axis=-1)
    return jnp.sum(best == phones[None], axis=1)


def _right(params: Any, test: LabelledFrames, scale: Scale) -> np.ndarray:
    """How many test frames each classifier has right [L + 1]; the last block is padded with -1."""
    total = np.zeros(len(params["kernel"]), np.int64)
    size = min(_TEST_FRAMES, len(test.phones))
    for start in range(0, len(test.phones), size):
        rows = np.arange(start, min(start + size, len(test.phones)))
        missing = size - len(rows)
        features = np.pad(test.take(rows), ((0, missing), (0, 0), (0, 0)))
        phones = np.pad(test.phones[rows], (0, missing), constant_values=-1)
        total += np.asarray(_count_right(params, features, phones, scale))
    return total
