"""Features and units of a trained network, in Python and by command."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

import dinosr_jax
from dinosr_jax.cli import cli
from dinosr_jax.data import audio
from dinosr_jax.evaluation.features.compute import untrained
from dinosr_jax.inference.features.writer import extract_files
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.forward.batched import Ladder
from dinosr_jax.inference.pretrained import Pretrained, load
from dinosr_jax.inference.recordings import Recording, open_inputs, refuse
from dinosr_jax.inference.selection import Selection
from dinosr_jax.interop import runs
from dinosr_jax.interop.formats import Imported, InteropError
from dinosr_jax.model import attention
from dinosr_jax.training.checkpoint import CheckpointError
from dinosr_jax.training.state import make_model
from dinosr_jax.training.step import apply
from tests.odd_recordings import encoded, speech, unfinished
from tests.tiny_runs import write_run

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(tmp_path_factory, compile_quickly, compile_once) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(run, compile_quickly) -> Pretrained:
    return load(run)


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
        found = trained.extract(waveform, layer=2, tensor=tensor, model=network)
        assert found.dtype == np.float32 and found.shape == ((50_000 - 400) // 320 + 1, 32)
        expected = alone(trained, waveform, network, 2, tensor)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    student = trained.extract(waveform, layer=2, tensor="ffn", model="student")
    assert np.abs(student - found).max() > 0.01  # the teacher is another network


def test_layers_and_lengths_that_are_not_there(trained):
    noise = np.random.default_rng(0).standard_normal(16_000)
    for layer in (-1, 4):
        with pytest.raises(ValueError, match="layers 1 to 3"):
            trained.extract(noise, layer=layer)
    with pytest.raises(audio.AudioError, match="at least 400"):
        trained.extract(noise[:399], layer=1)


def test_not_a_run(trained, tmp_path, monkeypatch):
    """What is no run is left to `interop`; a stand-in takes its place here."""

    def read(path, *, choices):
        if path.suffix == ".pt":
            return Imported(trained.config, trained, 5, "spidr", ["no heads"], {})
        raise InteropError("no checkpoint of anyone")

    monkeypatch.setattr(runs, "read_checkpoint", read)
    with pytest.raises(CheckpointError, match="no checkpoint of anyone\n.* is not a run"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder; expected a run"):
        load(tmp_path / "gone")
    (tmp_path / "x.pt").touch()
    found = load(tmp_path / "x.pt")
    assert (found.step, found.source, found.notes) == (5, "spidr", ("no heads",))


def test_one_step_of_a_run(run, trained):
    found = dinosr_jax.load(run / "checkpoints" / "7")
    assert found.step == 7 and found.fingerprint == trained.fingerprint


def test_inputs(recordings, tmp_path):
    ids = [recording.id for recording in open_inputs(recordings)]
    assert ids == ["a/long", "a/stereo", "short", "text"]
    (recording,) = open_inputs(recordings / "a" / "stereo.wav")
    assert recording.id == "stereo" and len(recording.load()) == 16_000
    with pytest.raises(audio.AudioError, match="no audio file"):
        open_inputs(tmp_path)
    with pytest.raises(audio.AudioError, match="no such file"):
        open_inputs(tmp_path / "gone")


def test_commands_write_what_they_promise(run, trained, recordings, tmp_path):
    command = [sys.executable, "-m", "dinosr_jax", "extract", run, recordings]
    command += ["--layer=3", "--layer=1", f"--output={tmp_path}", "--skip-bad"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "2 left out" in done.stdout and "Trace" not in done.stderr
    listed = (tmp_path / "skipped.tsv").read_text()
    assert "short.wav\t" in listed and "text.wav\t" in listed
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy"))
    names = ("a/long.npy", "a/stereo.npy")
    assert written == [f"layer_0{layer}/{name}" for layer in (1, 3) for name in names]
    waveform = audio.load(recordings / "a" / "long.flac", name="long")
    for layer in (1, 3):
        features = np.load(tmp_path / f"layer_0{layer}" / "a" / "long.npy")
        assert features.dtype == np.float32
        np.testing.assert_allclose(features, trained.extract(waveform, layer=layer), atol=1e-5)


def test_a_wrong_layer_is_one_line(run, recordings, tmp_path):
    command = ["extract", str(run), str(recordings), "--layer=4", f"--output={tmp_path}/features"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1 and "layers 1 to 3" in done.output
    assert "Traceback" not in done.output and not (tmp_path / "features").exists()


@pytest.mark.slow
def test_neighbours_order_and_chunks_leave_features_alone(trained):
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(n) for n in (9_000, 16_000, 400)]
    together = trained.extract(waves, layer=2)
    backwards = trained.extract(waves[::-1], layer=2)[::-1]
    for wave, one, other in zip(waves, together, backwards, strict=True):
        expected = alone(trained, np.float32(wave), "student", 2, "block")
        np.testing.assert_allclose(one, expected, atol=1e-5)
        np.testing.assert_allclose(other, expected, atol=1e-5)


@pytest.mark.slow
def test_fitted_lengths_pad_less_and_leave_features_alone(trained, monkeypatch):
    prices = {"cpu": 0.3, "other": 0.3}  # as if there were more of them
    monkeypatch.setattr("dinosr_jax.inference.forward.batched._PRICE_SECONDS", prices)
    rng = np.random.default_rng(3)
    sizes = [*rng.integers(400, 30_000, 12), 399, 400, 33_000]
    recordings = [
        Recording(str(i), str(i), rng.standard_normal(n).astype(np.float32), int(n))
        for i, n in enumerate(sizes)
    ]
    options = batched.Options(batch_seconds=3.0, chunk_seconds=2.0, overlap_seconds=0.5)
    forward = batched.Forward(trained, Selection((2,), "block"), depth=2, options=options)
    found, bad, padded = {}, [], {}
    for lengths in ("fixed", "fitted"):
        how = {"on_bad": lambda recording, reason: bad.append(recording.id), "lengths": lengths}
        parts = batched.whole(batched.run(forward, recordings, **how))
        found[lengths] = {part.recording.id: part.arrays[0] for part in parts}
        padded[lengths] = [forward.ladder.rung(n) for n in sizes if 400 <= n <= 32_000]
    assert found["fixed"].keys() == found["fitted"].keys() and bad == ["12", "12"]
    for id_, array in found["fixed"].items():
        np.testing.assert_allclose(found["fitted"][id_], array, atol=1e-5)
    assert len(set(padded["fitted"])) <= len(set(padded["fixed"]))
    assert sum(padded["fitted"]) < 0.97 * sum(padded["fixed"])
    expected = alone(trained, recordings[0].source, "student", 2, "block")
    np.testing.assert_allclose(found["fitted"]["0"], expected, atol=1e-5)


def test_more_recordings_are_worth_more_lengths():
    lengths = np.random.default_rng(5).integers(16_000, 256_000, 20_000)
    how = {"shortest": 400, "longest_seconds": 600, "exact": False}
    ladders = [
        (Ladder(platform=platform, **how), lengths[:number])
        for platform, number in (("cpu", 10), ("tpu", 20_000), ("cpu", 20_000))
    ]
    used = []
    for ladder, some in ladders:
        ladder.fit(some)
        rungs = [ladder.rung(n) for n in some]
        assert all(n <= rung for n, rung in zip(some, rungs, strict=True))
        assert ladder.rung(600_000) >= 600_000  # longer than any
        used.append(len(set(rungs)))
    assert used == sorted(set(used))


def test_few_recordings_are_computed_with_few_programs(trained):
    rng = np.random.default_rng(7)
    sizes = [int(n) for n in rng.integers(8_000, 40_000, 13)]
    recordings = [
        Recording(str(i), str(i), rng.standard_normal(n).astype(np.float32), n)
        for i, n in enumerate(sizes)
    ]
    batched._compile.cache_clear()
    options = batched.Options(batch_seconds=13.0)
    programs = []
    for model in (trained, untrained(trained)):
        forward = batched.Forward(model, Selection((2,), "block"), depth=2, options=options)
        parts = batched.whole(batched.run(forward, recordings, on_bad=refuse, lengths="fitted"))
        found = {part.recording.id: part.arrays[0] for part in parts}
        assert {id_: len(x) for id_, x in found.items()} == {
            r.id: model.num_frames(r.num_samples) for r in recordings
        }
        # one length, and what does not fill a batch is computed as a whole one
        programs.append((forward._program, forward._program._cache_size()))
    assert programs[0] == programs[1] and programs[0][1] == 1


@pytest.mark.parametrize("samples", [48_000, 48_001, 50_321, 95_999])
def test_chunks_cover_every_frame_once(trained, samples):
    wave = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    options = batched.Options(chunk_seconds=2.0, overlap_seconds=1.0)
    chunked = trained.extract(wave, layer=0, options=options)
    single = trained.extract(wave, layer=0)
    # the encoder's input sees a few frames around only: chunks change nothing but rounding
    np.testing.assert_allclose(chunked, single, atol=2e-5)


@pytest.mark.parametrize("samples", [70_001, 96_000])
def test_a_long_recording_is_computed_in_pieces_exactly(trained, monkeypatch, samples):
    wave = np.random.default_rng(2).standard_normal(samples).astype(np.float32)
    options = batched.Options(num_workers=1)
    monkeypatch.setattr(batched, "_LEAST_FRAMES", 3000)
    single = trained.extract([wave, wave[:65_000]], layer=[0, 3], options=options)
    monkeypatch.setattr(attention, "_LONG", 64)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 50)
    monkeypatch.setattr(batched, "_CACHED_FRAMES", 50)
    monkeypatch.setattr(batched, "_LEAST_FRAMES", 37)
    batched._compile.cache_clear()
    pieces = trained.extract([wave, wave[:65_000]], layer=[0, 3], options=options)
    batched._compile.cache_clear()
    for one, other in zip(single, pieces, strict=True):
        for layer in (0, 3):
            np.testing.assert_allclose(other[layer], one[layer], atol=1e-5)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """Recordings of the same speech: two good ones, eight odd ones, two bad ones."""
    folder = tmp_path_factory.mktemp("odd")
    x = speech()
    files = {
        "good.flac": encoded(x, "FLAC"),
        "good.wav": encoded(x, "WAV"),
        "end.wav": encoded(x, "WAV")[:-16],
        "cut.wav": encoded(x, "WAV")[:-9_000],
        "antiphase.wav": encoded(np.stack([x, -x], 1), "WAV"),
        "gsm.wav": encoded(x, "WAV", "GSM610", 8_000),
    }
    kinds = unfinished()
    for name in ("flac", "wav 0", "gsm 0", "mp3", "killed AIFF", "killed WAV"):
        files[name + kinds[name][0]] = kinds[name][1]
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def extracted(model, inputs, output, **options):
    """What `extract_files` says and gives, and the arrays that it writes."""
    said = []
    found = extract_files(model, [inputs], output=output, say=said.append, layer=2, **options)
    return said, found, {path.stem: np.load(path) for path in output.glob("*.npy")}


@pytest.mark.parametrize("chunk_seconds", [600.0, 1.0])
def test_odd_headers_and_bad_files_do_not_end_the_others(trained, odd, tmp_path, chunk_seconds):
    options = batched.Options(chunk_seconds=chunk_seconds, overlap_seconds=chunk_seconds / 2)
    how = {"options": options, "bad": "skip"}
    said, found, arrays = extracted(trained, odd, tmp_path / "a", **how)
    assert found.written == 10 and len(arrays) == 10
    reasons = {Path(name).name: reason for name, reason in found.skipped}
    assert reasons.keys() == {"cut.wav", "antiphase.wav"}
    assert "truncated" in reasons["cut.wav"] and "cancel" in reasons["antiphase.wav"]
    assert all(reason.startswith(str(odd)) for reason in reasons.values())
    (note,) = [text for text in said if "length" in text]
    assert note.startswith("1 recordings end before") and note.endswith(f": {odd / 'end.wav'}")
    assert all(np.isfinite(array).all() for array in arrays.values())
    for name in ("flac", "wav 0", "killed AIFF", "killed WAV"):
        np.testing.assert_allclose(arrays[name], arrays["good.flac"], atol=1e-5)
    np.testing.assert_allclose(arrays["gsm 0"], arrays["gsm"], atol=1e-5)
    with pytest.raises(audio.AudioError, match=r"(cut|antiphase)\.wav: "):
        extracted(trained, odd, tmp_path / "b", options=options)


def test_what_a_decoder_raises_names_the_file(trained, odd, tmp_path, monkeypatch):
    original = soundfile.SoundFile.read

    def read(file, *args, **kwargs):
        if file.samplerate == 8_000:
            raise ValueError("array is too big")
        return original(file, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    _, found, arrays = extracted(trained, odd, tmp_path / "a", bad="skip")
    assert (
        len(arrays) == 8 and sum("array is too big" in reason for _, reason in found.skipped) == 2
    )
    with pytest.raises(audio.AudioError, match="gsm.wav: .*array is too big"):
        extracted(trained, odd / "gsm.wav", tmp_path / "b")


@pytest.fixture
def broken(trained) -> Pretrained:
    """A network that was broken after it was read: one weight is not a number."""
    params = jax.tree.map(np.array, trained.params)
    params["encoder"]["layers"]["ffn_in"]["kernel"][0, 0, 3] = np.nan
    parts = {"params": params, "teacher_params": trained.teacher_params}
    return Pretrained(trained.config, **parts, codebook=trained.codebook)


@pytest.mark.parametrize("chunk_seconds", [600.0, 1.0])
def test_features_that_are_not_finite_are_never_written(broken, odd, tmp_path, chunk_seconds):
    options = batched.Options(chunk_seconds=chunk_seconds, overlap_seconds=chunk_seconds / 2)
    message = "good.flac: the network gives features that are not finite"
    _, found, arrays = extracted(
        broken, odd / "good.flac", tmp_path / "a", options=options, bad="skip"
    )
    assert found.written == 0 and arrays == {} and message in found.skipped[0][1]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"features.json", "skipped.tsv"}
    with pytest.raises(audio.AudioError, match=message):
        extracted(broken, odd / "good.flac", tmp_path / "b", options=options)
    for source in ("head", "codebook"):
        model = Pretrained(
            broken.config,
            params=broken.params,
            teacher_params=broken.teacher_params if source == "head" else broken.params,
            codebook=broken.codebook,
        )
        with pytest.raises(audio.AudioError, match="features that are not finite"):
            model.units(speech(), layer=3, source=source, options=options)


def test_a_part_of_a_recording_that_is_not_finite_leaves_nothing(
    trained, odd, tmp_path, monkeypatch
):
    """Chunks before it are written already when a later one turns out to be bad."""
    submit, seen = batched.Forward.submit, []

    def overflow(forward, waveforms):
        arrays, finite = submit(forward, waveforms)
        seen.append(len(waveforms))
        return arrays, finite & (len(seen) != 2)

    monkeypatch.setattr(batched.Forward, "submit", overflow)
    soundfile.write(tmp_path / "long.wav", speech(160_000), 16_000)
    options = batched.Options(batch_seconds=0.01, chunk_seconds=1.0, overlap_seconds=0.5)
    how = {"options": options, "bad": "skip"}
    _, found, arrays = extracted(trained, tmp_path / "long.wav", tmp_path / "out", **how)
    assert len(seen) == 3 and found.written == 0 and arrays == {}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"features.json", "skipped.tsv"}


def test_features_beyond_half_precision_are_never_written(trained, odd, tmp_path):
    params = jax.tree.map(np.array, trained.params)
    params["encoder"]["layers"]["ffn_out"]["kernel"] *= 1e7
    parts = {"params": params, "teacher_params": trained.teacher_params}
    model = Pretrained(trained.config, **parts, codebook=trained.codebook)
    how = {"tensor": "ffn", "bad": "skip"}
    _, found, arrays = extracted(model, odd / "good.flac", tmp_path / "a", dtype="float16", **how)
    assert arrays == {} and "float16 ends at 6.55e+04: use --dtype=float32" in found.skipped[0][1]
    _, found, arrays = extracted(model, odd / "good.flac", tmp_path / "b", **how)
    assert np.isfinite(arrays["good"]).all() and np.abs(arrays["good"]).max() > 65504
