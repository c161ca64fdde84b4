"""Networks whose frames begin every 10 or 40 ms: trained, extracted from and evaluated."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from configs import tiny
from dinosr_jax.cli import cli
from dinosr_jax.cli import start_run as training
from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compile_quickly")]
ROOT = Path(__file__).parents[1]
SECONDS = (1.0, 1.31, 1.2, 1.45, 1.07, 1.1, 1.6, 1.25, 1.3, 1.5, 1.15, 1.4)
LABELS = ("AA", "B", "SIL", "K", "OW")
# front end, its layers, samples that a frame sees, samples from one to the next
NETWORKS = {
    "10ms": ("conv", ((8, 10, 5), (8, 8, 4), (8, 8, 8)), 10 + 7 * 5 + 7 * 20, 160),
    "40ms": ("conv", ((8, 10, 5), (8, 8, 8), (8, 16, 16)), 10 + 7 * 5 + 15 * 40, 640),
    "10ms-mfcc": ("mfcc", ((13, 400, 160),), 400, 160),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Utterances of two speakers, with made-up phones."""
    folder = tmp_path_factory.mktemp("source")
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_ru.ogg", frames=20 * 16_000)[0]
    rows, random = ["file\tstart_s\tend_s\tphone"], np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        path = folder / f"speaker{number % 2}" / f"{number}.flac"
        path.parent.mkdir(exist_ok=True)
        part = waveform[number * 25_600 :][: int(seconds * 16_000)]
        soundfile.write(path, part, 16_000)
        end = 0.0
        while end < seconds:
            length = float(random.choice([0.05, 0.13, 0.21]))
            start, end = end, min(round(end + length, 2), seconds)
            rows.append(f"{number}\t{start}\t{end}\t{random.choice(LABELS)}")
    (folder / "phones.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def data_dir(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(source, data_dir=folder)
    return folder


@pytest.fixture(
    scope="module",
    params=NETWORKS,
)
def network(request, data_dir, tmp_path_factory, compile_quickly):
    """(run after some updates, samples that a frame sees, samples from one to the next)."""
    front_end, layers, field, hop = NETWORKS[request.param]
    config = tiny.get_config()
    config.num_steps = config.eval_steps = config.checkpoint_steps = 2
    config.model.front_end, config.model.conv_layers = front_end, layers
    config.model.num_layers, config.model.codebook_size = 2, 4
    data = config.data
    data.data_dir, data.train_split, data.eval_split = str(data_dir), "train", "train"
    data.max_seconds, data.max_batch_seconds, data.max_rungs = 1.5, 12.0, 1
    config.mesh.data = 1
    folder = tmp_path_factory.mktemp("runs") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinosr_jax.training.processes.keep_compiled", lambda folder: None)
        training.run(config, workdir=str(folder))
    return folder, field, hop


def invoke(*arguments):
    done = CliRunner().invoke(cli, list(map(str, arguments)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def frames_of(path, field, hop):
    return (soundfile.info(path).frames - field) // hop + 1


def test_training_measures_phones_and_positions(network):
    run, _, _ = network
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and np.isfinite([line["loss"] for line in lines]).all()
    measured = {k: v for line in lines for k, v in line.items() if k.startswith("eval_")}
    for name in (
        "eval_loss",
        "eval_pnmi",
        "eval_position_information",
        "eval_loudness_information",
    ):
        assert np.isfinite(measured[name]), name
    assert 0 <= measured["eval_position_information"] <= 1


def test_features_are_where_they_say(network, source, tmp_path):
    run, field, hop = network
    invoke("extract", run, source, "--layer=1", f"--output={tmp_path}/features")
    about = json.loads((tmp_path / "features/features.json").read_text())
    assert about["frame_rate"] == 16_000 / hop and about["hop_samples"] == hop
    assert about["receptive_field_samples"] == field
    assert about["frame_centre_seconds"] == f"i * {hop / 16_000:g} + {field / 32_000:g}"
    files = sorted(source.rglob("*.flac"))
    assert len(files) == len(SECONDS)
    for path in files:
        name = path.relative_to(source).with_suffix(".npy")
        found = np.load(tmp_path / "features" / name)
        assert found.shape == (frames_of(path, field, hop), 32)


def test_units_and_their_textgrids_have_the_times_of_the_frames(network, source, tmp_path):
    run, field, hop = network
    output = tmp_path / "units.jsonl"
    grids = f"--textgrid={tmp_path}/grids"
    invoke("units", run, source, "--layer=2", f"--output={output}", grids)
    stats = json.loads(output.with_suffix(".stats.json").read_text())
    assert stats["frame_rate"] == 16_000 / hop
    assert stats["statistics"]["2"]["units_per_second"] == pytest.approx(16_000 / hop)
    for line in output.read_text().splitlines():
        row = json.loads(line)
        path = next(source.rglob(f"{Path(row['file']).name}.flac"))
        assert len(row["units"]) == frames_of(path, field, hop)
        changes = 1 + np.flatnonzero(np.diff(row["units"]))
        text = (tmp_path / "grids" / f"{row['file']}.TextGrid").read_text()
        ends = [float(end) for end in re.findall(r"^ {12}xmax = (.*)$", text, re.MULTILINE)]
        expected = [*(changes * hop / 16_000), soundfile.info(path).duration]
        np.testing.assert_allclose(ends, expected, atol=1e-9)
    table = tmp_path / "quality.json"
    alignment = f"--alignment={source}/phones.tsv"
    invoke("evaluate", "units", output, alignment, "--tolerance=10", f"--output={table}")
    result = json.loads(table.read_text())
    milliseconds = hop / 16
    assert f"units of {milliseconds:g} ms repeated {milliseconds / 10:g} times" in result["rule"]
    # in frames of 10 ms: all of the audio but what is left at the ends of the utterances
    assert result["rows"][0]["frames"] / 100 == pytest.approx(sum(SECONDS), rel=0.05)


def test_a_network_beside_its_baselines(network, data_dir, tmp_path):
    run, _, hop = network
    where = [run, data_dir, "--split=train", f"--output={tmp_path}"]
    invoke("evaluate", "run", *where, "--task=units")
    invoke("evaluate", "frames", *where, "--num_steps=10")
    units = json.loads((tmp_path / "units.json").read_text())
    assert f"units of {hop / 16:g} ms" in units["rule"]
    assert {row["system"] for row in units["rows"]} == {"codebook", "kmeans", "mfcc", "untrained"}
    frames = {row["frames"] for row in units["rows"]}
    assert len(frames) == 1
    assert frames.pop() / 100 == pytest.approx(sum(SECONDS), rel=0.05)
    rows = json.loads((tmp_path / "frames.json").read_text())["rows"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows) and len(rows) > 3


def test_exports_keep_it_and_say_it(network, tmp_path):
    run, _, hop = network
    found = runs.read_any(run)
    if found.config.model.front_end == "mfcc":
        pytest.skip("other projects have convolutions only")
    exports.export(found, tmp_path / "out", kind="huggingface")
    assert read_checkpoint(tmp_path / "out").config.model == found.config.model
    card = (tmp_path / "out/README.md").read_text()
    assert f" {16_000 // hop} frames a second" in card
