"""The report of a run: whole, in part, broken, imported; as a command too."""

import base64
import html
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dinosr_jax.cli import cli
from dinosr_jax.report import sections
from dinosr_jax.report.page import write_report
from dinosr_jax.report.run_files import ReportError, RunFiles
from tests.html_page import Page
from tests.report_runs import HOSTILE, write_evaluation, write_result, write_training

PARTS = ["curves", "phones", "layers", "utterance", "health", "setup"]


def read(written):
    return Page(written.path.read_text(encoding="utf-8"))


@pytest.fixture
def quick(monkeypatch):
    """Figures without drawing, where they are not what is tested."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "png")
    for name in ("drawing", "units", "utterance"):
        module = f"dinosr_jax.report.figures.{name}.to_png"
        monkeypatch.setattr(module, lambda figure, dpi=0: buffer.getvalue())


def test_a_whole_report_answers_first(evaluated_report):
    run, written = evaluated_report
    page = read(written)
    assert list(page.parts)[1:] == PARTS
    lead = page.text()
    assert f"Report of {run.name}" in lead
    assert "4 layers of width 128, with 3 codebooks of 64 codewords on layers 2 to 4" in lead
    assert "Trained for 800 updates on audio_folder (train)." in lead
    assert "better than k-means on MFCC" in lead and page.figures[0] == "answer"
    assert "130 utterances, 6.4 minutes" in lead and "9 good" in lead
    assert written.problems == [] and len(written.answer) == 4
    assert "The layer was chosen while training, on validation." in lead


def test_every_figure_is_in_the_page_and_beside_it(evaluated_report):
    _, written = evaluated_report
    page = read(written)
    names = {path.stem for path in written.figures}
    assert set(page.figures) == {name for name in names if not name.endswith("-narrow")}
    assert len(page.figures) == len(set(page.figures))
    curves = {name for name in names if name.startswith("curve-")}
    assert len(curves) == 16
    assert names - curves == {
        *("answer", "phones-01-codebook", "phones-02-codebook", "phones-03-codebook"),
        *("phones-04-mfcc", "layers-units-pnmi", "layers-units-phone-purity"),
        *("layers-units-cluster-purity", "layers-frames-accuracy", "layers-recognition-per"),
        *(f"layers-abx-{k}" for k in range(1, 5)),
        *("utterance", "utterance-narrow", "codes-follow-by-codebook"),
    }
    kinds = [link.partition(",")[0] for link in page.loaded if link.startswith("data:")]
    assert kinds.count("data:audio/wav;base64") == 1
    embedded = [link.partition(",")[2] for link in page.loaded if "image/png" in link]
    assert {base64.b64decode(png) for png in embedded} == {p.read_bytes() for p in written.figures}
    for path in written.figures:
        with Image.open(path) as image:
            image.verify()


def test_it_loads_nothing_and_holds_no_markup_of_others(evaluated_report):
    page = read(evaluated_report[1])
    assert all(link.startswith(("#", "data:")) for link in page.loaded)
    assert HOSTILE[0] in page.text("utterance")  # as text
    html = evaluated_report[1].path.read_text()
    assert "<script" not in html and "http" not in re.sub(r'base64,[^"]*|http-equiv', "", html)


def test_the_page_says_what_it_may_load_and_holds_nothing_else(evaluated_report):
    """Its policy allows its own styles and what is written in it; a browser blocks the rest."""
    html = evaluated_report[1].path.read_text(encoding="utf-8")
    tags = Page(html).tags
    policies = [a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert len(policies) == 1 and rules == {
        "default-src": "'none'", "img-src": "data:", "media-src": "data:",
        "style-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    names = [name for name, _ in tags]
    first = names.index("meta") + 1  # the encoding comes first
    assert tags[first][1].get("http-equiv") and "meta" in names[:first]
    allowed = {"img": "data:image/", "source": "data:image/", "audio": "data:audio/"}
    for name, attributes in tags:
        assert name not in ("script", "iframe", "object", "embed", "form", "base", "video"), name
        assert not [a for a in attributes if a.startswith("on")], attributes
        for key in ("src", "srcset", "data", "poster", "background"):
            if key in attributes:
                assert attributes[key].startswith(allowed[name]), (name, key)
        if name == "link":
            assert (attributes["rel"], attributes["href"]) == ("icon", "data:,")
        if name == "a":
            assert attributes["href"].startswith("#")
    assert "@import" not in html and "url(" not in html
    assert {"img", "source", "audio", "style", "link"} <= set(names)


def test_setup_says_what_differs_and_how_to_repeat_it(evaluated_report):
    run, written = evaluated_report
    text = read(written).text("setup")
    assert "10 fields differ from the published recipe" in text
    assert "model.codebook_size 64 256" in text and "data_dir data/prepared/embedded" in text
    assert "--config.model.num_codebooks=3" in text
    assert "evaluate run RUN DATA --task=frames" in text
    assert "dinosr_jax 0.1.0, jax 0.10.2" in text and "is not recorded" in text


def test_a_run_without_evaluations_says_how_to_make_them(tmp_path, quick):
    run = write_training(tmp_path / "run", steps=400)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"num_steps": 500}))
    page = read(write_report(run))
    assert "400 of 500 updates on audio_folder (train) so far" in page.text()
    assert "had a PNMI of 0.303" in page.text() and "not measured" in page.text()
    command = f"python -m dinosr_jax evaluate run {run} data/prepared/embedded"
    assert command in page.text() and command in page.text("phones")
    for task in ("units", "frames", "recognition"):
        assert f"--task={task}" in page.text("layers")
    assert "evaluate abx" in page.text("layers") and "no utterance" in page.text("utterance")
    assert len([name for name in page.figures if name.startswith("curve-")]) == 16


def test_an_imported_run_has_no_curves_and_says_so(tmp_path, quick):
    run = write_training(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    (run / "config.py").write_text("")
    (run / "checkpoints" / "400000").mkdir(parents=True)
    page = read(write_report(run))
    assert "Imported from another project's checkpoint of 400,000 updates." in page.text()
    assert "Nothing is recorded of the training" in page.text("curves")
    assert page.figures == [] and "9 not known" in page.text()


def test_a_result_alone_is_a_report(tmp_path, quick):
    write_evaluation(tmp_path / "run")
    written = write_report(tmp_path / "run")
    page = read(written)
    assert "answer" in page.figures and "config.json is missing" in page.text()
    assert "Not known" in page.text("setup")


def test_other_sizes(tmp_path, quick):
    run = write_training(tmp_path / "run", layers=24, books=24, size=17, steps=5000, every=100)
    write_evaluation(run, layers=24, books=24, size=17, clarity=0.1)
    page = read(write_report(run))
    assert "24 codebooks of 17 codewords on layers 1 to 24" in page.text()
    assert "worse than k-means on MFCC" in page.text()
    assert "update 5,000 by now; measure it again" in page.text()
    assert sum(name.endswith("-codebook") and "phones" in name for name in page.figures) == 24


def test_broken_files_are_said_on_top_and_the_rest_is_shown(tmp_path, quick):
    run = write_evaluation(write_training(tmp_path / "run", steps=50))
    (run / "evaluation" / "abx.json").write_text('{"kind": "abx", ')
    (run / "evaluation" / "utterance.npz").write_bytes(b"cut")
    rows = [{"system": "codebook", "layer": k, "accuracy": a} for k, a in ((1, None), (2, "x"))]
    write_result(run, "frames", "frames", rows)
    written = write_report(run)
    page = read(written)
    assert len(written.problems) == 2 and "Not all could be read" in page.text()
    assert "abx.json" in page.text() and "utterance.npz" in page.text()
    assert "Not measured" in page.text("layers") and "layers-units-pnmi" in page.figures
    assert "layers-frames-accuracy" not in page.figures


def test_abx_of_the_same_items_is_one_picture(tmp_path, quick):
    run = write_training(tmp_path / "run", steps=50)
    at = {"speaker": "within", "context": "any", "cells": 9}
    rows = [{"system": "codebook", "layer": k, "error": 0.1 * k, **at} for k in (1, 2)]
    mfcc = [{"system": "mfcc", "layer": None, "error": 0.3, **at}]
    for name, some, data in (("a", rows, "x"), ("b", mfcc, "x"), ("c", mfcc, "other")):
        write_result(run, name, "abx", some, data=data)
    page = read(write_report(run))
    abx = [name for name in page.figures if "abx" in name]
    assert abx == ["layers-abx-1", "layers-abx-1-2"]
    assert "3 of 3 rows" in page.text("layers") and "1 of 1 rows" in page.text("layers")


@pytest.mark.parametrize("counts", [None, "x", [[1]], [[1, 2], [3]], {"a": 1}])
def test_counts_that_are_no_table_are_left_out(tmp_path, quick, counts):
    run = write_training(tmp_path / "run", steps=50)
    row = {"system": "codebook", "layer": 3, "pnmi": 0.2, "phone_purity": "bad", "counts": counts}
    row |= {"cluster_purity": None, "perplexity": 3, "units_in_use": 3, "num_units": 5}
    for name, phones in (("a", ["x"] * 7), ("b", None)):
        write_result(run, name, "units", [row], phones=phones)
    page = read(write_report(run))
    assert "answer" in page.figures and "is not counted" in page.text("phones")


def test_figures_of_before_go_and_files_of_others_stay(tmp_path):
    run = write_training(tmp_path / "run", steps=20)
    folder = tmp_path / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "mine.png")
    before = {path.name for path in write_report(run, folder).figures}
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 4.0}) + "\n")
    after = {path.name for path in write_report(run, folder).figures}
    assert after == {"curve-loss.png"} < before
    assert {path.name for path in folder.iterdir()} == {"curve-loss.png", "mine.png", "report.html"}


def test_no_network_and_no_data_are_loaded(tmp_path, quick, monkeypatch):
    for name in ("tensorflow", "soundfile", "librosa", "torch", "sklearn", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, name, None)
    write_report(write_training(tmp_path / "run", steps=20))


def test_the_command(tmp_path, quick):
    run = write_evaluation(write_training(tmp_path / "run", steps=50))
    (run / "evaluation" / "frames.json").write_text("{")
    result = CliRunner().invoke(cli, ["report", str(run), f"--output={tmp_path / 'out'}"])
    assert result.exit_code == 0, result.output
    assert "better than k-means on MFCC" in result.stdout
    assert f"{tmp_path}/out/report.html: " in result.stdout and "figures" in result.stdout
    assert result.stderr.startswith("warning: ") and "frames.json" in result.stderr
    assert (tmp_path / "out" / "report.html").exists() and not (run / "report").exists()


def test_errors_of_the_command_are_one_line(tmp_path, quick):
    (tmp_path / "file").write_text("")
    run = write_training(tmp_path / "run", steps=20)
    cases = (
        ([str(tmp_path / "none")], "is not there"),
        ([str(tmp_path)], "is no run"),
        ([str(run), f"--output={tmp_path / 'file'}"], "cannot be written"),
    )
    for arguments, said in cases:
        result = CliRunner().invoke(cli, ["report", *arguments])
        assert result.exit_code == 1 and result.stderr.startswith("Error: ")
        assert said in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_an_error_and_leaves_what_was_there(tmp_path, quick, monkeypatch):
    run = write_training(tmp_path / "run", steps=20)
    before = write_report(run).path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ReportError, match="No space left on device"):
        write_report(run)
    assert (run / "report" / "report.html").read_bytes() == before
    assert not [path for path in (run / "report").iterdir() if path.name.startswith(".")]


def test_frames_of_any_convolutions_or_the_published_ones():
    run = lambda layers: RunFiles(
        *(None, {"model": {"conv_layers": layers}}, [], 0, [], None, [], [], [])
    )
    assert sections.frame_timing(run([[8, 10, 5], [8, 3, 2]])) == (20, 10)
    for broken in (None, "x", [[1, 2]], [["a", "b", "c"]], [[1, 0, 0]]):
        assert sections.frame_timing(run(broken)) == (400, 320)


def test_superb_s_tasks_stand_side_by_side(tmp_path, quick):
    run = write_training(tmp_path / "run")
    systems = (("codebook", "weighted", 0.971), ("mfcc", None, 0.813))
    rows = [{"system": s, "layer": at, "accuracy": a, "learning_rate": 0.1} for s, at, a in systems]
    write_result(run, "keywords", "keywords", rows)
    text = html.unescape(write_report(run).path.read_text())
    table = text[text.index("SUPERB's tasks, on frozen features") :].split("</table>")[0]
    assert "keyword spotting (accuracy)" in table and "97.1%" in table and "81.3%" in table
    assert table.count("keyword spotting") == 1 and "slot filling" not in table


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        ("dinosr", "with 3 codebooks of 64 codewords on layers 2 to 4."),
        ("spidr", "on layers 2 to 4, each predicted from that layer of the student (SpidR)."),
        ("data2vec", "width 128, trained to regress the mean of layers 2 to 4."),
    ],
)
def test_the_objective_is_said_and_the_published_run_is_dinosr_s(objective, text, tmp_path, quick):
    run = write_training(tmp_path / "run", steps=4_000, every=200)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"objective": objective}))
    page = write_report(run).path.read_text()
    assert text in page
    assert ("Grey: the published LibriSpeech run" in page) == (objective == "dinosr")
