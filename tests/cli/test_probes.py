"""Commands of probes: what is wrong with them is said in one line."""

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.data.prepare.audio_folder import prepare


def said(*arguments):
    found = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert found.exit_code != 0 and "Traceback" not in found.output
    return found.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "X", "D", "--task=units,words"], "--task: found 'words'"),
        (["run", "X", "D"], "X is no run of ours; name a folder with --output"),
        (["frames", "X", "D", "--output=O"], "X: no such file or folder; expected a run"),
        (["recognition", "X", "D", "--learning_rates=fast"], "--learning_rates: found 'fast'"),
        (["recognition", "X", "D", "--learning_rates=-1"], "--learning_rates: found '-1'"),
    ],
)
def test_wrong_commands(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in " ".join(said(*arguments).split())
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_with_an_unknown_field(tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'num_step': 3})\n"
    )
    text = said("recognition", "X", "D", f"--config={recipe}")
    assert "num_step: no option of this command" in text


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("run", [], "--train_split=train: split 'train' of"),
        ("frames", ["--train_split=dev"], "--split=test: split 'test' of"),
        ("recognition", ["--train_split=dev", "--split=dev[:1%]"], "--split=dev[:1%]: split"),
        ("recognition", ["--train_split=dev", "--split=dev", "--valid_split=x"], "--valid_split=x"),
        ("asr", [], "--train_split=train: split 'train' of"),
    ],
)
def test_splits_are_checked_before_anything_is_read(tmp_path, command, options, expected):
    """The checkpoint is none, which would be said next."""
    source, checkpoint = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    checkpoint.mkdir()
    soundfile.write(source / "a.wav", np.sin(np.arange(16_000)), 16_000)
    (source / "transcripts.tsv").write_text("file\tsplit\na\tdev\n")
    prepare(source, data_dir=tmp_path / "data")
    given = [*options, f"--output={tmp_path / 'out'}"]
    text = " ".join(said(command, checkpoint, tmp_path / "data", *given).split())
    assert expected in text and ("1 in dev" in text or "one of ['dev']" in text)
    assert not (tmp_path / "out").exists()
