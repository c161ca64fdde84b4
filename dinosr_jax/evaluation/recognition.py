"""Phone recognition with CTC on frozen features, as SUPERB has it (s3prl's ctc/libriphone.yaml).

The softmax-weighted sum of all layers, a linear projection to 256, a linear classifier, CTC; Adam
without a schedule, gradients clipped to a norm of 1. SUPERB lets the learning rate be chosen on the
validation part, and so all of a grid are trained at once here, on the same batches; of each the
step with the lowest error on the validation part counts, and the best of all is tested, once.

Shapes: B batch, T frames, L layers, D width, P phones and the blank, R learning rates, U labels.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.data.phones import SILENCE, Phone
from dinosr_jax.data.vocabulary import frames_needed
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.objective.ctc import BLANK, best_path

Array = jax.Array
_MAX_LENGTHS = 5  # that utterances are padded to; each is compiled once


class Settings(NamedTuple):
    """SUPERB's recipe, shortened to a small corpus; its own numbers are in configs/superb_pr.py."""

    num_steps: int = 400
    eval_steps: int = 100
    batch_size: int = 16
    project_width: int = 256
    learning_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    clip_norm: float = 1.0
    seed: int = 0


class Source(Protocol):
    """Where features come from: memory, or a network as they are needed."""

    def lengths(self) -> Mapping[str, int]:
        """T of every utterance."""

    def batch(self, ids: Sequence[str], *, frames: int) -> Any:
        """Features [B, frames, L, D], padded with anything."""


class Held(NamedTuple):
    """Features in memory: [L, T, D] of every utterance."""

    arrays: Mapping[str, np.ndarray]

    def lengths(self) -> dict[str, int]:
        """T of every utterance."""
        return {id_: array.shape[1] for id_, array in self.arrays.items()}

    def batch(self, ids: Sequence[str], *, frames: int) -> np.ndarray:
        """Features [B, frames, L, D], padded with zeros."""
        layers, _, width = self.arrays[ids[0]].shape
        found = np.zeros((len(ids), frames, layers, width), self.arrays[ids[0]].dtype)
        for row, id_ in enumerate(ids):
            array = self.arrays[id_].swapaxes(0, 1)
            found[row, : len(array)] = array
        return found


class Part(NamedTuple):
    """Utterances of one part: the phones of each, as numbers from 1 (0 is the blank)."""

    source: Source
    labels: Mapping[str, np.ndarray]


class Recognised(NamedTuple):
    """Phone error rate of the test part, and how it came about.

    `per` is the sum of edit distances over the sum of lengths; `learning_rate` the one chosen,
    after `step` updates; `valid_per` the best of each learning rate; `weights` [L] of the layers;
    `left_out` training utterances with more phones than frames.
    """

    per: float
    learning_rate: float
    step: int
    valid_per: Mapping[float, float]
    weights: np.ndarray
    left_out: int


def spoken(phones: Sequence[Phone]) -> list[str]:
    """The phones that are said, in order: silence is none, as in SUPERB's lexicon."""
    return [phone.label for phone in phones if phone.label != SILENCE]


def encode(
    sequences: Mapping[str, Sequence[str]], *, phones: Sequence[str]
) -> dict[str, np.ndarray]:
    """Phones as numbers from 1.

    Raises:
      LabelError: A phone is not among `phones`.
    """
    number = {phone: i for i, phone in enumerate(phones, start=1)}
    for id_, sequence in sequences.items():
        if unknown := [phone for phone in sequence if phone not in number]:
            raise LabelError(
                f"{id_}: found the phone {unknown[0]!r}, expected one of {len(phones)} others"
            )
    return {
        id_: np.asarray([number[phone] for phone in sequence], np.int32)
        for id_, sequence in sequences.items()
    }


def error_rate(references: Sequence[Sequence], hypotheses: Sequence[Sequence]) -> float:
    """Sum of edit distances over sum of lengths of the references.

    Raises:
      LabelError: The references are empty.
    """
    from rapidfuzz.distance import Levenshtein

    total = sum(map(len, references))
    if not total:
        raise LabelError("the references hold no phone; an error rate has no meaning")
    pairs = zip(references, hypotheses, strict=True)
    return sum(Levenshtein.distance(list(r), list(h)) for r, h in pairs) / total


class _Batch(NamedTuple):
    """Features and labels of one shape; `lengths` 0 and `share` 0 where a row is padding."""

    ids: tuple[str, ...]
    features: Any  # [B, T, L, D]
    lengths: np.ndarray  # [B]
    labels: np.ndarray  # [B, U]
    label_lengths: np.ndarray  # [B]


def plan(lengths: Mapping[str, int], ids: Sequence[str], *, batch_size: int) -> list[tuple]:
    """Cuts utterances into batches of like length, for few shapes.

    Args:
      lengths: T of every utterance.
      ids: Which.
      batch_size: B.

    Returns:
      (ids, frames that they are padded to) of each batch, the shortest first.
    """
    ordered = sorted(ids, key=lambda id_: (lengths[id_], id_))
    if not ordered:
        return []
    # each length for an equal share of all frames: few utterances are padded to the longest
    frames = np.cumsum([lengths[id_] for id_ in ordered])
    shares = frames[-1] * np.arange(1, _MAX_LENGTHS + 1) / _MAX_LENGTHS
    rungs = sorted({lengths[ordered[i]] for i in np.searchsorted(frames, shares)})
    found = []
    for low, rung in zip([-1, *rungs], rungs, strict=False):
        group = [id_ for id_ in ordered if low < lengths[id_] <= rung]
        cuts = range(0, len(group), batch_size)
        found += [(tuple(group[cut : cut + batch_size]), rung) for cut in cuts]
    return found


def _fill(
    part: Part, ids: Sequence[str], frames: int, settings: Settings, *, num_labels: int = 0
) -> _Batch:
    """A batch of the full size, labels padded to `num_labels` (0: without them).

    Rows that are missing repeat the first, without weight.
    """
    missing = settings.batch_size - len(ids)
    lengths = part.source.lengths()
    labels = np.zeros((settings.batch_size, num_labels), np.int32)
    for row, id_ in enumerate(ids if num_labels else ()):
        labels[row, : len(part.labels[id_])] = part.labels[id_]
    pad = lambda numbers: np.pad(np.asarray(numbers, np.int32), (0, missing))
    return _Batch(
        tuple(ids),
        part.source.batch([*ids, *[ids[0]] * missing], frames=frames),
        pad([lengths[id_] for id_ in ids]),
        labels,
        pad([len(part.labels[id_]) for id_ in ids]),
    )


def init(key: Array, *, num_layers: int, width: int, project_width: int, num_phones: int) -> Any:
    """Parameters: weights of the layers, projection, classifier of P phones and the blank."""
    keys = jax.random.split(key, 2)
    kernel = lambda key, fan_in, fan_out: (  # torch's nn.Linear
        jax.random.uniform(key, (fan_in, fan_out), minval=-1, maxval=1) / np.sqrt(fan_in)
    )
    return {
        "weights": jnp.zeros(num_layers),
        "project": {
            "kernel": kernel(keys[0], width, project_width),
            "bias": jnp.zeros(project_width),
        },
        "classify": {
            "kernel": kernel(keys[1], project_width, num_phones + 1),
            "bias": jnp.zeros(num_phones + 1),
        },
    }


def logits(params: Any, features: Array) -> Array:
    """Features [B, T, L, D] to logits [B, T, P + 1]."""
    x = jnp.einsum("btld,l->btd", features.astype(jnp.float32), jax.nn.softmax(params["weights"]))
    for name in ("project", "classify"):
        x = x @ params[name]["kernel"] + params[name]["bias"][None, None]
    return x


def loss(params: Any, batch: _Batch) -> Array:
    """CTC: mean over the utterances of the loss by label (torch's default, which SUPERB uses)."""
    found = logits(params, batch.features)
    padded = lambda lengths, size: (jnp.arange(size)[None] >= lengths[:, None]).astype(jnp.float32)
    each = optax.ctc_loss(
        found,
        padded(batch.lengths, found.shape[1]),
        batch.labels,
        padded(batch.label_lengths, batch.labels.shape[1]),
        blank_id=BLANK,
    )
    real = batch.lengths > 0
    by_label = jnp.where(real, each / jnp.maximum(batch.label_lengths, 1), 0.0)
    return by_label.sum() / real.sum()


def make_update(settings: Settings) -> tuple[Callable, Callable]:
    """Functions that make the optimizer's state, and an update, of all learning rates at once.

    Parameters and state have R as first axis.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.scale_by_adam())
    rates = jnp.asarray(settings.learning_rates)

    def one(params: Any, state: Any, rate: Array, batch: _Batch) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    several = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))
    update = lambda params, state, batch: several(params, state, rates, batch._replace(ids=()))
    return jax.vmap(optimizer.init), update


@jax.jit
def _best_paths(params: Any, features: Array) -> Array:
    """Of each learning rate [R, B, T]."""
    return jax.vmap(lambda one: logits(one, features).argmax(axis=-1))(params)


def decode(params: Any, part: Part, *, settings: Settings) -> list[dict[str, np.ndarray]]:
    """Labels of every utterance, by best path, of each learning rate."""
    found: list[dict[str, np.ndarray]] = [{} for _ in range(len(jax.tree.leaves(params)[0]))]
    for ids, frames in plan(
        part.source.lengths(), list(part.labels), batch_size=settings.batch_size
    ):
        batch = _fill(part, ids, frames, settings)
        paths = np.asarray(_best_paths(params, batch.features))
        for rate, of_rate in enumerate(found):
            for row, id_ in enumerate(ids):
                of_rate[id_] = best_path(paths[rate, row, : batch.lengths[row]])
    return found


def rates_of_error(params: Any, part: Part, *, settings: Settings) -> np.ndarray:
    """Phone error rate of each learning rate [R]."""
    references = list(part.labels.values())
    return np.asarray(
        [
            error_rate(references, [found[id_] for id_ in part.labels])
            for found in decode(params, part, settings=settings)
        ]
    )


def _batches(train: Part, ids: Sequence[str], settings: Settings) -> Iterator[_Batch]:
    """Endless: all batches in an order of chance, again and again."""
    generator = np.random.default_rng(settings.seed)
    lengths = train.source.lengths()
    planned = plan(lengths, ids, batch_size=settings.batch_size)
    most: dict[int, int] = collections.Counter()  # labels of a row, for each length
    for some, frames in planned:
        most[frames] = max(most[frames], max(len(train.labels[id_]) for id_ in some))
    while True:
        for i in generator.permutation(len(planned)):
            some, frames = planned[i]
            yield _fill(train, some, frames, settings, num_labels=most[frames])


def _start(layers_and_width: tuple[int, int], num_phones: int, settings: Settings) -> Any:
    """The same parameters for every learning rate."""
    shape = dict(zip(("num_layers", "width"), layers_and_width, strict=True))
    shape |= {"project_width": settings.project_width, "num_phones": num_phones}
    one = init(jax.random.key(settings.seed), **shape)
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(settings.learning_rates)), one)


def recognise(
    train: Part,
    valid: Part,
    test: Part,
    *,
    num_phones: int,
    settings: Settings | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Recognised:
    """Trains for every learning rate, chooses on `valid`, tests on `test`.

    Args:
      train: To learn from.
      valid: To choose learning rate and step on.
      test: Looked at once.
      num_phones: P, without the blank.
      settings: The recipe.
      progress: Is told how many steps more are done.

    Returns:
      The error rate.

    Raises:
      LabelError: A part holds no phone, or no training utterance has as many frames as phones.
    """
    settings = settings or Settings()
    lengths = train.source.lengths()
    ids = [id_ for id_, labels in train.labels.items() if 0 < frames_needed(labels) <= lengths[id_]]
    if not ids:
        raise LabelError("no training utterance has phones, and as many frames as CTC needs")
    source = _batches(train, ids, settings)
    batch = next(source)
    rates = settings.learning_rates
    params = _start(batch.features.shape[2:], num_phones, settings)
    init_optimizer, update = make_update(settings)
    state = init_optimizer(params)
    best = [(np.inf, 0, None)] * len(rates)  # error on the validation part, step, parameters
    for step in range(1, settings.num_steps + 1):
        params, state = update(params, state, batch)
        batch = next(source)
        progress(1)
        if step % settings.eval_steps == 0 or step == settings.num_steps:
            errors = rates_of_error(params, valid, settings=settings)
            for i, error in enumerate(errors):
                if error < best[i][0]:
                    best[i] = (
                        float(error),
                        step,
                        jax.tree.map(lambda x, i=i: x[i : i + 1], params),
                    )
    chosen = min(range(len(rates)), key=lambda i: best[i][0])
    _, step, params = best[chosen]
    return Recognised(
        per=float(rates_of_error(params, test, settings=settings)[0]),
        learning_rate=rates[chosen],
        step=step,
        valid_per={rate: error for rate, (error, _, _) in zip(rates, best, strict=True)},
        weights=np.asarray(jax.nn.softmax(params["weights"][0])),
        left_out=len(train.labels) - len(ids),
    )
