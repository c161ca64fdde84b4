"""Features and units of a trained network, in Python and by command."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import tiny

from dinosr_jax.config import parse, to_text
from dinosr_jax.data import audio
from dinosr_jax.inference.extract import Trained, extract, load_run
from dinosr_jax.inference.inputs import open_inputs
from dinosr_jax.inference.units import extract_units
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.teacher import instance_normalise
from dinosr_jax.training.checkpoint import CheckpointError, Checkpoints
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state, make_model
from dinosr_jax.training.step import apply

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a checkpoint of an untrained network, whose teacher is not its student."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.get_config()
    config.teacher.init = "reinit"
    config = parse(config)
    state = init_state(config, optimizer=make_optimizer(config))
    checkpoints = Checkpoints(folder / "checkpoints")
    data = {"fingerprint": "", "next_step": 7}
    checkpoints.save(7, state, config=config.to_dict(), data=data)
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.json").write_text(to_text(config))
    return folder


@pytest.fixture(scope="module")
def trained(run) -> Trained:
    return load_run(run)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_fr.ogg", frames=96_000)[0]
    (folder / "a").mkdir()
    soundfile.write(folder / "a" / "long.flac", waveform[:50_000], 16_000)
    soundfile.write(folder / "a" / "stereo.wav", np.stack([waveform] * 2, 1)[:44_100], 44_100)
    soundfile.write(folder / "short.wav", waveform[20_000:20_399], 16_000)
    (folder / "text.wav").write_text("no audio")
    return folder


def alone(trained, waveform, network, layer, tensor):
    """The same without padding, straight from the network."""
    params = trained.full_params(network)
    model = make_model(trained.config)
    projected = apply(model, params, jnp.asarray(audio.normalise(waveform))[None], method="project")
    layers = apply(model, params, projected, all_layers=True, method="encode")
    return np.asarray(getattr(layers, tensor)[layer - 1, 0])


def test_features_are_those_of_the_utterance_alone(trained, recordings):
    waveform = audio.load(recordings / "a" / "long.flac", name="long")
    for network, tensor in (("student", "block"), ("teacher", "ffn")):
        found = extract(trained, waveform, layer=2, tensor=tensor, network=network)
        assert found.dtype == np.float32 and found.shape == ((50_000 - 400) // 320 + 1, 32)
        expected = alone(trained, waveform, network, 2, tensor)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    student = extract(trained, waveform, layer=2, tensor="ffn", network="student")
    assert np.abs(student - found).max() > 0.01  # the teacher is another network


def test_units_are_the_nearest_codewords_of_the_teacher(trained, recordings):
    waveform = audio.load(recordings / "a" / "long.flac", name="long")
    for layer, k in ((2, 0), (3, 1)):
        z = instance_normalise(jnp.asarray(alone(trained, waveform, "teacher", layer, "ffn"))[None])
        words = np.asarray(codebooks.codewords(trained.codebook))[k]
        distances = np.square(np.asarray(z)[0][:, None] - words).sum(-1)
        np.testing.assert_array_equal(
            extract_units(trained, waveform, layer=layer), distances.argmin(1)
        )


def test_layers_and_lengths_that_are_not_there(trained):
    noise = np.random.default_rng(0).standard_normal(16_000)
    for layer in (0, 4):
        with pytest.raises(ValueError, match="layers 1 to 3"):
            extract(trained, noise, layer=layer)
    with pytest.raises(ValueError, match="layers 2 to 3 have one"):
        extract_units(trained, noise, layer=1)
    with pytest.raises(audio.AudioError, match="at least 400"):
        extract(trained, noise[:399], layer=1)
    with pytest.raises(audio.AudioError, match="at most 120"):
        extract(trained, np.tile(noise, 121), layer=1)


def test_not_a_run(tmp_path):
    with pytest.raises(CheckpointError, match="is not a run"):
        load_run(tmp_path)


def test_inputs(recordings, tmp_path):
    ids = [recording.id for recording in open_inputs(recordings)]
    assert ids == ["a/long", "a/stereo", "short", "text"]
    (recording,) = open_inputs(recordings / "a" / "stereo.wav")
    assert recording.id == "stereo" and len(recording.load()) == 16_000
    with pytest.raises(audio.AudioError, match="no audio file"):
        open_inputs(tmp_path)
    with pytest.raises(audio.AudioError, match="no such file"):
        open_inputs(tmp_path / "gone")


def command(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dinosr_jax", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_commands_write_what_they_promise(run, trained, recordings, tmp_path):
    done = command("extract", run, recordings, "--layer=3", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "2 of 4 left out" in done.stdout and "text" in done.stdout and "Trace" not in done.stderr
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy"))
    assert written == ["a/long.npy", "a/stereo.npy"]
    waveform = audio.load(recordings / "a" / "long.flac", name="long")
    features = np.load(tmp_path / "a" / "long.npy")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, extract(trained, waveform, layer=3), atol=1e-5)

    output = tmp_path / "units.jsonl"
    done = command("units", run, recordings, "--layer=3", f"--output={output}")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["file"] for line in lines] == ["a/long", "a/stereo"]
    assert lines[0]["units"] == extract_units(trained, waveform, layer=3).tolist()


def test_a_wrong_layer_is_one_line(run, recordings, tmp_path):
    done = command("units", run, recordings, "--layer=1", f"--output={tmp_path / 'u.jsonl'}")
    assert done.returncode == 1 and "layer 1 has no codebook" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "u.jsonl").exists()


def test_padding_is_compiled_once_a_second(trained):
    from dinosr_jax.inference import extract as module

    before = module._forward._cache_size()
    for samples in (33_000, 40_000, 47_999):
        extract(trained, np.random.default_rng(0).standard_normal(samples), layer=1)
    assert module._forward._cache_size() <= before + 1
    assert jax.default_backend() == "cpu"
