"""Files of units of several tools, what is said beside them, and broken ones."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data.text_files import TextError
from dinosr_jax.inference.units import quantise, statistics
from dinosr_jax.inference.units.unit_file import read_units, to_line
from dinosr_jax.inference.units.writer import Style, UnitSummary, _describe


def lines(*entries):
    return "".join(json.dumps(entry) + "\n" for entry in entries)


@pytest.mark.parametrize("key", ["file", "name", "fileid", "audio"])
@pytest.mark.parametrize("form", ["frames", "runs"])
def test_what_tools_write(tmp_path, key, form):
    """Also what is written here, repeated units with durations, and gzip."""
    codes = {"a/x": np.array([5, 5, 5, 2, 5], np.int32), "y": np.array([0], np.int32)}
    text = "".join(to_line(name, c, key=key, form=form) for name, c in codes.items())
    plain, packed = tmp_path / "u.jsonl", tmp_path / "u-layer05_0_4.jsonl.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode(), mtime=0))
    for path, layer in ((plain, None), (packed, 5)):
        found = read_units(path)
        assert {id_: u.tolist() for id_, u in found.utterances.items()} == {
            "a/x": [5, 5, 5, 2, 5], "y": [0]
        }  # fmt: skip
        assert found[2:] == (6, "largest", 0.02, layer, None, "", None)


def test_plain_lines(tmp_path):
    """What is written here, with names that need care, and gzip."""
    codes = {"a/x y": [5, 5, 2], "{1 2": [0, 11], "e\u0301": [3], "nothing": []}
    how = {"key": "file", "form": "frames", "format": "text"}
    text = "".join(to_line(name, np.array(c, np.int32), **how) for name, c in codes.items())
    assert text.startswith("a/x y\t5 5 2\n{1 2\t0 11\n")
    plain, packed = tmp_path / "u.txt", tmp_path / "u-layer05_0_4.txt.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.replace("\n", "\r\n").encode(), mtime=0))
    for path, layer in ((plain, None), (packed, 5)):
        found = read_units(path)
        assert {id_: units.tolist() for id_, units in found.utterances.items()} == {
            "a/x y": [5, 5, 2], "{1 2": [0, 11], "\u00e9": [3], "nothing": []
        }  # fmt: skip
        assert found[2:5] == (12, "largest", 0.02) and found.layer == layer
    plain.write_text("{1 2\t0 11\n")
    assert list(read_units(plain).utterances) == ["{1 2"]


def test_plain_lines_of_runs_are_refused(beside):
    """Where what is beside says so: without durations they have no times."""
    folder = beside(form="runs", format="text", layers=[2])
    (folder / "u.txt").write_text("x\t1\n")
    with pytest.raises(TextError, match="u.txt: found one unit a run.*without --deduplicate"):
        read_units(folder / "u.txt")
    read_units(folder / "u.jsonl")
    for said in ({"form": "frames", "format": "text"}, {"form": "runs", "format": "jsonl"}):
        beside(**said)
        assert read_units(folder / "u.txt").utterances["x"].tolist() == [1]


def test_what_is_given(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_text(lines({"file": "x", "units": [3], "more": None}))
    found = read_units(path, num_units=4, unit_seconds=0.04)
    assert (found.num_units, found.known, found.unit_seconds) == (4, "given", 0.04)
    with pytest.raises(TextError, match="line 1: x: found unit 3, expected 0 to 2"):
        read_units(path, num_units=3)


@pytest.fixture
def beside(tmp_path):
    """Writes units of layers 2 and 12, and what is written beside them."""
    said = {
        "source": "head",
        "layers": [2, 12],
        "frame_rate": 25.0,
        "checkpoint": "runs/x",
        "step": 800,
        "statistics": {"2": {"num_units": 64}, "12": {"num_units": 256}},
    }
    for layer in ("02", "12"):
        (tmp_path / f"u-layer{layer}.jsonl").write_text(lines({"file": "x", "units": [1]}))
    (tmp_path / "u.jsonl").write_text(lines({"file": "x", "units": [1]}))

    def write(**changed):
        (tmp_path / "u.stats.json").write_text(json.dumps(said | changed))
        return tmp_path

    return write


def test_what_is_said_beside(beside):
    folder = beside()
    for name, layer, size in (("u-layer02.jsonl", 2, 64), ("u-layer12.jsonl", 12, 256)):
        found = read_units(folder / name)
        assert found[2:] == (size, "stats", 0.04, layer, "head", "runs/x", 800)
    assert read_units(folder / "u-layer02.jsonl", num_units=64).known == "given"
    found = read_units(folder / "u.jsonl")  # of which of the two layers?
    assert (found.layer, found.num_units, found.known) == (None, 2, "largest")
    beside(layers=[12])
    assert read_units(folder / "u.jsonl")[2:6] == (256, "stats", 0.04, 12)


def test_what_units_writes_beside_is_understood(tmp_path):
    """The side file of `units`, as it describes itself."""

    class Network:
        fingerprint, step, path = "f", 7, Path("runs/x")

        def fingerprint_of(self, network):
            return f"{self.fingerprint} {network}"

        class config:  # noqa: N801
            class model:  # noqa: N801
                conv_layers, width = ((8, 10, 5), (8, 8, 8), (8, 8, 8)), 8

    plan = quantise.Plan(Network(), "codebook", (3,), "ffn", "teacher", None, None, 3, 16)
    counts = np.arange(16)
    stats = statistics.describe(counts, counts, frame_rate=50.0)
    summary = UnitSummary((), {3: stats}, 1, 1.0, ())
    text = json.dumps(_describe(summary, plan, Style()))
    (tmp_path / "u.stats.json").write_text(text)
    (tmp_path / "u.jsonl").write_text(lines({"file": "x", "units": [1]}))
    assert read_units(tmp_path / "u.jsonl")[2:] == (16, "stats", 0.02, 3, "codebook", "runs/x", 7)


def test_what_is_said_beside_and_does_not_fit(beside):
    folder = beside()
    with pytest.raises(
        TextError, match="u.stats.json: found unit_seconds 0.04, but --unit_seconds"
    ):
        read_units(folder / "u-layer02.jsonl", unit_seconds=0.02)
    with pytest.raises(TextError, match="found num_units 64, but --num_units=65 was given"):
        read_units(folder / "u-layer02.jsonl", num_units=65)
    beside(statistics={"12": {"num_units": 256}})
    with pytest.raises(TextError, match="no statistics of layer 2 .*expected those of u-layer02"):
        read_units(folder / "u-layer02.jsonl")
    beside(frame_rate=0)
    with pytest.raises(TextError, match="u.stats.json: found no statistics .* write both again"):
        read_units(folder / "u-layer02.jsonl")
    (folder / "u.stats.json").write_text('{"layers"')
    with pytest.raises(TextError, match="u.stats.json: found no statistics"):
        read_units(folder / "u.jsonl")
    beside(layers=[12], statistics={"12": {"num_units": 1}})
    with pytest.raises(TextError, match="found unit 1, expected 0 to 0"):
        read_units(folder / "u.jsonl")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ('{"file": "x", "units": [1, 2', "line 1: found .*expected a JSON object"),
        ("[1]\n", "line 1: found '.1.', expected a JSON object"),
        ('{"units": [1]}\n', "found the fields units; expected one of file, name, fileid, audio"),
        ('{"file": 3, "units": [1]}\n', "expected one of file"),
        (lines({"file": "x"}), "line 1: x: units: found None, expected a list of whole numbers"),
        (lines({"file": "x", "units": [1.5]}), "units: found .1.5., expected a list of whole"),
        (lines({"file": "x", "units": [True]}), "expected a list of whole numbers"),
        (lines({"file": "x", "units": "1 2"}), "found 1 2, expected a list of whole numbers"),
        (lines({"file": "x", "units": [-1, 2]}), "units: found -1 to 2, expected 0 to 2147483647"),
        (lines({"file": "x", "units": [10**30]}), "expected 0 to 2147483647"),
        (lines({"file": "x", "units": [10**9]}), "found unit 1000000000, expected 0 to 99999"),
        (lines({"file": "x", "units": [1], "durations": [1, 2]}), "1 units and 2 durations"),
        (
            lines({"file": "x", "units": [1], "durations": [0]}),
            "durations: found 0 to 0, expected 1",
        ),
        (lines({"file": "x", "units": [1], "durations": [10**9]}), "found 1000000000 frames"),
        ("1 2 3\nx\t1\n", "line 1: found '1 2 3', units without a name .a .km.; expected name"),
        ("7\n", "line 1: found '7', units without a name"),
        ("\n\nx\t1 2\ny 1 2\n", "line 4: found 'y 1 2', expected a name, a tab, and whole"),
        ("x\t1 -2\n", "line 1: found .* expected a name, a tab"),
        ("x\t1\t2\n", "line 1: found .* expected a name, a tab"),
        ("x\t1\n\t2\n", "line 2: found .* expected a name, a tab"),
        ("x\t1\nx\t\u0662\n", "line 2: found .* expected a name, a tab"),
        ("x\t" + "9" * 5000 + "\n", "line 1: found .* expected a name, a tab"),
        ("x\t1\n" + lines({"file": "y", "units": [1]}), "line 2: found .* expected a name, a tab"),
        (lines({"file": "y", "units": [1]}) + "x\t1\n", "line 2: found .* expected a JSON object"),
        ("x\t99999999999\n", "x: units: found .*, expected 0 to 2147483647"),
        ("x\t1\nx\t1\n", "line 2: found x, which is in line 1 too"),
        (
            lines(*({"file": f, "units": [1]} for f in "xyx")),
            "line 3: found x, which is in line 1 too; expected every utterance once",
        ),
    ],
)
def test_broken_files(tmp_path, text, expected):
    path = tmp_path / "u.jsonl"
    path.write_text(text)
    with pytest.raises(TextError, match=expected) as found:
        read_units(path)
    assert str(found.value).startswith(str(path)) and "\n" not in str(found.value)
