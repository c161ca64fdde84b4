"""Records of a run: what a kill leaves, what is no record, and very many of them."""

import json

import pytest

from dinosr_jax.training.logs import RunLog, read_records


def write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def line(step, **fields):
    return json.dumps({"step": step, "loss": 1.0, **fields}).encode()


def test_lines_that_are_no_records_are_left_out(tmp_path):
    deep, cut = b"[" * 100_000, line(5)[:-4]
    lines = [line(1), b"", b"\xff\xfe", b"[1]", b'{"loss": 1}', b'{"step": "2"}', deep, line(3)]
    path = write(tmp_path / "metrics.jsonl", lines)
    path.write_bytes(path.read_bytes() + cut)
    assert [record["step"] for record in read_records(path)] == [1, 3]


def test_of_very_many_every_kth_is_read_with_the_held_out_and_the_last(tmp_path):
    steps = range(1, 20_002)
    lines = [line(s, **({"eval_loss": 2.0} if s % 500 == 7 else {})) for s in steps]
    path = write(tmp_path / "metrics.jsonl", lines)
    found = read_records(path, at_most=100)
    assert 100 <= len(found) <= 145
    assert [r["step"] for r in found] == sorted({r["step"] for r in found})
    assert found[0]["step"] == 1 and found[-1]["step"] == 20_001
    assert sum("eval_loss" in record for record in found) == 40
    assert len(read_records(path)) == len(steps) == len(read_records(path, at_most=30_000))


def test_very_many_evaluations_are_thinned_too(tmp_path):
    path = write(tmp_path / "metrics.jsonl", [line(s, eval_loss=2.0) for s in range(3000)])
    assert len(read_records(path, at_most=50)) <= 102
    assert read_records(write(tmp_path / "none.jsonl", []), at_most=50) == []


def test_a_run_that_goes_on_drops_what_came_after(tmp_path):
    write(tmp_path / "metrics.jsonl", [line(1), line(2), line(3), b'{"step": 4, "lo'])
    log = RunLog(tmp_path, start_step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    found = read_records(log.path)
    assert [(r["step"], r["loss"]) for r in found] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    log.draw()
    assert log.figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("at_most", [None, 10])
def test_a_file_that_is_not_there_is_an_error(tmp_path, at_most):
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "metrics.jsonl", at_most=at_most)
