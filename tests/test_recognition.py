"""Phone recognition: learnt where it can be, and errors counted as edit distances."""

import itertools

import jax
import numpy as np
import pytest

from dinosr_jax.data.phones import Phone
from dinosr_jax.evaluation import recognition
from dinosr_jax.evaluation.utterances import LabelError

pytestmark = pytest.mark.usefixtures("compile_quickly")
P, L, D = 4, 3, 12
SETTINGS = recognition.Settings(
    num_steps=120, eval_steps=40, batch_size=8, project_width=16, learning_rates=(1e-5, 1e-2, 1.0)
)


def made(count, *, seed):
    """Sequences of phones, each a direction in layer 1 for some frames; noise elsewhere."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((P + 1, D))
    arrays, labels = {}, {}
    for i in range(count):
        sequence = rng.integers(1, P + 1, rng.integers(2, 6))
        frames = [n for phone in sequence for n in [phone] * rng.integers(2, 4) + [0]]
        array = 0.3 * rng.standard_normal((L, len(frames), D))
        array[1] += 3 * directions[frames]
        arrays[f"{seed}-{i}"], labels[f"{seed}-{i}"] = array.astype(np.float32), sequence
    return recognition.Part(recognition.Held(arrays), labels)


def distance(a, b):
    """Levenshtein's, by the table."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        table[i + 1, j + 1] = min(
            table[i, j] + (a[i] != b[j]), table[i, j + 1] + 1, table[i + 1, j] + 1
        )
    return table[-1, -1]


def test_what_can_be_learnt_is_learnt():
    train, valid, test = (made(n, seed=n) for n in (40, 11, 13))
    train.labels["40-0"] = np.array([1] * 99)  # more phones than frames
    steps = []
    found = recognition.recognise(
        train, valid, test, num_phones=P, settings=SETTINGS, progress=steps.append
    )
    assert found.per < 0.05
    assert found.learning_rate == 1e-2 and found.step in (40, 80, 120)
    assert found.valid_per[1e-2] == min(found.valid_per.values()) < 0.05 < found.valid_per[1e-5]
    assert found.weights.argmax() == 1 and found.weights[1] > 0.4
    assert found.left_out == 1 and sum(steps) == SETTINGS.num_steps


def test_the_error_rate_is_that_of_edit_distances():
    rng = np.random.default_rng(0)
    draw = lambda: [rng.integers(0, 3, rng.integers(0, 9)).tolist() for _ in range(50)]
    references, hypotheses = draw(), draw()
    pairs = zip(references, hypotheses, strict=True)
    total = sum(distance(a, b) for a, b in pairs)
    expected = total / sum(map(len, references))
    assert recognition.error_rate(references, hypotheses) == pytest.approx(expected, abs=1e-12)
    texts = recognition.error_rate([["AA", "B"]], [["AA", "AA", "B"]])
    assert texts == 0.5  # labels are compared as wholes
    with pytest.raises(LabelError, match="hold no phone"):
        recognition.error_rate([[]], [[1]])


def test_repetitions_and_blanks():
    cases = {(0, 1, 1, 0, 1, 2, 2): [1, 1, 2], (0, 0): [], (3,): [3], (): []}
    for path, expected in cases.items():
        assert recognition.best_path(np.array(path, int)).tolist() == expected
    assert recognition.frames_needed(np.array([1, 1, 2, 2, 2])) == 8
    assert recognition.frames_needed(np.array([], int)) == 0


def test_silence_is_no_phone():
    phones = [Phone(i, i + 1, label) for i, label in enumerate(["SIL", "B", "B", "SIL", "AA"])]
    said = {"x": recognition.spoken(phones)}
    assert said["x"] == ["B", "B", "AA"]
    assert recognition.encode(said, phones=["AA", "B"])["x"].tolist() == [2, 2, 1]
    with pytest.raises(LabelError, match="x: found the phone 'B'"):
        recognition.encode(said, phones=["AA"])


def batch_of(part, frames, size):
    settings = SETTINGS._replace(batch_size=size)
    return recognition._fill(part, list(part.labels), frames, settings, num_labels=6)


def params_of(seed=0):
    shape = {"num_layers": L, "width": D, "project_width": 16, "num_phones": P}
    return recognition.init(jax.random.key(seed), **shape)


def test_the_loss_is_that_of_all_paths():
    """CTC by enumeration: the sum over all paths that collapse to the labels."""
    rng = np.random.default_rng(1)
    arrays = {"a": rng.standard_normal((L, 4, D)), "b": rng.standard_normal((L, 3, D))}
    part = recognition.Part(recognition.Held(arrays), {"a": np.array([1, 1]), "b": np.array([2])})
    params, expected = params_of(), []
    for id_, labels in part.labels.items():
        x = np.asarray(recognition.logits(params, part.source.batch([id_], frames=5)))[0]
        shares = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        frames = arrays[id_].shape[1]
        total = sum(
            np.prod([shares[t, code] for t, code in enumerate(path)])
            for path in itertools.product(range(P + 1), repeat=frames)
            if recognition.best_path(np.array(path)).tolist() == labels.tolist()
        )
        expected.append(-np.log(total) / len(labels))
    found = recognition.loss(params, batch_of(part, 5, 2)._replace(ids=()))
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)


def test_padding_changes_nothing():
    part, params = made(5, seed=3), params_of()
    alone = recognition.loss(params, batch_of(part, 20, 5)._replace(ids=()))
    longer = batch_of(part, 27, 8)  # more frames, and three rows without weight
    noise = longer.features.copy()
    for row, id_ in enumerate(longer.ids):
        noise[row, part.source.lengths()[id_] :] = 1e3
    found = recognition.loss(params, longer._replace(ids=(), features=noise))
    np.testing.assert_allclose(found, alone, rtol=1e-5)
    several = jax.tree.map(lambda leaf: leaf[None], params)
    (together,) = recognition.decode(several, part, settings=SETTINGS)
    for id_ in part.labels:
        one = recognition.Part(part.source, {id_: part.labels[id_]})
        (single,) = recognition.decode(several, one, settings=SETTINGS._replace(batch_size=1))
        np.testing.assert_array_equal(single[id_], together[id_])


def test_learning_rates_do_not_disturb_each_other():
    part = made(8, seed=4)
    batch, start = batch_of(part, 20, 8), params_of()
    rates = (1e-1, 1e-3)
    init, update = recognition.make_update(SETTINGS._replace(learning_rates=rates))
    both = jax.tree.map(lambda leaf: np.stack([leaf] * 2), start)
    together, _ = update(both, init(both), batch)
    for i, rate in enumerate(rates):
        init, update = recognition.make_update(SETTINGS._replace(learning_rates=(rate,)))
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], start)
        alone, _ = update(one, init(one), batch)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[0], b[i], atol=1e-5), alone, together
        )
        # the first update of Adam is as large as the learning rate
        moved = np.abs(alone["classify"]["bias"][0] - start["classify"]["bias"]).max()
        np.testing.assert_allclose(moved, rate, rtol=1e-2)


def test_batches_have_few_lengths_and_every_utterance():
    lengths = {f"{i}": int(n) for i, n in enumerate(np.random.default_rng(0).integers(5, 99, 70))}
    planned = recognition.plan(lengths, list(lengths), batch_size=8)
    assert sorted(id_ for ids, _ in planned for id_ in ids) == sorted(lengths)
    assert len({frames for _, frames in planned}) <= 5
    for ids, frames in planned:
        assert len(ids) <= 8 and max(lengths[id_] for id_ in ids) <= frames
    assert recognition.plan(lengths, ["3"], batch_size=8) == [(("3",), lengths["3"])]
    assert recognition.plan(lengths, [], batch_size=8) == []
