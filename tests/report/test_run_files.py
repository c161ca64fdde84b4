"""Files of a run, whole, in part and broken: what is broken is said, and the rest is read."""

import json
import math

import numpy as np
import pytest

from dinosr_jax.report.run_files import ReportError, read_run
from tests.report_runs import write_evaluation, write_result, write_training, write_utterance

ROWS = [{"system": "mfcc", "layer": None, "accuracy": 0.5}]


@pytest.fixture
def run(tmp_path):
    run = write_training(tmp_path / "run", steps=100)
    (run / "evaluation").mkdir()
    return run


def test_a_whole_run(tmp_path):
    run = read_run(write_evaluation(write_training(tmp_path / "run")))
    assert run.problems == [] and len(run.records) == run.num_lines == 80
    assert sorted(r["kind"] for r in run.results) == ["abx", "frames", "recognition", "units"]
    assert run.codebook_names() == ["layer 2", "layer 3", "layer 4"]
    assert run.utterance.name == "asterisk_en/activated"
    assert run.utterance.codes.shape[0] == 3 and run.last_step() == 800


@pytest.mark.parametrize("there", ["config.json", "metrics.jsonl", "evaluation"])
def test_any_part_of_a_run_is_enough(tmp_path, there):
    whole = write_evaluation(write_training(tmp_path / "whole"))
    part = tmp_path / "part"
    part.mkdir()
    (whole / there).rename(part / there)
    read_run(part)


def test_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="is no run: it has neither config.json"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="is not there"):
        read_run(tmp_path / "none")


def test_metrics_of_a_run_that_was_killed(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace('"loss": ', '"loss": NaN, "was": ')
    path.write_text("\n".join(lines)[:-40])
    found = read_run(run)
    assert len(found.records) == 9 and math.isnan(found.records[3]["loss"])
    assert found.problems == []


def test_metrics_that_are_none_are_said(run):
    (run / "metrics.jsonl").write_bytes(b"\x00\x01 nothing\n" * 5)
    (problem,) = read_run(run).problems
    assert "no line that is a record" in problem


def test_very_many_records_are_thinned_out(run):
    lines = (json.dumps({"step": step, "loss": 1.0}) for step in range(30_000))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = read_run(run)
    assert found.num_lines == 30_000 and 2000 < len(found.records) < 5000
    assert found.last_step() == 29_999


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\x00", "[" * 100_000])
def test_a_broken_configuration_is_said_and_left_out(run, text):
    (run / "config.json").write_text(text)
    found = read_run(run)
    assert found.config == {} and "config.json" in found.problems[0]
    assert found.codebook_names()[1] == "codebook 1" and found.whole("model", "width") is None


@pytest.mark.parametrize("model", [None, [], "x", {"num_layers": "4"}, {"num_layers": 1}])
def test_a_configuration_of_other_types_is_not_known(run, model):
    config = {"model": model, "num_steps": None}
    if isinstance(model, dict):
        config["model"] = {"num_codebooks": 3} | model
    (run / "config.json").write_text(json.dumps(config))
    assert read_run(run).codebook_names()[0] == "codebook 0"


@pytest.mark.parametrize(
    "text",
    ["", '{"kind": ', '{"kind": "units"}', '{"kind": "other", "rows": []}', "\xff", "[" * 100_000],
)
def test_a_broken_result_is_said_and_the_others_are_read(run, text):
    write_result(run, "b", "frames", ROWS)
    (run / "evaluation" / "a.json").write_text(text)
    (run / "evaluation" / "notes.json").write_text('{"something": "else"}')
    found = read_run(run)
    assert [result["kind"] for result in found.results] == ["frames"]
    (problem,) = found.problems
    assert "a.json" in problem and len(problem) < 600


def test_the_newest_result_comes_first(run):
    for name, date in (("a", "2026-01-02"), ("b", "2026-03-01"), ("c", "2026-01-01")):
        write_result(run, name, "frames", ROWS, date=date, title=name)
    assert [result["title"] for result in read_run(run).of_kind("frames")] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"waveform": np.zeros((2, 16_000), np.float32)}, "not one row"),
        ({"waveform": np.full(16_000, np.nan, np.float32)}, "finite"),
        ({"waveform": np.zeros(10, np.float32)}, "expected 0.05"),
        ({"waveform": np.zeros(16_000 * 61, np.float32)}, "expected 0.05"),
        ({"codes": np.zeros((5, 184), int)}, "do not fit"),
        ({"codes": np.zeros(184, int)}, "do not fit"),
        ({"codes": np.zeros((3, 184))}, "Cannot cast"),
        ({"phone_ends": np.asarray([1.0])}, "phones"),
        ({"phone_labels": np.asarray([object()])}, "pickle"),
    ],
)
def test_an_utterance_that_does_not_fit_is_said(run, changed, said):
    path = run / "evaluation" / "utterance.npz"
    write_utterance(path, np.random.default_rng(0), layers=[2, 3, 4], size=64, **changed)
    found = read_run(run)
    (problem,) = found.problems
    assert found.utterance is None and said in problem and "evaluate run" in problem


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", b"text"])
def test_an_utterance_that_is_no_archive_is_said(run, content):
    (run / "evaluation" / "utterance.npz").write_bytes(content)
    assert "utterance.npz cannot be used" in read_run(run).problems[0]


def test_an_archive_that_is_compressed_is_not_unpacked(run):
    path = run / "evaluation" / "utterance.npz"
    np.savez_compressed(path, waveform=np.zeros(1_000_000, np.float32))
    (problem,) = read_run(run).problems
    assert path.stat().st_size < 10_000 and "cannot be used: it is compressed" in problem


def test_an_archive_without_a_field_is_said(run):
    np.savez(run / "evaluation" / "utterance.npz", waveform=np.zeros(16_000))
    assert "no field 'id'" in read_run(run).problems[0]
