"""Commands of probes: what is wrong with them is said in one line."""

import pytest
from click.testing import CliRunner

from dinosr_jax.cli import cli


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
