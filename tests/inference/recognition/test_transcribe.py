"""Text of recordings: lines, order, times, what is bad, and runs that were stopped."""

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.data import audio
from dinosr_jax.data.vocabulary import letters
from dinosr_jax.inference.pretrained import load
from dinosr_jax.inference.recognition.decoding import greedy
from dinosr_jax.inference.recognition.emissions import clock_of, emissions
from dinosr_jax.inference.recognition.ngram import Bigram
from dinosr_jax.inference.recognition.transcript_file import TranscriptFile
from dinosr_jax.objective.ctc import best_path
from dinosr_jax.training.ctc.step import encode, output_logits
from dinosr_jax.training.state import Batch, make_model
from tests.recogniser_runs import write_recogniser
from tests.tiny_runs import tiny_model

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("compile_quickly", "compile_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "recogniser"
    write_recogniser(workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real speech of several lengths, nested, with a space and an accent in a name."""
    folder = tmp_path_factory.mktemp("audio")
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_en.ogg", frames=40 * 16_000)[0]
    for number in range(10):
        path = folder / ("b" if number % 2 else "a") / f"{number} é.flac"
        path.parent.mkdir(exist_ok=True)
        part = waveform[number * 48_000 :][: 12_000 + 16_000 * (number % 3)]
        soundfile.write(path, part, 16_000)
    return folder


def transcribe(run, *arguments, expect=0):
    done = CliRunner().invoke(cli, ["transcribe", str(run), *map(str, arguments)])
    assert done.exit_code == expect, done.output
    return done.output


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@functools.cache
def plainly(config):
    """Parameters and a waveform [S] -> logits [T, V], of the whole utterance alone."""
    network = make_model(config)

    @jax.jit
    def compute(params, waveform):
        hidden = encode(config, network, params, Batch(waveform[None]), (None, None))
        return output_logits(config, params, hidden)[0]

    return compute


def expected_text(model, path):
    """The best path of the network."""
    waveform = audio.normalise(audio.load(path, name="x"))
    logits = plainly(model.config)(model.params, jnp.asarray(waveform))
    return letters().decode(best_path(np.asarray(logits).argmax(axis=1)))


def test_lines_are_in_the_order_of_the_input(run, folder, tmp_path):
    transcribe(run, folder, f"--output={tmp_path / 'hyp.jsonl'}")
    found, model = lines(tmp_path / "hyp.jsonl"), load(run)
    names = [f"a/{k} é" for k in range(0, 10, 2)] + [f"b/{k} é" for k in range(1, 10, 2)]
    assert [line["file"] for line in found] == names
    for line in found:
        assert list(line) == ["file", "text", "words", "score"]
        assert line["text"] == expected_text(model, folder / f"{line['file']}.flac")
        assert " ".join(word["word"] for word in line["words"]) == line["text"]
        assert all(0 <= w["start"] < w["end"] for w in line["words"]) and line["score"] < 0
    assert any(line["text"] for line in found)
    about = json.loads((tmp_path / "hyp.about.json").read_text())
    assert about["fingerprint"] == model.fingerprint and about["decoder"] == "greedy"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hyp.about.json", "hyp.jsonl"]


def test_from_python_it_is_the_same(run, folder):
    model = load(run)
    paths = sorted(folder.glob("*/*.flac"))
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    texts = model.transcribe(waves)
    assert texts == [expected_text(model, path) for path in paths]
    assert model.transcribe(waves[0], sample_rate=16_000) == texts[0]


def test_kept_emissions_are_log_probabilities(run, folder, tmp_path):
    model, place = load(run), tmp_path / "kept"
    transcribe(run, folder, f"--output={tmp_path / 'h.jsonl'}", f"--emissions={place}")
    for line in lines(tmp_path / "h.jsonl"):
        array = np.load(place / f"{line['file']}.npy")
        assert array.dtype == np.float32 and array.shape[1] == 32
        np.testing.assert_allclose(np.exp(array).sum(axis=1), 1, atol=1e-5)
        assert greedy(letters(), clock_of(model))(array).text == line["text"]


def test_batches_do_not_matter(run, folder):
    from dinosr_jax.inference.forward.batched import Options
    from dinosr_jax.inference.recordings import open_inputs

    recordings, model = open_inputs(folder), load(run)
    one = dict(_by_id(model, recordings, Options(batch_seconds=1.0)))
    all_ = dict(_by_id(model, recordings[::-1], Options(batch_seconds=64.0)))
    for id_, array in one.items():
        np.testing.assert_allclose(array, all_[id_], atol=1e-4)


def _by_id(model, recordings, options):
    for recording, array in emissions(model, recordings, options=options):
        yield recording.id, array


def test_long_recordings_go_in_chunks(run, folder, tmp_path):
    path = tmp_path / "long.wav"
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_it.ogg", frames=30 * 16_000)[0]
    soundfile.write(path, waveform, 16_000)
    chunks = ["--chunk_seconds=8", "--overlap_seconds=3", f"--emissions={tmp_path / 'e'}"]
    transcribe(run, path, f"--output={tmp_path / 'hyp.jsonl'}", *chunks)
    (line,) = lines(tmp_path / "hyp.jsonl")
    array = np.load(tmp_path / "e" / "long.npy")
    assert len(array) == (30 * 16_000 - 400) // 320 + 1
    assert line["text"] == greedy(letters(), clock_of(load(run)))(array).text


def test_a_second_call_computes_nothing_and_other_settings_are_refused(run, folder, tmp_path):
    output = f"--output={tmp_path / 'hyp.jsonl'}"
    transcribe(run, folder, output)
    before = (tmp_path / "hyp.jsonl").read_bytes()
    assert "0 written, 10 were there" in transcribe(run, folder, output)
    assert (tmp_path / "hyp.jsonl").read_bytes() == before
    refused = transcribe(run, folder, output, "--key=name", expect=1)
    assert "key: there 'file', asked for 'name'" in refused
    refused = transcribe(run, folder / "a", output, expect=1)
    assert "inputs: there" in refused and "belongs to other transcripts" in refused
    (tmp_path / "hyp.jsonl").unlink()  # nothing is left that it could contradict
    assert "5 written" in transcribe(run, folder / "a", output)


def test_it_goes_on_as_if_it_had_never_stopped(run, folder, tmp_path, monkeypatch):
    """Stopped after every committed batch in turn: no line is computed again, no byte differs."""
    flags = ["--batch_seconds=1", "--chunk_seconds=2", "--overlap_seconds=0.5"]
    whole, computed = tmp_path / "whole.jsonl", []
    transcribe(run, folder, f"--output={whole}", *flags)
    add = TranscriptFile.add

    def stop_at_commit(self, name, hypothesis, *, commit):
        computed.append(name)
        add(self, name, hypothesis, commit=commit)
        if commit:
            raise KeyboardInterrupt

    output, stops = tmp_path / "hyp.jsonl", 0
    with monkeypatch.context() as patch:
        patch.setattr(TranscriptFile, "add", stop_at_commit)
        while not output.exists():
            code = 0 if len(computed) == 10 else 130
            transcribe(run, folder, f"--output={output}", *flags, expect=code)
            stops += 1
    assert stops > 2 and len(computed) == len(set(computed)) == 10
    assert output.read_bytes() == whole.read_bytes()


def test_emissions_of_another_network_are_refused(run, folder, tmp_path):
    place, one = tmp_path / "kept", folder / "a/0 é.flac"
    transcribe(run, one, f"--output={tmp_path / 'a.jsonl'}", f"--emissions={place}")
    about = json.loads((place / "emissions.json").read_text())
    assert tuple(about["symbols"]) == letters().symbols and about["hop_samples"] == 320
    write_recogniser(tmp_path / "other", seed=3)
    flags = [f"--output={tmp_path / 'b.jsonl'}", f"--emissions={place}"]
    said = transcribe(tmp_path / "other", one, *flags, expect=1)
    assert "belongs to other emissions" in said and "fingerprint: there" in said


def test_parameters_that_are_not_finite_are_an_error(run, folder):
    model = load(run)
    model.params["output"]["bias"] = model.params["output"]["bias"].at[7].set(np.nan)
    with pytest.raises(ValueError, match="the waveform: .* not finite"):
        model.transcribe(np.random.default_rng(0).normal(size=8000))


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_gives_the_same(run, folder, tmp_path, chance):
    flags = ["--batch_seconds=1", "--chunk_seconds=2", "--overlap_seconds=0.5"]
    transcribe(run, folder, f"--output={tmp_path / 'whole.jsonl'}", *flags)
    output = tmp_path / "killed.jsonl"
    kept = [output, output.with_name("killed.about.json"), *tmp_path.iterdir()]
    command = [sys.executable, "-m", "dinosr_jax", "transcribe", str(run), str(folder)]
    command += [f"--output={output}", *flags]
    partial = output.with_name(".killed.jsonl.partial")
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiled as in this process
    env |= {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    for kill in range(2):
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        size = lambda: partial.stat().st_size if partial.exists() else 0
        before, limit = size(), time.monotonic() + 60
        while process.poll() is None and size() <= before and time.monotonic() < limit:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.wait()
        if kill == 0 and partial.exists():  # a line that was cut short
            partial.write_bytes(partial.read_bytes() + b'{"file": "a/0')
    assert subprocess.run(command, cwd=ROOT, env=env, timeout=500).returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_bad_files_are_listed_or_end_it(run, folder, tmp_path):
    bad = tmp_path / "in"
    bad.mkdir()
    (bad / "good.flac").write_bytes((folder / "a/0 é.flac").read_bytes())
    (bad / "empty.wav").write_bytes(b"")
    (bad / "text.wav").write_text("no audio")
    soundfile.write(bad / "short.wav", np.full(100, 0.1), 16_000)
    output = f"--output={tmp_path / 'hyp.jsonl'}"
    assert "empty.wav" in transcribe(run, bad, output, expect=1)
    assert "1 written, 3 left out" in transcribe(run, bad, output, "--skip-bad")
    assert [line["file"] for line in lines(tmp_path / "hyp.jsonl")] == ["good"]
    assert (tmp_path / "skipped.tsv").read_text().count("\n") == 4


def test_shards_are_parts_of_it(run, folder, tmp_path):
    transcribe(run, folder, f"--output={tmp_path / 'all.jsonl'}")
    for part in range(3):
        transcribe(run, folder, f"--output={tmp_path / 'p.jsonl'}", f"--shard={part}/3")
    joined = "".join((tmp_path / f"p_{part}_3.jsonl").read_text() for part in range(3))
    assert joined == (tmp_path / "all.jsonl").read_text()


def test_the_best_checkpoint_is_taken(tmp_path, folder):
    workdir = tmp_path / "run"
    write_recogniser(workdir, step=5)
    write_recogniser(workdir, step=2, folder="best", seed=7)
    one = folder / "a/0 é.flac"
    said = transcribe(workdir, one, f"--output={tmp_path / 'a.jsonl'}")
    assert f"{workdir}/best/2: the network after 2 updates" in said
    last = workdir / "checkpoints" / "5"
    assert "after 5 updates" in transcribe(last, one, f"--output={tmp_path / 'b.jsonl'}")


def test_beam_search_with_settings_of_a_sweep(run, folder, tmp_path):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not there")
    (tmp_path / "lm.arpa").write_text(Bigram(["A TEA", "TEA A", "SEE TEA"]).to_arpa())
    rows = [f"{p.parent.name}/{p.stem}\tA TEA" for p in sorted(folder.glob("*/*.flac"))]
    (tmp_path / "ref.tsv").write_text("\n".join(["file\ttext", *rows]) + "\n")
    lm, beam = f"--lm={tmp_path / 'lm.arpa'}", "--beam=10"
    arguments = ["sweep", run, folder, f"--reference={tmp_path / 'ref.tsv'}", lm, beam]
    arguments += ["--trials=3", f"--output={tmp_path / 's.json'}"]
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "s.json").read_text())
    assert len(found["trials"]) == 3 and found["wer"] == min(t["wer"] for t in found["trials"])
    settings = f"--settings={tmp_path / 's.json'}"
    transcribe(run, folder, f"--output={tmp_path / 'h.jsonl'}", settings)
    about = json.loads((tmp_path / "h.about.json").read_text())
    assert about["beam"] == 10 and about["lm_weight"] == found["settings"]["lm_weight"]
    said = {word for line in lines(tmp_path / "h.jsonl") for word in line["text"].split()}
    assert said <= {"A", "TEA", "SEE"}
    arguments = ["evaluate", "wer", tmp_path / "h.jsonl", f"--reference={tmp_path / 'ref.tsv'}"]
    arguments += [f"--output={tmp_path / 'wer.json'}"]
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0 and "10 utterances" in done.output
    assert json.loads((tmp_path / "wer.json").read_text())["wer"] == pytest.approx(found["wer"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lexicon=x.lst", "--decoder=greedy"], "--lexicon is for --decoder=beam"),
        (["--lm=/nowhere.arpa"], "no such file"),
        (["--settings=/nowhere.json"], "cannot be read as settings"),
    ],
)
def test_mistakes_are_explained(run, folder, tmp_path, flags, words):
    assert words in transcribe(run, folder, f"--output={tmp_path / 'h.jsonl'}", *flags, expect=1)


def test_a_network_that_was_not_fine_tuned_says_how():
    with pytest.raises(ValueError, match="not fine-tuned.*finetune_10h.py"):
        tiny_model().transcribe(np.ones(8000, np.float32))
