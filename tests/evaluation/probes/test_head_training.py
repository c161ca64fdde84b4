"""Heads on frozen features: several learning rates at once, batches, sampling, padding."""

import collections

import jax
import numpy as np
import pytest

from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes import head_training, phone_recognition
from dinosr_jax.evaluation.probes.examples import Example, Examples
from dinosr_jax.evaluation.probes.heads import Augment
from dinosr_jax.evaluation.superb import utterance_tasks
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording
from tests.frozen_features import SETTINGS, D, L, P, made

pytestmark = pytest.mark.usefixtures("compile_quickly")


def task_of(settings=SETTINGS):
    return phone_recognition.phones_task(P, settings=settings)


def params_of(task, batch, seed=0):
    return task.head.init(jax.random.key(seed), batch.features, batch.lengths)


def batch_of(part, frames, size):
    return head_training.fill(part, list(part.labels), frames, batch_size=size, num_labels=6)


@pytest.mark.parametrize("lstm_layers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_padding_changes_nothing(lstm_layers):
    settings = SETTINGS._replace(lstm_layers=lstm_layers, lstm_width=8)
    part, task = made(5, seed=3), task_of(settings)
    batch = batch_of(part, 20, 5)
    params = params_of(task, batch)
    loss = lambda b: task.loss(task.head.apply(params, b.features, b.lengths), b)
    longer = batch_of(part, 27, 8)  # more frames, and three rows without weight
    noise = longer.features.copy()
    for row, id_ in enumerate(longer.ids):
        noise[row, part.features.lengths[id_] :] = np.nan
    found = loss(longer._replace(features=noise))
    np.testing.assert_allclose(found, loss(batch), rtol=1e-5)
    several = jax.tree.map(lambda leaf: leaf[None], params)
    predict = head_training.make_predict(task)
    (together,) = head_training.decode(task, predict, several, part, batch_size=8)
    for id_ in list(part.labels)[:2]:
        one = head_training.FeaturePart(part.features, {id_: part.labels[id_]})
        (single,) = head_training.decode(task, predict, several, one, batch_size=1)
        np.testing.assert_array_equal(single[id_], together[id_])


def test_learning_rates_do_not_disturb_each_other():
    part, task = made(8, seed=4), task_of()
    batch = batch_of(part, 20, 8)
    start = params_of(task, batch)
    rates = (1e-1, 1e-3)
    init, update = head_training.make_update(task, SETTINGS._replace(learning_rates=rates))
    both = jax.tree.map(lambda leaf: np.stack([leaf] * 2), start)
    together, _ = update(both, init(both), batch, 1)
    for i, rate in enumerate(rates):
        init, update = head_training.make_update(task, SETTINGS._replace(learning_rates=(rate,)))
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], start)
        alone, _ = update(one, init(one), batch, 1)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[0], b[i], atol=1e-5), alone, together
        )
        # the first update of Adam is as large as the learning rate
        bias = lambda params: np.asarray(params["params"]["classify"]["bias"])
        moved = np.abs(bias(alone)[0] - bias(start)).max()
        np.testing.assert_allclose(moved, rate, rtol=1e-2)


def test_gradients_are_clipped():
    """Adam forgets a constant factor but not one of a single step: two steps, the first huge."""
    part, task = made(8, seed=4), task_of()
    batch = batch_of(part, 20, 8)
    start = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params_of(task, batch))
    louder = batch._replace(features=batch.features * 1e3)

    def after(clip_norm):
        settings = SETTINGS._replace(learning_rates=(1e-4,), clip_norm=clip_norm)
        init, update = head_training.make_update(task, settings)
        params, state = update(start, init(start), louder, 1)
        (_, adam) = update(params, state, batch, 2)[1]
        return adam.nu["params"]["classify"]["kernel"].max()

    assert after(1.0) < 2e-3 < after(1e9)


def test_batches_have_few_lengths_and_every_utterance():
    lengths = {f"{i}": int(n) for i, n in enumerate(np.random.default_rng(0).integers(5, 99, 70))}
    planned = head_training.plan(lengths, list(lengths), batch_size=8)
    assert sorted(id_ for ids, _ in planned for id_ in ids) == sorted(lengths)
    assert len({frames for _, frames in planned}) <= 5
    for ids, frames in planned:
        assert len(ids) <= 8 and max(lengths[id_] for id_ in ids) <= frames
    assert head_training.plan(lengths, ["3"], batch_size=8) == [(("3",), lengths["3"])]
    assert head_training.plan(lengths, [], batch_size=8) == []


def test_classes_are_drawn_alike():
    rng = np.random.default_rng(0)
    sizes = {0: 200, 1: 20, 2: 2}
    labels = {f"{c}-{i}": np.array([c]) for c, n in sizes.items() for i in range(n)}
    frames = {id_: int(n) for id_, n in zip(labels, rng.integers(5, 50, 222), strict=True)}
    part = head_training.FeaturePart(
        Features((0,), {id_: np.zeros((1, n, 1)) for id_, n in frames.items()}), labels
    )
    batches = head_training._balanced(part, list(labels), SETTINGS._replace(batch_size=32))
    drawn = [next(batches) for _ in range(100)]
    counts = collections.Counter(int(label) for b in drawn for label in b.labels[:, 0])
    # 3200 draws of probability 1/3: 1067, with a standard deviation of 27
    assert all(abs(counts[c] - 3200 / 3) < 135 for c in sizes)
    assert {id_ for b in drawn for id_ in b.ids} >= {"2-0", "2-1"}
    assert len({b.features.shape[1] for b in drawn}) <= 5
    for batch in drawn:
        assert batch.lengths.tolist() == [frames[id_] for id_ in batch.ids]
        assert batch.labels[:, 0].tolist() == [int(labels[id_][0]) for id_ in batch.ids]


def test_an_utterance_is_told_by_the_mean_of_its_frames():
    """The class is a direction in layer 1, in frames of noise; K = 1 answer."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((3, D))

    def examples(number):
        arrays = 0.5 * rng.standard_normal((number, L, 9, D)).astype(np.float32)
        arrays[:, 1] += 0.5 * directions[np.arange(number) % 3, None]
        recordings = [Recording(f"{number}-{i}", "", arrays[i]) for i in range(number)]
        return tuple(Example(r, (f"class {i % 3}",)) for i, r in enumerate(recordings))

    settings = SETTINGS._replace(num_steps=90, eval_steps=30, learning_rates=(1e-6, 1e-2))
    parts = Examples(examples(60), examples(12), examples(30), (), "")
    features = Features((0, 1, 2), {e.recording.id: e.recording.source for e in parts.everyone()})
    task, labels = utterance_tasks.classify(parts, settings=settings, balanced=True)
    made = [
        head_training.FeaturePart(features, {e.recording.id: labels[e.recording.id] for e in some})
        for some in parts[:3]
    ]
    found = head_training.learn(task, *made, settings=settings)
    assert found.metrics["accuracy"] >= 0.9 and found.learning_rate == 1e-2
    assert found.valid[1e-2] > found.valid[1e-6] and found.weights.argmax() == 1


@pytest.mark.slow
def test_the_same_seed_learns_the_same_with_dropout_and_augmentation():
    settings = SETTINGS._replace(
        num_steps=3, eval_steps=3, learning_rates=(1e-2,), lstm_layers=1, lstm_width=8,
        dropout=0.5, augment=Augment(2, 1, 3, 1, 3),
    )  # fmt: skip
    train, valid = made(12, seed=1, frames=20), made(4, seed=2, frames=20)
    leaves = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    found = []
    for own, times in ((settings, 2), (settings._replace(dropout=0.0), 1)):
        how = {"settings": own, "programs": head_training.make_programs(task_of(own), own)}
        for _ in range(times):
            learnt = head_training.learn(task_of(own), train, valid, valid, **how)
            found.append(leaves(learnt.params["params"]["lstm_0"]))
    first, again, dry = found
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - dry).max() > 1e-3


def test_nothing_to_learn_is_an_error():
    part = made(3, seed=1)
    empty = part._replace(labels={id_: np.array([], int) for id_ in part.labels})
    with pytest.raises(LabelError, match="no training utterance"):
        head_training.learn(task_of(), empty, part, part, settings=SETTINGS)
    assert (L, D) == (3, 12)
