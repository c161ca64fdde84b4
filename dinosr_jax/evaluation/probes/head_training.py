"""Learns a head on frozen features for several learning rates at once, as SUPERB allows.

Adam without a schedule, gradients clipped to a norm of 1. SUPERB lets the learning rate be chosen
on the validation part, and so all of a grid are trained at once here, on the same batches; of each
the step that is best on the validation part counts, and the best of all is tested, once.

Shapes: B batch, T frames, L layers, D width, R learning rates, U labels, C outputs.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes.examples import Examples
from dinosr_jax.evaluation.probes.heads import Augment, Head
from dinosr_jax.evaluation.utterances import LabelError

Array = jax.Array
Params = Any
_MAX_LENGTHS = 5  # that utterances are padded to; each is compiled once


class HeadSettings(NamedTuple):
    """SUPERB's recipe, shortened to a small corpus; its own is in configs/evaluation/superb_*.py.

    `lstm_width` is that of each of `lstm_layers`; 0 layers for none.
    """

    num_steps: int = 400
    eval_steps: int = 100
    batch_size: int = 16
    project_width: int = 256
    learning_rates: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    clip_norm: float = 1.0
    seed: int = 0
    lstm_width: int = 0
    lstm_layers: int = 0
    dropout: float = 0.0
    augment: Augment | None = None

    def head(self, num_outputs: int, *, pooled: bool = False) -> Head:
        """What is learnt, with so many outputs."""
        return Head(
            num_outputs,
            self.project_width,
            (self.lstm_width,) * self.lstm_layers,
            self.dropout,
            self.augment,
            pooled,
        )


class FeaturePart(NamedTuple):
    """Utterances of one part: the labels [U] of each, as numbers."""

    features: Features
    labels: Mapping[str, np.ndarray]


def feature_parts(
    features: Features, examples: Examples, labels: Mapping[str, np.ndarray]
) -> list[FeaturePart]:
    """What is learnt from, chosen on and tested on; labels are by id."""
    return [
        FeaturePart(features, {e.recording.id: labels[e.recording.id] for e in part})
        for part in (examples.train, examples.valid, examples.test)
    ]


class FeatureBatch(NamedTuple):
    """Features and labels of one shape; a row that only fills the batch has length 0."""

    ids: tuple[str, ...]
    features: Any  # [B, T, L, D]
    lengths: np.ndarray  # [B]
    labels: np.ndarray  # [B, U]
    label_lengths: np.ndarray  # [B]


class HeadTask(NamedTuple):
    """What a head is for.

    `loss` of logits and batch, a mean over its real rows; `read` makes what is said of an
    utterance of its most probable outputs; `measure` compares labels with that, and `chosen_by`
    is the metric that counts on the validation part: the `best` of it. `fits` says whether
    labels can be learnt with so many frames; `sampling` is of batches: of like length in an order
    of chance, or utterances drawn with the same chance for each class.
    """

    head: Head
    loss: Callable[[Array, FeatureBatch], Array]
    read: Callable[[np.ndarray], Any]
    measure: Callable[[Sequence[np.ndarray], Sequence[Any]], Mapping[str, float]]
    chosen_by: str
    best: Literal["least", "most"] = "least"
    fits: Callable[[np.ndarray, int], bool] = lambda labels, frames: True
    sampling: Literal["shuffled", "balanced"] = "shuffled"

    def cost(self, metrics: Mapping[str, float]) -> float:
        """What is to be small."""
        sign = 1 if self.best == "least" else -1
        return sign * float(metrics[self.chosen_by])


class Learnt(NamedTuple):
    """Metrics of the test part, and how they came about.

    `learning_rate` is the one chosen, after `step` updates; `valid` the best of each learning
    rate, of the metric that counts; `weights` [L] of the layers; `left_out` training utterances
    that have more labels than frames can say; `params` of the head.
    """

    metrics: Mapping[str, float]
    learning_rate: float
    step: int
    valid: Mapping[float, float]
    weights: np.ndarray
    left_out: int
    params: Params


def rungs(lengths: Sequence[int]) -> list[int]:
    """The lengths that utterances are padded to: each for an equal share of all frames."""
    ordered = np.sort(np.asarray(lengths))
    frames = np.cumsum(ordered)
    shares = frames[-1] * np.arange(1, _MAX_LENGTHS + 1) / _MAX_LENGTHS
    return sorted({int(ordered[i]) for i in np.searchsorted(frames, shares)})


def plan(lengths: Mapping[str, int], ids: Sequence[str], *, batch_size: int) -> list[tuple]:
    """Cuts utterances into batches of like length, for few shapes.

    Returns (ids, frames that they are padded to) of each batch, the shortest first.
    """
    if not ids:
        return []
    ordered = sorted(ids, key=lambda id_: (lengths[id_], id_))
    batches, low = [], -1
    for rung in rungs([lengths[id_] for id_ in ids]):
        group = [id_ for id_ in ordered if low < lengths[id_] <= rung]
        cuts = range(0, len(group), batch_size)
        batches += [(tuple(group[cut : cut + batch_size]), rung) for cut in cuts]
        low = rung
    return batches


def fill(
    part: FeaturePart, ids: Sequence[str], frames: int, *, batch_size: int, num_labels: int = 0
) -> FeatureBatch:
    """A batch of the full size, labels padded to `num_labels` (0: without them).

    Rows that are missing repeat the first, without weight.
    """
    missing = batch_size - len(ids)
    lengths = part.features.lengths
    labels = np.zeros((batch_size, num_labels), np.int32)
    for row, id_ in enumerate(ids if num_labels else ()):
        labels[row, : len(part.labels[id_])] = part.labels[id_]
    pad = lambda numbers: np.pad(np.asarray(numbers, np.int32), (0, missing))
    return FeatureBatch(
        tuple(ids),
        part.features.batch([*ids, *[ids[0]] * missing], frames=frames),
        pad([lengths[id_] for id_ in ids]),
        labels,
        pad([len(part.labels[id_]) for id_ in ids]),
    )


def mean_of_rows(each: Array, batch: FeatureBatch) -> Array:
    """Mean of [B] over the rows that are utterances."""
    real = batch.lengths > 0
    return jnp.where(real, each, 0.0).sum() / real.sum()


def make_update(task: HeadTask, settings: HeadSettings) -> tuple[Callable, Callable]:
    """Functions that make the optimizer's state, and an update, of all learning rates at once.

    Parameters and state have R as first axis; an update is also given its number.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.scale_by_adam())
    rates = jnp.asarray(settings.learning_rates)

    def loss(params: Params, batch: FeatureBatch, key: Array) -> Array:
        keys = dict(zip(("augment", "dropout"), jax.random.split(key), strict=True))
        outputs = task.head.apply(params, batch.features, batch.lengths, learning=True, rngs=keys)
        return task.loss(outputs, batch)

    def one(params: Params, state: Any, rate: Array, batch: FeatureBatch, key: Array) -> tuple:
        gradient = jax.grad(loss)(params, batch, key)
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

    several = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None, None)))
    key = jax.random.key(settings.seed)

    def update(params: Params, state: Any, batch: FeatureBatch, step: int) -> tuple[Params, Any]:
        own = jax.random.fold_in(key, step)
        return several(params, state, rates, batch._replace(ids=()), own)

    return jax.vmap(optimizer.init), update


def make_predict(task: HeadTask) -> Callable[[Params, FeatureBatch], Array]:
    """A function that computes the outputs as `HeadTask.read` takes them, of every learning rate.

    Those of frames are [R, B, T], the most probable; those of utterances the logits [R, B, C].
    """

    def one(params: Params, features: Array, lengths: Array) -> Array:
        logits = task.head.apply(params, features, lengths)
        return logits if task.head.pooled else logits.argmax(axis=-1)

    several = jax.jit(jax.vmap(one, in_axes=(0, None, None)))
    return lambda params, batch: several(params, batch.features, batch.lengths)


def _outputs(
    program: Callable, params: Params, part: FeaturePart, batch_size: int
) -> Iterator[tuple[FeatureBatch, np.ndarray]]:
    """Batches of a part, and what a program (params, batch) makes of each."""
    for ids, frames in plan(part.features.lengths, list(part.labels), batch_size=batch_size):
        batch = fill(part, ids, frames, batch_size=batch_size)
        yield batch, np.asarray(program(params, batch))


def log_probabilities(
    task: HeadTask, params: Params, part: FeaturePart, *, batch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(id, [T, C] float32) of every utterance, of the one learning rate that was chosen."""
    one = lambda *arrays: jax.nn.log_softmax(task.head.apply(*arrays))
    several = jax.jit(jax.vmap(one, in_axes=(0, None, None)))
    program = lambda params, batch: several(params, batch.features, batch.lengths)
    for batch, (of_rate,) in _outputs(program, params, part, batch_size):
        for row, id_ in enumerate(batch.ids):
            yield id_, of_rate[row, : batch.lengths[row]]


def decode(
    task: HeadTask, predict: Callable, params: Params, part: FeaturePart, *, batch_size: int
) -> list[dict[str, Any]]:
    """What is read of every utterance, with the parameters of each learning rate."""
    texts: list[dict[str, Any]] = [{} for _ in range(len(jax.tree.leaves(params)[0]))]
    for batch, outputs in _outputs(predict, params, part, batch_size):
        for of_rate, rows in zip(texts, outputs, strict=True):
            for row, id_ in enumerate(batch.ids):
                own = rows[row]
                of_rate[id_] = task.read(own if task.head.pooled else own[: batch.lengths[row]])
    return texts


def measure(
    task: HeadTask, predict: Callable, params: Params, part: FeaturePart, *, batch_size: int
) -> list[Mapping[str, float]]:
    """Metrics of a part, with the parameters of each learning rate."""
    references = list(part.labels.values())
    decoded = decode(task, predict, params, part, batch_size=batch_size)
    return [task.measure(references, [texts[id_] for id_ in part.labels]) for texts in decoded]


def _shuffled(
    train: FeaturePart, ids: Sequence[str], settings: HeadSettings
) -> Iterator[FeatureBatch]:
    """Endless: all batches in an order of chance, again and again."""
    generator = np.random.default_rng(settings.seed)
    planned = plan(train.features.lengths, ids, batch_size=settings.batch_size)
    most: dict[int, int] = collections.Counter()  # labels of a row, for each length
    for some, frames in planned:
        most[frames] = max(most[frames], max(len(train.labels[id_]) for id_ in some))
    while True:
        for i in generator.permutation(len(planned)):
            some, frames = planned[i]
            size = {"batch_size": settings.batch_size, "num_labels": most[frames]}
            yield fill(train, some, frames, **size)


def _balanced(
    train: FeaturePart, ids: Sequence[str], settings: HeadSettings
) -> Iterator[FeatureBatch]:
    """Endless: utterances drawn one by one, those of every class (its first label) as often."""
    generator = np.random.default_rng(settings.seed)
    lengths = train.features.lengths
    known = rungs([lengths[id_] for id_ in ids])
    of_class: dict[int, list[str]] = collections.defaultdict(list)
    for id_ in ids:
        of_class[int(train.labels[id_][0])].append(id_)
    classes = sorted(of_class)
    while True:
        drawn = [
            of_class[classes[i]] for i in generator.integers(0, len(classes), settings.batch_size)
        ]
        some = [group[generator.integers(0, len(group))] for group in drawn]
        frames = next(rung for rung in known if rung >= max(lengths[id_] for id_ in some))
        yield fill(train, some, frames, batch_size=settings.batch_size, num_labels=1)


def _start(task: HeadTask, batch: FeatureBatch, settings: HeadSettings) -> Params:
    """The same parameters for every learning rate."""
    shape = (1, 1, *batch.features.shape[2:])
    key = jax.random.key(settings.seed)
    one = task.head.init(key, jnp.zeros(shape), jnp.ones(1, jnp.int32))
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(settings.learning_rates)), one)


class HeadPrograms(NamedTuple):
    """What is compiled of a task, for every shape once: of `make_update` and `make_predict`."""

    init: Callable
    update: Callable
    predict: Callable


def make_programs(task: HeadTask, settings: HeadSettings) -> HeadPrograms:
    """The programs of a task; features of the same shapes can share them."""
    return HeadPrograms(*make_update(task, settings), make_predict(task))


class _Best(NamedTuple):
    """Of one learning rate: what it cost on the validation part, when, and the parameters."""

    cost: float = np.inf
    metric: float = np.nan
    step: int = 0
    params: Params = None


def learn(
    task: HeadTask,
    train: FeaturePart,
    valid: FeaturePart,
    test: FeaturePart,
    *,
    settings: HeadSettings,
    programs: HeadPrograms | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Learnt:
    """Trains for every learning rate, chooses rate and step on `valid`, tests on `test`, once.

    `programs` are those of `make_programs` with the same task and settings; None makes them.
    `progress` is called with 1 after each step. Raises LabelError where a part is empty, or nothing
    of the training part can be learnt.
    """
    lengths = train.features.lengths
    ids = [id_ for id_, labels in train.labels.items() if task.fits(labels, lengths[id_])]
    if not ids:
        raise LabelError("no training utterance has labels, and as many frames as they need")
    sample = _balanced if task.sampling == "balanced" else _shuffled
    batches = sample(train, ids, settings)
    batch = next(batches)
    rates = settings.learning_rates
    params = _start(task, batch, settings)
    init_optimizer, update, predict = programs or make_programs(task, settings)
    state = init_optimizer(params)
    best = [_Best()] * len(rates)
    for step in range(1, settings.num_steps + 1):
        params, state = update(params, state, batch, step)
        if step < settings.num_steps:
            batch = next(batches)  # while the device computes
        progress(1)
        if step % settings.eval_steps == 0 or step == settings.num_steps:
            each = measure(task, predict, params, valid, batch_size=settings.batch_size)
            best = [_better(task, best[i], of, step, params, i) for i, of in enumerate(each)]
    chosen = min(range(len(rates)), key=lambda i: best[i].cost)
    params = best[chosen].params
    (metrics,) = measure(task, predict, params, test, batch_size=settings.batch_size)
    return Learnt(
        metrics,
        learning_rate=rates[chosen],
        step=best[chosen].step,
        valid={rate: of_rate.metric for rate, of_rate in zip(rates, best, strict=True)},
        weights=np.asarray(jax.nn.softmax(params["params"]["weights"][0])),
        left_out=len(train.labels) - len(ids),
        params=params,
    )


def _better(
    task: HeadTask, before: _Best, metrics: Mapping[str, float], step: int, params: Params, i: int
) -> _Best:
    """The better of what was, and of the parameters of learning rate i as they are now."""
    cost = task.cost(metrics)
    if not cost < before.cost:
        return before
    own = jax.tree.map(lambda leaf: leaf[i : i + 1], params)
    return _Best(cost, float(metrics[task.chosen_by]), step, own)
