"""Frame classifiers: they find the phone where it is, and nothing where it is not."""

import jax
import numpy as np
import pytest

from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes import frame_classifier
from dinosr_jax.evaluation.utterances import LabelError

pytestmark = pytest.mark.usefixtures("compile_quickly")
P, L, D = 5, 4, 16


def made(n, *, informative, seed, scale=1.0):
    """Noise in all layers; in the informative one the phone, as a direction of its own."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((P, D))
    phones = rng.integers(0, P, n).astype(np.int32)
    features = rng.standard_normal((n, L, D))
    features[:, informative] = 3 * directions[phones] + 0.3 * features[:, informative]
    return frames_of((scale * features).astype(np.float32), phones)


def frames_of(features, phones):
    """Frames [n, L, D] as those of two utterances."""
    half = len(phones) // 2
    arrays = {"a": features[:half].swapaxes(0, 1), "b": features[half:].swapaxes(0, 1)}
    labels = {"a": phones[:half].tolist(), "b": phones[half:].tolist()}
    layers = tuple(range(features.shape[1]))
    return frame_classifier.gather(Features(layers, arrays), labels, phones=range(P))


def changed(frames, change):
    """With other arrays."""
    arrays = {id_: change(array) for id_, array in frames.features.arrays.items()}
    return frames._replace(features=Features(frames.features.layers, arrays))


@pytest.mark.parametrize(("informative", "scale"), [(2, 1.0), (0, 1e-3), (3, 300.0)])
def test_the_layer_that_knows_the_phone_is_found(informative, scale):
    settings = frame_classifier.ClassifierSettings(num_steps=250, batch_frames=128)
    train, test = (made(n, informative=informative, seed=n, scale=scale) for n in (2000, 777))
    found = frame_classifier.probe(train, test, num_phones=P, settings=settings)
    others = np.delete(found.of_layers, informative)
    assert found.of_layers[informative] > 0.99
    assert others.max() < 0.3 and others.min() > 0.1  # chance is 0.2
    assert found.weighted > 0.99
    assert found.weights.argmax() == informative and found.weights[informative] > 0.5
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
    assert 0.15 < found.most_frequent < 0.3


def test_half_precision_and_the_last_block_of_test_frames(monkeypatch):
    settings = frame_classifier.ClassifierSettings(num_steps=100, batch_frames=64)
    train, test = (made(n, informative=1, seed=n) for n in (500, 130))
    whole = frame_classifier.probe(train, test, num_phones=P, settings=settings)
    monkeypatch.setattr(frame_classifier, "_TEST_FRAMES", 50)
    blocks = frame_classifier.probe(train, test, num_phones=P, settings=settings)
    np.testing.assert_array_equal(whole.of_layers, blocks.of_layers)
    guess = frame_classifier.init(L, D, P)  # always phone 0, of padding too
    right = frame_classifier._right(guess, test, frame_classifier.Scale.of(train))
    assert right.tolist() == [np.sum(test.phones == 0)] * (L + 1)
    half = [changed(some, lambda x: x.astype(np.float16)) for some in (train, test)]
    found = frame_classifier.probe(*half, num_phones=P, settings=settings)
    np.testing.assert_allclose(found.of_layers, whole.of_layers, atol=0.03)


def test_layers_do_not_disturb_each_other():
    """Trained at once or alone, a layer's classifier is the same."""
    train, test = (made(n, informative=1, seed=n) for n in (400, 100))
    alone = [changed(some, lambda x: x[2:3]) for some in (train, test)]
    settings = frame_classifier.ClassifierSettings(num_steps=60, batch_frames=64)
    together = frame_classifier.probe(train, test, num_phones=P, settings=settings)
    np.testing.assert_allclose(
        frame_classifier.probe(*alone, num_phones=P, settings=settings).of_layers,
        together.of_layers[2:3],
    )


def test_the_weighted_sum_takes_layers_as_they_are():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, L, D)).astype(np.float32) * np.arange(1, L + 1)[:, None]
    scale = frame_classifier.Scale.of(frames_of(x, np.zeros(7, int)))
    params = frame_classifier.init(L, D, P)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        name: np.asarray(jax.random.normal(key, params[name].shape))
        for name, key in zip(params, keys, strict=True)
    }
    found = np.asarray(frame_classifier.logits(params, x, scale))
    share = np.exp(params["weights"]) / np.exp(params["weights"]).sum()
    summed = (x * share[None, :, None]).sum(axis=1) / np.sqrt(np.mean(x**2))
    np.testing.assert_allclose(
        found[-1], summed @ params["kernel"][-1] + params["bias"][-1], rtol=2e-4, atol=2e-4
    )
    layer = (x[:, 1] - x[:, 1].mean(0)) / x[:, 1].std(0)
    np.testing.assert_allclose(
        found[1], layer @ params["kernel"][1] + params["bias"][1], rtol=1e-3, atol=1e-3
    )


def test_frames_of_utterances():
    arrays = {id_: np.full((L, t, D), t, np.float32) for id_, t in (("a", 2), ("b", 3), ("c", 1))}
    labels = {"b": np.array(["x", "y", "z"]), "a": np.array(["y", "y"]), "d": np.array(["x"])}
    found = frame_classifier.gather(Features((0, 1, 2, 3), arrays), labels, phones=["x", "y"])
    whole = found.take(np.arange(4))
    assert whole.shape == (4, L, D)  # b without its z, a; d has no features
    assert whole[:, 0, 0].tolist() == [3, 3, 2, 2]
    assert found.take(np.array([3, 0, 2]))[:, 0, 0].tolist() == [2, 3, 2]
    assert [piece.shape for piece in found.pieces()] == [(L, 2, D)] * 2
    assert found.phones.tolist() == [0, 1, 1, 1]
    with pytest.raises(LabelError, match="no frame has a phone"):
        frame_classifier.gather(Features((0,), arrays), {"a": np.array(["q", "q"])}, phones=["x"])
