"""Files of units: lines, names, shards, what is left out, and what is never half-written."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax import files
from dinosr_jax.data import audio
from dinosr_jax.data.phones import textgrid
from dinosr_jax.inference import outputs
from dinosr_jax.inference.units import kmeans, unit_file, writer
from tests.tiny_runs import tiny_model, write_run

pytestmark = pytest.mark.usefixtures("compile_quickly", "compile_once")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def model(compile_quickly):
    return tiny_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three recordings, the longest in the middle; c/two is only in a folder of its own."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for name, samples in (("a/one.wav", 8_000), ("b/two words é.wav", 9_500), ("c/two.wav", 8_500)):
        (folder / name).parent.mkdir()
        soundfile.write(folder / name, 0.1 * rng.standard_normal(samples), 16_000)
    return folder


def write_units(model, inputs, *, output, **settings):
    """`writer.write_units`, whose settings are of the units, of the style, or its own."""
    parts = {}
    for name, kind in (("units", writer.UnitOptions), ("style", writer.Style)):
        of_kind = {field: settings.pop(field) for field in kind._fields if field in settings}
        parts[name] = kind(**of_kind)
    return writer.write_units(model, inputs, output=output, **parts, **settings)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(model, path, **more):
    return model.units(audio.load(path, name="x"), **more).tolist()


def test_lines_are_in_the_order_of_the_input(model, folder, tmp_path):
    done = write_units(model, [folder], output=tmp_path / "u.jsonl", layer="3")
    found = lines(tmp_path / "u.jsonl")
    assert [list(line) for line in found] == [["file", "units"]] * 3
    assert [line["file"] for line in found] == ["a/one", "b/two words é", "c/two"]
    assert [len(line["units"]) for line in found] == [24, 29, 26]
    for line in found:
        assert line["units"] == of(model, folder / f"{line['file']}.wav", layer=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u.jsonl", "u.stats.json"]
    stats = json.loads((tmp_path / "u.stats.json").read_text())
    said = {"layers": [3], "tensor": "ffn", "model": "teacher", "source": "codebook", "skipped": 0}
    assert said.items() <= stats.items() and stats["fingerprint"] == model.fingerprint
    assert stats["seconds"] == 26_000 / 16_000 and stats["num_utterances"] == 3
    of_layer, flat = stats["statistics"]["3"], sum((line["units"] for line in found), [])
    runs = sum(1 + int(np.count_nonzero(np.diff(line["units"]))) for line in found)
    assert of_layer["units_in_use"] == len(set(flat)) and of_layer["num_units"] == 16
    assert of_layer["bit_rate"] == pytest.approx(4 * runs / (len(flat) / 50))
    assert done.statistics[3]._asdict() == of_layer
    assert f"{of_layer['bit_rate']:.1f} bit/s" in writer.to_text(done)


def test_runs_with_durations_and_names(model, folder, tmp_path):
    """The names of each key, and the same codes, as runs."""
    plain = tmp_path / "plain.jsonl"
    write_units(model, [folder], output=plain, layer=2)
    for key, names in (
        ("audio", ["one", "two words é", "two"]),
        ("fileid", ["one", "two words é", "two"]),
    ):
        output = tmp_path / f"{key}.jsonl"
        write_units(model, [folder], output=output, layer=2, key=key, form="runs")
        found = lines(output)
        assert [list(line) for line in found] == [[key, "units", "durations"]] * 3
        assert [line[key] for line in found] == names
        for line, whole in zip(found, lines(plain), strict=True):
            assert np.repeat(line["units"], line["durations"]).tolist() == whole["units"]
            assert (np.diff(line["units"]) != 0).all()


@pytest.mark.parametrize("format", ["text", "km"])
def test_plain_lines(model, folder, tmp_path, format):
    """The codes of the JSON lines, whole and in shards, with what else is written."""
    what = {"layer": "all", "source": "head"}
    write_units(model, [folder], output=tmp_path / "u.jsonl", **what)
    write_units(
        model, [folder], output=tmp_path / "u.km", format=format, textgrids=tmp_path / "g", **what
    )
    assert len(list((tmp_path / "g").rglob("*.TextGrid"))) == 3
    assert json.loads((tmp_path / "u.stats.json").read_text())["format"] == format
    for i in (1, 0):
        shard = {"output": tmp_path / "parts/u.km", "format": format, "shard": f"{i}/2"}
        write_units(model, [folder], **shard, **what)
    for layer in ("02", "03"):
        whole = tmp_path / f"u-layer{layer}.km"
        expected = [
            (f"{line['file']}\t" if format == "text" else "") + " ".join(map(str, line["units"]))
            for line in lines(whole.with_suffix(".jsonl"))
        ]
        assert whole.read_bytes().decode() == "\n".join(expected) + "\n"
        parts = [(tmp_path / f"parts/u-layer{layer}_{i}_2.km").read_bytes() for i in (0, 1)]
        assert b"".join(parts) == whole.read_bytes() and all(parts)


def test_plain_lines_of_runs_and_basenames(model, folder, tmp_path):
    runs, plain = tmp_path / "u.jsonl", tmp_path / "u.txt"
    what = {"layer": 2, "form": "runs", "key": "name"}
    write_units(model, [folder], output=runs, **what)
    write_units(model, [folder], output=plain, format="text", **what)
    expected = [f"{line['name']}\t{' '.join(map(str, line['units']))}\n" for line in lines(runs)]
    assert plain.read_text() == "".join(expected)


def test_a_km_has_a_line_for_every_recording(model, folder, tmp_path):
    """In the order of the manifest, as the .len of the features; k-means fitted on it, too."""
    from dinosr_jax.inference.features.writer import extract_files

    for name in ("text.wav", "short.wav"):
        (tmp_path / name).write_text("no audio")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16_000)
    listed = ["c/two.wav", str(tmp_path / "text.wav"), "a/one.wav", str(tmp_path / "short.wav")]
    manifest = tmp_path / "train.tsv"
    manifest.write_text("\n".join([str(folder), *listed, "gone.wav", "b/two words é.wav"]) + "\n")
    output, extracted = tmp_path / "train.km", tmp_path / "features"
    extract_files(
        model, [manifest], output=extracted, layer=1, layout="fairseq", name="train", bad="skip"
    )
    lengths = (extracted / "train_0_1.len").read_text().split()
    assert lengths == ["26", "0", "24", "0", "0", "29"]
    fit = writer.Fit(num_clusters=6)
    for what in ({"layer": 2}, {"layer": 1, "source": "kmeans", "fit": fit}):
        done = write_units(
            model, [manifest], output=output, format="km", bad="skip", textgrids=tmp_path, **what
        )
        found = output.read_text().split("\n")
        assert [str(len(line.split())) for line in found] == [*lengths, "0"]
        assert done.num_utterances == 3 and len(done.skipped) == 3
        assert len((tmp_path / "skipped.tsv").read_text().splitlines()) == 4
        write_units(model, [manifest], output=tmp_path / "u.txt", format="text", bad="skip", **what)
        text = (tmp_path / "u.txt").read_text().splitlines()
        assert [line.split("\t")[1] for line in text] == list(filter(None, found))
    for i in range(3):
        shard = {"format": "km", "bad": "skip", "shard": f"{i}/3", "layer": 2}
        write_units(model, [manifest], output=output, **shard)
        there = [bool(line) for line in (tmp_path / f"train_{i}_3.km").read_text().split("\n")]
        assert there == [*((True, False), (True, False), (False, True))[i], False]


def test_names_that_plain_lines_cannot_tell(model, folder, tmp_path):
    odd = tmp_path / "odd\tname.wav"
    odd.write_bytes((folder / "a/one.wav").read_bytes())
    output = tmp_path / "out/u.txt"
    with pytest.raises(audio.AudioError, match=r"found '.t' in its name.*use --format=jsonl"):
        write_units(model, [odd], output=output, layer=2, format="text")
    assert not output.parent.exists()
    for format in ("jsonl", "km"):
        assert write_units(model, [odd], output=output, layer=2, format=format).num_utterances == 1


def test_the_same_basename_twice_is_refused(model, folder, tmp_path):
    for name in ("x/one.wav", "y/one.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((folder / "a/one.wav").read_bytes())
    with pytest.raises(audio.AudioError, match="both be called 'one'; use --key=file"):
        write_units(model, [tmp_path], output=tmp_path / "u.jsonl", layer=2, key="name")
    done = write_units(model, [tmp_path], output=tmp_path / "u.jsonl", layer=2)
    assert done.num_utterances == 2


def test_several_layers_shards_and_textgrids(model, folder, tmp_path):
    whole = tmp_path / "whole"
    what = {"layer": "all", "source": "head", "textgrids": tmp_path / "grids"}
    write_units(model, [folder], output=whole / "u.jsonl", **what)
    names = ["u-layer02.jsonl", "u-layer03.jsonl", "u.stats.json"]
    assert sorted(path.name for path in whole.iterdir()) == names
    assert lines(whole / names[0])[2]["units"] == of(
        model, folder / "c/two.wav", layer=2, source="head"
    )
    text = (tmp_path / "grids/b/two words é.TextGrid").read_text()
    assert '"units-layer02"' in text and '"units-layer03"' in text and "xmax = 0.59375\n" in text
    assert len(list((tmp_path / "grids").rglob("*"))) == 6  # three folders, three files
    parts = tmp_path / "parts"
    for i in (1, 0):
        write_units(
            model, [folder], output=parts / "u.jsonl", shard=f"{i}/2", layer=[2, 3], source="head"
        )
    for layer in ("02", "03"):
        joined = [(parts / f"u-layer{layer}_{i}_2.jsonl").read_text() for i in (0, 1)]
        assert "".join(joined) == (whole / f"u-layer{layer}.jsonl").read_text()
    assert (parts / "u_1_2.stats.json").exists() and not (parts / "u.stats.json").exists()


def test_bad_files_end_it_or_are_listed(model, folder, tmp_path):
    bad = tmp_path / "text.wav"
    bad.write_text("no audio")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.random.default_rng(0).standard_normal(399) / 9, 16_000)
    output = tmp_path / "out" / "u.jsonl"
    with pytest.raises(audio.AudioError, match="text.wav"):
        write_units(model, [folder, bad], output=output, layer=2)
    assert not output.exists() and not list(output.parent.glob("*"))
    inputs = [bad, folder, short]
    done = write_units(model, inputs, output=output, layer=2, bad="skip")
    assert len(lines(output)) == 3 and len(done.skipped) == 2
    rows = (output.parent / "skipped.tsv").read_text().splitlines()
    assert rows[0] == "file\treason" and {row.split("\t")[0] for row in rows[1:]} == {
        str(bad),
        str(short),
    }
    before = output.read_bytes()
    with pytest.raises(audio.AudioError, match="text.wav"):
        write_units(model, [bad], output=output, layer=2)
    assert output.read_bytes() == before  # what was there stays
    none = write_units(model, [bad], output=output, layer=2, bad="skip")
    assert output.read_bytes() == b"" and none.num_utterances == 0
    assert none.statistics[2].perplexity == 1 and none.statistics[2].bit_rate == 0
    assert len((output.parent / "skipped.tsv").read_text().splitlines()) == 2
    write_units(model, [folder], output=output, layer=2)
    assert not (output.parent / "skipped.tsv").exists()
    (output.parent / "skipped.tsv").write_text("of another command")
    write_units(model, [folder], output=output.with_name("v.jsonl"), layer=2)
    assert (output.parent / "skipped.tsv").exists()


def test_a_full_disk_leaves_what_was_there(model, folder, tmp_path, monkeypatch):
    output = tmp_path / "u.jsonl"
    output.write_text("before")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with subprocess.Popen(["true"]) as dead:
        pass
    mine = files.temporary_path(tmp_path)
    left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    left.touch()  # by a process that was killed
    monkeypatch.setattr(unit_file, "to_line", full)
    with pytest.raises(outputs.OutputError, match="the disk is full"):
        write_units(model, [folder], output=output, layer=2)
    assert output.read_text() == "before" and list(tmp_path.iterdir()) == [output]


def test_kmeans_is_fitted_kept_and_used(model, folder, tmp_path):
    output, file = tmp_path / "u.jsonl", tmp_path / "km.npz"
    fit = writer.Fit(num_clusters=6, seed=2)
    what = {"layer": "1", "source": "kmeans"}
    write_units(model, [folder], output=output, fit=fit, **what)
    (tmp_path / "u.kmeans.npz").rename(file)
    assert {unit for line in lines(output) for unit in line["units"]} <= set(range(6))
    assert json.loads((tmp_path / "u.stats.json").read_text())["tensor"] == "block"
    again = tmp_path / "again.jsonl"
    write_units(model, [folder], output=again, kmeans_file=file, **what)
    assert again.read_text() == output.read_text()
    only = tmp_path / "only.npz"
    write_units(model, [folder], output=None, fit=fit, kmeans_file=only, **what)
    np.testing.assert_array_equal(kmeans.load(only).centroids[1], kmeans.load(file).centroids[1])
    with pytest.raises(kmeans.KMeansError, match="layer: the k-means file is for"):
        write_units(model, [folder], output=again, kmeans_file=file, layer=2, source="kmeans")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fit": writer.Fit()}, "--fit is for --source=kmeans"),
        ({"fit": writer.Fit(), "source": "kmeans", "shard": "0/2"}, "all of the input"),
        ({"source": "kmeans"}, "needs --kmeans=FILE, or --fit"),
        ({"output": None}, "--output is missing"),
        ({"shard": "2/2"}, "shard"),
        ({"format": "km", "form": "runs"}, "--deduplicate: a .km has one unit a frame"),
        ({"format": "km", "key": "name"}, "--key=name: a .km has no names"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, changes, message):
    settings = {"output": tmp_path / "u.jsonl", "layer": 2} | changes
    with pytest.raises(ValueError, match=message):
        write_units(None, [tmp_path], **settings)


def test_the_output_is_a_folder(tmp_path):
    with pytest.raises(outputs.OutputError, match="is a folder"):
        write_units(None, [tmp_path], output=tmp_path, layer=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory, compile_quickly):
    return write_run(tmp_path_factory.mktemp("run"), **{"teacher.init": "copy"})


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dinosr_jax", "units", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_the_command(run, model, folder, tmp_path):
    (tmp_path / "bad.wav").write_text("")
    done = command(
        run, folder, tmp_path / "bad.wav", "--layer=3", f"--output={tmp_path / 'u.jsonl'}",
        "--skip-bad", "--deduplicate", "--key=audio", f"--textgrid={tmp_path / 'grids'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = lines(tmp_path / "u.jsonl")
    assert [line["audio"] for line in found] == ["one", "two words é", "two"]
    units = np.repeat(found[0]["units"], found[0]["durations"]).tolist()
    assert units == of(model, folder / "a/one.wav", layer=3)
    assert "bit rate" in done.stdout and "1 left out" in done.stdout
    assert (tmp_path / "grids/a/one.TextGrid").exists() and "Trace" not in done.stderr


def test_the_command_writes_plain_lines(model, folder, tmp_path, monkeypatch):
    """And `evaluate units` reads them; through click, in this process."""
    from click.testing import CliRunner

    from dinosr_jax import cli
    from dinosr_jax.inference import pretrained as models

    monkeypatch.setattr(models, "load", lambda path, *, heads: model)
    rows = [f"{name}\t0\t0.48\tAA" for name in ("a/one", "b/two words é", "c/two")]
    (tmp_path / "phones.tsv").write_text("\n".join(["file\tstart_s\tend_s\tphone", *rows]))
    told = []
    for format in ("text", "jsonl"):
        output = tmp_path / f"u-{format}"
        arguments = [str(folder), "--layer=3", f"--output={output}", f"--format={format}"]
        done = CliRunner().invoke(cli.cli, ["units", "run", *arguments])
        assert done.exit_code == 0, done.output
        arguments = [str(output), f"--alignment={tmp_path / 'phones.tsv'}", "--tolerance=20"]
        done = CliRunner().invoke(cli.cli, ["evaluate", "units", *arguments])
        assert done.exit_code == 0, done.output
        told.append(done.output.replace(str(output), "FILE"))
    assert (tmp_path / "u-text").read_text().startswith("a/one\t") and told[0] == told[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layer=1",), "layer 1 has no codebook"),
        (("--layer=2", "--seed=3"), "--seed is for --fit"),
        (("--layer=2", "--format=km", "--deduplicate"), "--deduplicate: a .km"),
        (("--layer=1", "--source=kmeans", "--kmeans=README.md"), "not an .npz"),
    ],
)
def test_errors_are_one_line(model, folder, tmp_path, monkeypatch, flags, message):
    """Through click, in this process."""
    from click.testing import CliRunner

    from dinosr_jax import cli
    from dinosr_jax.inference import pretrained as models

    monkeypatch.setattr(models, "load", lambda path, *, heads: model)
    arguments = ["units", "run", str(folder), f"--output={tmp_path / 'u.jsonl'}", *flags]
    done = CliRunner().invoke(cli.cli, arguments)
    assert done.exit_code in (1, 2) and message in done.output
    assert "Traceback" not in done.output and list(tmp_path.iterdir()) == []


def test_units_are_contiguous_to_the_end():
    units = np.array([7, 7, 7, 3, 3, 0])
    found = writer.unit_intervals(units, hop_seconds=0.02, end=0.1333125)
    assert found == [(0.0, 0.06, "7"), (0.06, 0.1, "3"), (0.1, 0.1333125, "0")]
    text = textgrid.to_textgrid({"units": found}, end=0.1333125)
    ((name, spans),) = textgrid.interval_tiers(text, path="x")
    assert name == "units" and [span[:3] for span in spans] == found


def test_a_single_frame_and_frames_beyond_the_end():
    assert writer.unit_intervals(np.array([4]), hop_seconds=0.02, end=0.025) == [(0.0, 0.025, "4")]
    found = writer.unit_intervals(np.array([4, 4, 1]), hop_seconds=0.02, end=0.035)
    assert [interval.end for interval in found] == [0.035, 0.035]
