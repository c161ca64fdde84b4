"""Fine-tuning as a user runs it: from a run, killed, gone on with, refused with what is wrong."""

import json
import shutil
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from dinosr_jax.cli import start_run
from dinosr_jax.cli.start_run import resolve
from dinosr_jax.config import parse, read_file
from dinosr_jax.data.batches.pipeline import PipelineError
from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.inference.pretrained import load
from dinosr_jax.training import processes
from tests.main_runs import records, run_main_py, start_main
from tests.tiny_runs import write_run
from tests.transcribed_prompts import write_prompts

ROOT = Path(__file__).parents[2]
STEPS = 16
TINY = f"--config={ROOT}/configs/tiny.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    write_prompts(source)
    folder = tmp_path_factory.mktemp("prepared")
    prepare(source, data_dir=folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def finetuning(data_dir, workdir, *flags):
    return [
        "--config.task=ctc",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        f"--config.num_steps={STEPS}",
        "--config.eval_steps=4",
        "--config.checkpoint_steps=3",
        "--config.data.min_seconds=0.1",
        "--config.data.max_rungs=1",
        "--config.data.max_batch_seconds=17",
        "--config.ctc.freeze_steps=5",
        "--config.ctc.eval_after_steps=8",
        "--config.ctc.channel_mask_length=8",
        "--config.model.layerdrop=0.2",
        "--config.optimizer.weight_decay=0.0",
        *flags,
    ]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A network of another shape than the configuration's, whose teacher is not its student."""
    smaller = {"model.width": 48, "model.num_layers": 2, "model.num_heads": 3}
    return write_run(tmp_path_factory.mktemp("runs"), **smaller)


@pytest.fixture(scope="module")
def reference(data_dir, cache, pretrained, tmp_path_factory) -> Path:
    """A fine-tuning that is never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "reference"
    output = run_main_py(cache, *finetuning(data_dir, workdir, f"--config.init={pretrained}"))
    assert "fine-tuning the student of" in output and "2 layers of width 48" in output
    assert "left out" in output or "12 utterances" in output
    return workdir


def same_parameters(a, b):
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_a_recogniser_is_made_of_the_network_and_knows_its_symbols(pretrained, reference):
    trained, before = load(reference), load(pretrained)
    assert trained.vocabulary.symbols[4] == "|" and len(trained.vocabulary.symbols) == 32
    assert trained.config.model.width == 48 and before.vocabulary is None
    for a, b in zip(
        jax.tree.leaves(trained.params["feature_encoder"]),
        jax.tree.leaves(before.params["feature_encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)  # never trained
    found = records(reference)
    assert [r["step"] for r in found] == list(range(1, STEPS + 1))
    assert [r["step"] for r in found if "eval_wer" in r] == [8, 12, 16]
    assert found[-1]["loss"] < found[0]["loss"]


def test_the_best_checkpoint_is_kept_and_read(reference):
    found = {r["step"]: r["eval_wer"] for r in records(reference) if "eval_wer" in r}
    (best,) = (int(path.name) for path in (reference / "best").glob("[0-9]*"))
    assert found[best] == min(found.values())
    assert load(reference).step == best
    last = load(reference / "checkpoints" / str(STEPS))
    assert last.step == STEPS and last.vocabulary == load(reference).vocabulary
    assert same_parameters(load(reference / "best" / str(best)), load(reference))


@pytest.mark.very_slow
def test_killed_at_any_moment_gives_the_same_run(
    data_dir, cache, pretrained, reference, tmp_path, chance
):
    workdir = tmp_path / "killed"
    flags = finetuning(data_dir, workdir, f"--config.init={pretrained}")
    kills = []
    for _ in range(2):
        process, before = start_main(cache, *flags), last_step(workdir)
        wanted = before + chance.randint(1, 5)
        while process.poll() is None and last_step(workdir) < wanted:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        if process.poll() is None:
            process.kill()
            kills.append(last_step(workdir))
        process.communicate()
    print("killed at", kills)
    assert kills
    run_main_py(cache, *flags)
    assert records(workdir) == records(reference)
    for folder in ("checkpoints", "best"):
        steps = sorted(path.name for path in (workdir / folder).glob("[0-9]*"))
        assert steps == sorted(path.name for path in (reference / folder).glob("[0-9]*"))
        assert same_parameters(*(load(r / folder / steps[-1]) for r in (workdir, reference)))


@pytest.mark.slow
def test_two_processes_are_as_one(data_dir, cache, pretrained, reference, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = ["--distributed", f"--coordinator=localhost:{free.getsockname()[1]}"]
    together += ["--num_processes=2", f"--config.init={pretrained}"]
    flags = finetuning(data_dir, tmp_path / "run", *together)
    started = [start_main(cache, *flags, f"--process_id={number}") for number in range(2)]
    try:
        said = [process.communicate(timeout=500)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)[-6000:]
    found, expected = records(tmp_path / "run"), records(reference)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in {"loss", "gradient_norm", "eval_loss", "eval_num_words"} & b.keys():
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=f"{name} {a['step']}")
        if "eval_cer" in b:  # a letter may fall to the other side of rounding
            np.testing.assert_allclose(a["eval_cer"], b["eval_cer"], atol=0.01)


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


@pytest.mark.slow
def test_it_goes_on_where_what_it_started_from_has_moved(data_dir, reference, tmp_path, run_main):
    """The network that `init` names, the data and the vocabulary may be elsewhere by then."""
    workdir, moved = tmp_path / "run", tmp_path / "data"
    shutil.copytree(reference, workdir)
    shutil.copytree(data_dir, moved)
    more = [f"--config.num_steps={STEPS + 1}", "--config.init=/gone"]
    assert run_main(TINY, *finetuning(moved, workdir, *more)) is None
    assert records(workdir)[-1]["step"] == STEPS + 1


def test_a_vocabulary_may_move_but_not_change(data_dir, reference, tmp_path):
    symbols = json.loads((reference / "config.json").read_text())["ctc"]["symbols"]
    dictionary = tmp_path / "dict.ltr.txt"
    dictionary.write_text("".join(f"{symbol} 1\n" for symbol in symbols[4:]))
    flags = [f"--config.ctc.vocabulary={dictionary}"]
    config, _ = resolve(config_of(data_dir, *flags), reference)
    assert list(config.ctc.symbols) == symbols
    dictionary.write_text("".join(f"{symbol} 1\n" for symbol in symbols[5:]))
    with pytest.raises(ValueError, match="config.ctc.vocabulary: '.*' has 31 symbols, expected"):
        resolve(config_of(data_dir, *flags), reference)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.init=/nowhere"], ["/nowhere"]),
        (["--config.ctc.vocabulary=/nowhere.txt"], ["/nowhere.txt", "dictionary"]),
        (["--config.ctc.vocabulary=phones"], ["phones", "config.data.alignment"]),
        (["--config.ctc.language=fr"], ["'fr'", "its languages are en"]),
        (["--config.ctc.network=both"], ["config.ctc.network: found 'both'"]),
        (["--config.data.max_seconds=0.11"], ["no utterance is left", "longer than max_seconds"]),
        (["--config.data.max_batch_seconds=3"], ["max_batch_seconds = 3", "Raise"]),
        (["--config.task=pretrain", "--config.init=runs/x"], ["config.init: found 'runs/x'"]),
    ],
)
def test_mistakes_are_explained(data_dir, monkeypatch, tmp_path, flags, words):
    monkeypatch.setattr(processes, "keep_compiled", lambda folder: None)
    config = str(ROOT / "configs/tiny.py")
    flags = [*finetuning(data_dir, tmp_path, *flags)]
    flags = [flag for flag in flags if flag.startswith("--config.")]
    with pytest.raises((ValueError, PipelineError)) as raised:
        start_run.run(ConfigDict(read_file(config, flags)), workdir=tmp_path / "never")
    assert all(word in str(raised.value) for word in words), raised.value
    assert not (tmp_path / "never" / "metrics.jsonl").exists()


def test_a_mistake_is_one_line(data_dir, tmp_path, run_main):
    said = run_main(TINY, *finetuning(data_dir, tmp_path, "--config.init=/nowhere"))
    assert said.startswith("error: /nowhere") and "\n" not in said


def config_of(data_dir, *flags):
    name = str(ROOT / "configs/tiny.py")
    data = [f"--config.data.data_dir={data_dir}", "--config.task=ctc"]
    return parse(read_file(name, [*data, *flags]))


def test_what_is_taken_from_the_network_and_what_from_the_recipe(data_dir, pretrained, tmp_path):
    flags = [f"--config.init={pretrained}", "--config.model.dropout=0.25"]
    config, parts = resolve(config_of(data_dir, *flags), tmp_path)
    assert config.model.width == 48 and config.model.dropout == 0.25
    assert set(parts) == {"feature_encoder", "feature_projection", "mask_embedding", "encoder"}
    student = load(pretrained)
    _, parts = resolve(config_of(data_dir, *flags, "--config.ctc.network=teacher"), tmp_path)
    ours = jax.tree.leaves(parts["encoder"])
    for a, b in zip(ours, jax.tree.leaves(student.teacher_params["encoder"]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_recogniser_can_be_fine_tuned_further(data_dir, reference, tmp_path):
    config, parts = resolve(config_of(data_dir, f"--config.init={reference}"), tmp_path)
    assert set(parts) >= {"output", "encoder"} and len(config.ctc.symbols) == 32
    other = ["--config.ctc.vocabulary=characters", f"--config.init={reference}"]
    config, parts = resolve(config_of(data_dir, *other), tmp_path)
    assert "output" not in parts and "e" in config.ctc.symbols
    with pytest.raises(ValueError, match="has no teacher"):
        teacher = "--config.ctc.network=teacher"
        resolve(config_of(data_dir, f"--config.init={reference}", teacher), tmp_path)


@pytest.mark.slow
def test_a_folder_of_few_recordings(tmp_path, cache):
    """24 recordings, of which one is held out, and 10, of which none is."""
    time, source = np.arange(32_000) / 16_000, tmp_path / "source"
    source.mkdir()
    for number in range(24):
        noise = np.random.default_rng(number).normal(0, 0.01, time.size)
        wave = 0.2 * np.sin(2 * np.pi * (110 + 5 * number) * time) * np.sin(3 * time) + noise
        soundfile.write(source / f"{number:02}.flac", wave, 16_000)
    prepare(source, data_dir=tmp_path / "data")
    flags = (
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.data_dir={tmp_path / 'data'}",
        "--config.data.train_split=train[:95%]",
        "--config.num_steps=2",
        "--config.mesh.data=1",
    )
    output = run_main_py(cache, *flags, "--config.data.eval_split=train[95%:]")
    assert "held-out data: 1 utterances, 0.00 h: 1 batches" in output
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 2 and 0 < last["eval_loss"] < 10 and last["eval_codeword_use"] > 0
    output = run_main_py(cache, *flags, "--config.data.eval_split=train[:1%]", expect=1)
    assert "'train[:1%]' of" in output and "24 in train. Choose a larger part" in output
