"""SUPERB's tasks by command, on real words in the published layouts, with a tiny network."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rapidfuzz.distance import Levenshtein

from dinosr_jax.cli import cli
from dinosr_jax.data.vocabulary import letters
from dinosr_jax.evaluation import result_files
from tests.spoken_corpora import write_intents, write_keywords, write_slots, write_transcribed
from tests.tiny_runs import write_run

pytestmark = pytest.mark.usefixtures("compile_quickly", "compile_once")


@pytest.fixture(scope="module")
def run(tmp_path_factory, compile_quickly):
    return write_run(tmp_path_factory.mktemp("run"))


def evaluate(*arguments, fails=False):
    found = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert "Traceback" not in found.output
    assert (found.exit_code != 0) == fails, (found.output, found.exception)
    return found.output


def result_of(run, kind):
    result = result_files.read_result(run / "evaluation" / f"{kind}.json")
    rows = {row["system"]: row for row in result["rows"]}
    assert list(rows) == ["codebook", "mfcc", "untrained"] and result["step"] == 7
    assert [row["layer"] for row in result["rows"]] == ["weighted", None, "weighted"]
    for row in result["rows"]:
        assert len(row["weights"]) == (1 if row["system"] == "mfcc" else 4)
        assert row["learning_rate"] in {float(rate) for rate in row[valid_of(row)]}
    return result, rows


def valid_of(row):
    (name,) = (name for name in row if name.startswith("valid_"))
    return name


@pytest.mark.slow
def test_keywords(run, tmp_path):
    root, test = write_keywords(tmp_path)
    (root / "no" / "09_nohash_0.wav").write_bytes(b"no audio")
    cache = tmp_path / "cache"
    options = ("--num_steps=120", "--eval_steps=60", "--learning_rates=0.01,1e-7", "--batch_size=8")
    output = evaluate("keywords", run, tmp_path, *options, f"--cache={cache}")
    result, rows = result_of(run, "keywords")
    # 4 classes, of which the most frequent is 8 of 20 recordings of the test set
    assert rows["mfcc"]["accuracy"] >= 0.8 and rows["mfcc"]["learning_rate"] == 0.01
    valid = rows["mfcc"]["valid_balanced_accuracy"]
    assert set(valid) == {"0.01", "1e-07"} and valid["0.01"] > valid["1e-07"]
    assert "20 recordings" in result["data"] and str(test) in result["data"]
    assert "1 left out" in result["data"] and "accuracy" in output
    skipped = (run / "evaluation" / "keywords_skipped.tsv").read_text()
    assert "no/09_nohash_0.wav" in skipped
    files = sorted(cache.rglob("*.npy"))
    # 39 - 1 - 3 words and 5 of noise, 12 and 3, 16 and 4, of three systems
    everything = 4 * 10 - 1 - 4 + 5 + 3 + 16 + 4
    assert len(files) == 3 * everything
    assert {np.load(path).dtype for path in files} == {np.dtype(np.float16)}
    files[0].write_bytes(files[0].read_bytes()[:200])  # cut, as by a full disk
    times = {path: path.stat().st_mtime_ns for path in files[1:]}
    evaluate("keywords", run, tmp_path, "--num_steps=1", f"--cache={cache}")
    assert len(np.load(files[0])) in (1, 4)
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == times


@pytest.mark.slow
def test_intents_with_features_in_a_temporary_folder(run, tmp_path, monkeypatch):
    write_intents(tmp_path)
    options = ("--num_steps=40", "--eval_steps=40", "--learning_rates=0.01", "--batch_size=8")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    output = evaluate("intent", run, tmp_path, *options, "--max_memory=1e-9")
    assert "they are kept in" in output and list((tmp_path / "tmp").iterdir()) == []
    result, rows = result_of(run, "intent")
    assert rows["mfcc"]["accuracy"] >= 0.75  # chance is 0.25
    evaluate("intent", run, tmp_path, *options)
    assert result_of(run, "intent")[0]["rows"] == result["rows"]


@pytest.mark.very_slow
def test_slots(run, tmp_path):
    write_slots(tmp_path)
    options = (
        *("--num_steps=150", "--eval_steps=50", "--learning_rates=0.02", "--batch_size=12"),
        *("--project_width=32", "--lstm_width=24", "--lstm_layers=1", "--dropout=0.1"),
        "--time_mask_width=3",
    )
    evaluate("slots", run, tmp_path, *options)
    result, rows = result_of(run, "slots")
    # nothing found is an F1 of 0 and a CER of 1
    assert rows["mfcc"]["f1"] > 0.7 and rows["mfcc"]["cer"] < 0.6, rows
    assert "F1 of slot types" in result["rule"]


@pytest.mark.very_slow
def test_asr_and_its_emissions(run, tmp_path):
    source, data, emissions = (tmp_path / name for name in ("source", "data", "emissions"))
    write_transcribed(source)
    table = source / "transcripts.tsv"
    table.write_text(table.read_text().replace("two eight", "2 eight"))  # no letter
    prepared = CliRunner().invoke(cli, ["prepare", f"--source={source}", f"--data_dir={data}"])
    assert prepared.exit_code == 0, prepared.output
    options = (
        *("--num_steps=120", "--eval_steps=60", "--learning_rates=0.02", "--project_width=16"),
        *("--lstm_width=16", "--lstm_layers=1", "--time_mask_width=2", f"--emissions={emissions}"),
    )
    evaluate("asr", run, data, *options)
    result, rows = result_of(run, "asr")
    assert rows["mfcc"]["wer"] < 0.5 and rows["mfcc"]["cer"] < 0.4  # nothing heard is 1
    assert "15 % of train" in result["data"] and "no symbol" in result_skipped(run)
    texts = dict(line.split("\t")[:2] for line in table.read_text().splitlines()[1:])
    tested = {Path(name).stem: text for name, text in texts.items() if name.startswith("test")}
    tested = {name: text for name, text in tested.items() if "2" not in text}
    paths = sorted(emissions.glob("*.npy"))
    assert [path.stem for path in paths] == sorted(tested) and len(paths) >= 3
    errors = total = 0
    for path in paths:
        array = np.load(path)
        assert array.shape == ((16_000 - 400) // 320 + 1, 32) and array.dtype == np.float32
        np.testing.assert_allclose(np.exp(array).sum(axis=1), 1, rtol=1e-4)
        best = array.argmax(axis=1)
        labels = [c for i, c in enumerate(best) if c and (i == 0 or c != best[i - 1])]
        said = tested[path.stem].upper().split()
        errors += Levenshtein.distance(said, letters().decode(labels).split())
        total += len(said)
    assert rows["codebook"]["wer"] == pytest.approx(errors / total)

    phones = "TWO T UW1\nEIGHT EY1 T\nTODAY T AH0 D EY1\n"
    (tmp_path / "lexicon.txt").write_text(phones)
    options = ("--num_steps=60", "--eval_steps=30", "--learning_rates=0.01", "--stress=keep")
    lexicon = f"--lexicon={tmp_path / 'lexicon.txt'}"
    evaluate("recognition", run, data, *options, lexicon, f"--cache={tmp_path / 'cache'}")
    result, rows = result_of(run, "recognition")
    assert rows["mfcc"]["per"] < 0.5 and "lexicon.txt" in result["data"]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3 * 16  # the text with a 2 as well


def result_skipped(run):
    return (run / "evaluation" / "asr_skipped.tsv").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["keywords", "RUN", "nowhere"], "no such folder"),
        (["intent", "RUN", "nowhere"], "train_data.csv: No such file"),
        (["slots", "RUN", "nowhere"], "slots.txt: No such file"),
        (["keywords", "RUN", "nowhere", "--learning_rates=x"], "--learning_rates: found 'x'"),
        (["keywords", "other", "nowhere", "--output=o"], "other: no such file or folder"),
    ],
)
def test_wrong_commands_are_one_line(run, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    text = evaluate(*(str(run) if word == "RUN" else word for word in arguments), fails=True)
    assert expected in " ".join(text.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "command"), [("ks", "keywords"), ("ic", "intent"), ("sf", "slots"), ("asr", "asr")]
)
def test_recipes_have_every_number(run, tmp_path, monkeypatch, name, command):
    """The settings that SUPERB's recipe gives are those of its table."""
    from dinosr_jax.evaluation.superb import systems

    given = {}
    monkeypatch.setattr(systems, "evaluate", lambda *a, **k: given.update(k) or [])
    monkeypatch.setattr(systems, "summary", lambda rows, kind: "")
    readers = ("keywords.read_keywords", "intents.read_intents", "slots.read_slots")
    for name_of in (*readers, "letters.read_letters", "letters.spelt"):
        monkeypatch.setattr(f"dinosr_jax.evaluation.superb.{name_of}", lambda *a, **k: None)
    monkeypatch.setattr("dinosr_jax.cli.superb.check_splits", lambda *a, **k: None)
    config = Path(__file__).parents[3] / f"configs/evaluation/superb_{name}.py"
    evaluate(command, run, tmp_path, f"--config={config}", "--batch_size=7")
    settings = given["options"].settings
    assert settings.num_steps == 200_000 and settings.learning_rates == (1e-4,)
    assert settings.batch_size == 7 and settings.clip_norm == 1
    assert settings.eval_steps == {"ks": 4000, "ic": 4000}.get(name, 2000)
    recurrent = name in ("sf", "asr")
    assert settings.project_width == (1024 if recurrent else 256)
    assert settings.lstm_layers == (2 if recurrent else 0)
    if recurrent:
        assert settings.lstm_width == 1024 and settings.dropout == 0.2
        share = 0.04 if name == "sf" else 0.0
        assert tuple(settings.augment) == (5, 4, 50, 2, 40, share)
    assert json.dumps(settings._asdict())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("config.num_steps = 0", "num_steps: 0 is not in the range x>=1"),
        ("config.batch_size = 3.5", "batch_size: '3.5' is not a valid integer"),
        ("config.dropout = 1.0", "dropout: 1.0 is not in the range 0<=x<1"),
        ("config.symbols = 'phones'", "symbols: 'phones' is not one of 'letters', 'characters'"),
        ("config.num_epochs = 3", "num_epochs: no option"),
        ("get_config = None", "expected a function get_config()"),
    ],
)
def test_recipes_are_checked_as_options_are(run, tmp_path, text, says):
    recipe = tmp_path / "recipe.py"
    head = "from ml_collections import ConfigDict\nconfig = ConfigDict()\n"
    recipe.write_text(f"{head}get_config = lambda: config\n{text}\n")
    assert says in evaluate("asr", run, ".", f"--config={recipe}", fails=True)
