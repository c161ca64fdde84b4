"""MFCC in the place of the convolutions: their values, and the network behind them."""

from pathlib import Path

import jax
import librosa
import numpy as np
import pytest
import scipy.fft
import soundfile

from dinosr_jax.config import parse
from dinosr_jax.inference.forward.batched import Options
from dinosr_jax.inference.pretrained import load
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import InteropError
from dinosr_jax.model.feature_encoder import FeatureEncoder, num_frames
from dinosr_jax.model.mfcc import mfcc, normalise
from dinosr_jax.recipes import published_recipe
from tests.recogniser_runs import recogniser_config, write_recogniser
from tests.training.test_step import train

SHARD = Path(__file__).parents[2] / "data/embedded/asterisk_fr.ogg"
LAYERS = ((13, 400, 320),)
CHANGES = {"model.front_end": "mfcc", "model.conv_layers": LAYERS}

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def speech():
    wave = soundfile.read(SHARD, start=16_000, frames=16_000 * 20, dtype="float32")[0]
    return (wave - wave.mean()) / wave.std()


@pytest.mark.parametrize(("coefficients", "window", "hop"), [(13, 400, 320), (20, 512, 160)])
def test_equal_to_librosa(speech, coefficients, window, hop):
    sizes = {"n_fft": window, "hop_length": hop, "center": False}
    bands = librosa.feature.melspectrogram(
        y=speech.astype(np.float64), sr=16_000, n_mels=40, htk=True, norm=None, **sizes
    )
    cepstra = scipy.fft.dct(np.log(bands + 1e-2), axis=0, norm="ortho")[:coefficients]
    found = mfcc(speech[None], num_coefficients=coefficients, window=window, hop=hop)[0]
    np.testing.assert_allclose(found, cepstra.T, rtol=0, atol=1e-4)


def test_normalised_over_real_frames(speech):
    found = np.asarray(mfcc(speech[None, :40_000], num_coefficients=13, window=400, hop=320))
    expected = (found - found.mean(axis=1)) / found.std(axis=1)
    np.testing.assert_allclose(normalise(found), expected, atol=1e-4)
    padded = np.pad(found, ((0, 0), (0, 9), (0, 0)), constant_values=7.0)
    mask = np.arange(padded.shape[1])[None] >= found.shape[1]
    filled = normalise(padded, mask)
    np.testing.assert_allclose(filled[:, : found.shape[1]], expected, atol=1e-4)
    assert not filled[:, found.shape[1] :].any()
    assert np.isfinite(normalise(np.zeros((1, 5, 13), np.float32))).all()


def test_frames_and_silence(speech):
    encoder = FeatureEncoder(LAYERS, front_end="mfcc")
    for samples in (400, 719, 720, 5000):
        assert encoder.init(jax.random.key(0), speech[None, :samples]) == {}
        found = encoder.apply({}, speech[None, :samples])
        assert found.shape == (1, num_frames(samples, LAYERS), 13)
    assert np.isfinite(encoder.apply({}, np.zeros((1, 4000), np.float32))).all()
    half = FeatureEncoder(LAYERS, jax.numpy.bfloat16, "mfcc").apply({}, speech[None])
    np.testing.assert_array_equal(half, encoder.apply({}, speech[None]))  # rounded later


@pytest.mark.slow
def test_an_update_on_eight_devices_is_that_of_one():
    changes = {name.replace(".", "__"): value for name, value in CHANGES.items()}
    changes["teacher__scope"] = "full"
    eight = train(data=2, fsdp=2, tensor=2, updates=2, **changes)
    one = train(start=eight.states[0], updates=2, **changes)
    assert "feature_encoder" not in one.states[0].params
    assert sorted(one.states[0].teacher_params) == ["encoder", "feature_projection"]
    for a, b in zip(eight.metrics, one.metrics, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
        assert np.isfinite(a["gradient_norm"]) and a["gradient_norm"] > 0


@pytest.mark.slow
def test_a_run_is_read_and_not_exported(tmp_path, speech):
    write_recogniser(tmp_path / "run", **CHANGES)
    model = load(tmp_path / "run")
    waves = [speech, speech[:24_000], speech[40_000:99_999]]
    together = model.extract(waves, layer="all")
    for wave, found in zip(waves, together, strict=True):
        alone = model.extract(wave, layer="all")
        assert found[2].shape == (num_frames(len(wave), LAYERS), 32)
        for layer in alone:
            np.testing.assert_allclose(found[layer], alone[layer], rtol=0, atol=1e-5)
    options = Options(chunk_seconds=8.0, overlap_seconds=2.0)
    assert model.extract(speech, layer=1, options=options).shape == together[0][1].shape
    assert isinstance(model.transcribe(speech), str)
    for kind in ("huggingface", "fairseq"):
        with pytest.raises(InteropError, match="front_end is 'mfcc'"):
            exports.export(runs.read_any(tmp_path / "run"), tmp_path / kind, kind=kind)
        assert not (tmp_path / kind).exists()


@pytest.mark.parametrize("layers", [((41, 400, 320),), ((13, 400, 160), (8, 2, 2))])
def test_what_cannot_be(layers):
    with pytest.raises(ValueError, match="of 40 at most, window, hop"):
        recogniser_config(**CHANGES | {"model.conv_layers": layers})


def test_older_runs_have_convolutions():
    values = published_recipe().to_dict()
    del values["model"]["front_end"]
    assert parse(values).model.front_end == "conv"
