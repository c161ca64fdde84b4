"""Phone recognition: the loss is that of CTC, and errors are counted as edit distances."""

import itertools

import jax
import numpy as np
import pytest

from dinosr_jax.data.phones.phones import Phone
from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes import head_training, phone_recognition
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.objective.ctc import best_path
from tests.frozen_features import SETTINGS, D, L, P, made

pytestmark = pytest.mark.usefixtures("compile_quickly")


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
    task = phone_recognition.phones_task(P, settings=SETTINGS)
    found = head_training.learn(task, train, valid, test, settings=SETTINGS, progress=steps.append)
    assert found.metrics["per"] < 0.05
    assert found.learning_rate == 1e-2 and found.step in (40, 80, 120)
    assert found.valid[1e-2] == min(found.valid.values()) < 0.05 < found.valid[1e-5]
    assert found.weights.argmax() == 1 and found.weights[1] > 0.4
    assert found.left_out == 1 and sum(steps) == SETTINGS.num_steps


def test_the_error_rate_is_that_of_edit_distances():
    rng = np.random.default_rng(0)
    draw = lambda: [rng.integers(0, 3, rng.integers(0, 9)).tolist() for _ in range(50)]
    references, hypotheses = draw(), draw()
    pairs = zip(references, hypotheses, strict=True)
    total = sum(distance(a, b) for a, b in pairs)
    expected = total / sum(map(len, references))
    found = phone_recognition.error_rate(references, hypotheses)
    assert found == pytest.approx(expected, abs=1e-12)
    texts = phone_recognition.error_rate([["AA", "B"]], [["AA", "AA", "B"]])
    assert texts == 0.5  # labels are compared as wholes
    with pytest.raises(LabelError, match="hold no label"):
        phone_recognition.error_rate([[]], [[1]])


def test_silence_is_no_phone():
    phones = [Phone(i, i + 1, label) for i, label in enumerate(["SIL", "B", "B", "SIL", "AA"])]
    said = {"x": phone_recognition.spoken(phones)}
    assert said["x"] == ["B", "B", "AA"]
    assert phone_recognition.encode(said, phones=["AA", "B"])["x"].tolist() == [2, 2, 1]
    with pytest.raises(LabelError, match="x: found the phone 'B'"):
        phone_recognition.encode(said, phones=["AA"])


def test_the_loss_is_that_of_all_paths():
    """CTC by enumeration: the sum over all paths that collapse to the labels."""
    rng = np.random.default_rng(1)
    arrays = {"a": rng.standard_normal((L, 4, D)), "b": rng.standard_normal((L, 3, D))}
    part = head_training.FeaturePart(
        Features((0, 1, 2), arrays), {"a": np.array([1, 1]), "b": np.array([2])}
    )
    task, expected = phone_recognition.phones_task(P, settings=SETTINGS), []
    batch = head_training.fill(part, ["a", "b"], 5, batch_size=2, num_labels=6)
    params = task.head.init(jax.random.key(0), batch.features, batch.lengths)
    logits = np.asarray(task.head.apply(params, batch.features, batch.lengths))
    for x, (id_, labels) in zip(logits, part.labels.items(), strict=True):
        shares = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        frames = arrays[id_].shape[1]
        total = sum(
            np.prod([shares[t, code] for t, code in enumerate(path)])
            for path in itertools.product(range(P + 1), repeat=frames)
            if best_path(np.array(path)).tolist() == labels.tolist()
        )
        expected.append(-np.log(total) / len(labels))
    found = phone_recognition.loss(logits, batch)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4)
