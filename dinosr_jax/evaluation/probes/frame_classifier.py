"""Which phone is said in a frame: a linear classifier of every layer, and of their learned sum.

All are trained at once, each with its own loss. The weighted sum is SUPERB's: the softmax of one
weight a layer, zero at first, and layers as they are (one number for all brings them to a scale).
A single layer is centred and scaled by channel, which changes no linear classifier but how fast it
is learnt.

Shapes: n frames, L layers, D width, P phones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.evaluation.features.in_memory import Features
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
    """Frames of a set of utterances: features [n, L, D] of one type, phones [n] as numbers."""

    features: np.ndarray
    phones: np.ndarray


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
    """Frames of utterances, one after the other.

    Args:
      features: Of each utterance.
      labels: The phone of every frame [T], of some of them; those are taken.
      phones: All that there are; a frame of another one is left out.

    Returns:
      The frames.

    Raises:
      LabelError: There is none.
    """
    number = {phone: i for i, phone in enumerate(phones)}
    arrays, numbers = [], []
    for id_ in labels:
        if id_ not in features.arrays:
            continue
        found = np.asarray([number.get(label, -1) for label in labels[id_]], np.int32)
        arrays.append(features.arrays[id_].swapaxes(0, 1)[found >= 0])
        numbers.append(found[found >= 0])
    if not arrays or not sum(map(len, numbers)):
        raise LabelError("no frame has a phone; expected utterances with phones")
    return LabelledFrames(np.concatenate(arrays), np.concatenate(numbers))


def probe(
    train: LabelledFrames,
    test: LabelledFrames,
    *,
    num_phones: int,
    settings: ClassifierSettings | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Accuracy:
    """Trains classifiers of frames, and tests them.

    Args:
      train: Frames to learn from.
      test: Others.
      num_phones: P.
      settings: Of the training.
      progress: Is told how many steps more are done.

    Returns:
      The accuracies.
    """
    settings = settings or ClassifierSettings()
    scale = Scale.of(train.features)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, settings.num_steps))
    params = init(train.features.shape[1], train.features.shape[2], num_phones)
    state = optimizer.init(params)
    update = _compile_update(optimizer)
    generator = np.random.default_rng(settings.seed)
    size = min(settings.batch_frames, len(train.phones))
    for _ in range(settings.num_steps):
        rows = generator.integers(0, len(train.phones), size)
        batch = LabelledFrames(train.features[rows], train.phones[rows])
        params, state = update(params, state, batch, scale)
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
    def of(cls, features: np.ndarray) -> "Scale":
        """Of features [n, L, D], a layer at a time, in float64."""
        wide = [features[:, i].astype(np.float64) for i in range(features.shape[1])]
        mean = np.stack([layer.mean(axis=0) for layer in wide])
        deviation = np.stack([layer.std(axis=0) for layer in wide])
        overall = np.sqrt(np.mean(np.square(deviation) + np.square(mean)))
        numbers = (mean, deviation + _EPSILON * (overall or 1.0), overall or 1.0)
        return cls(*(np.asarray(number, np.float32) for number in numbers))


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
        found = jnp.einsum("nld,ldp->lnp", inputs, params["kernel"])
    return found + params["bias"][:, None]


def _compile_update(optimizer: optax.GradientTransformation) -> Callable:
    def loss(params: Any, batch: LabelledFrames, scale: Scale) -> Array:
        found = logits(params, batch.features, scale)
        wanted = jnp.broadcast_to(batch.phones[None], found.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(found, wanted).mean(axis=1).sum()

    @jax.jit
    def update(params: Any, state: Any, batch: LabelledFrames, scale: Scale) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, batch, scale), state, params)
        return optax.apply_updates(params, updates), state

    return update


@jax.jit
def _count_right(params: Any, features: Array, phones: Array, scale: Scale) -> Array:
    found = logits(params, features, scale).argmax(axis=-1)
    return jnp.sum(found == phones[None], axis=1)


def _right(params: Any, test: LabelledFrames, scale: Scale) -> np.ndarray:
    """How many test frames each classifier has right [L + 1]; the last block is padded with -1."""
    total = np.zeros(len(params["kernel"]), np.int64)
    size = min(_TEST_FRAMES, len(test.phones))
    for start in range(0, len(test.phones), size):
        features, phones = (array[start : start + size] for array in test)
        missing = size - len(phones)
        features = np.pad(features, ((0, missing), (0, 0), (0, 0)))
        phones = np.pad(phones, (0, missing), constant_values=-1)
        total += np.asarray(_count_right(params, features, phones, scale))
    return total
