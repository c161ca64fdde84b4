"""Commands that a report prints: what they say is what they do."""

import json
import shlex
from pathlib import Path

import pytest

from dinosr_jax.config import differences, read_file
from dinosr_jax.report import commands
from dinosr_jax.report.run_files import read_run
from tests.report_runs import write_training

ROOT = Path(__file__).parents[2]


def words(lines):
    return shlex.split("\n".join(lines).replace("\\\n", " "), comments=True)


@pytest.mark.parametrize("config", ["quickstart", "tiny", "base", "large", "discover"])
def test_the_command_of_a_run_gives_its_configuration(tmp_path, config):
    values = read_file(f"{ROOT}/configs/{config}.py")
    (tmp_path / "config.json").write_text(json.dumps(values))
    python, main, base, workdir, *flags = words(commands.training(read_run(tmp_path)))
    assert (python, main, base) == ("python", "main.py", "--config=configs/base.py")
    assert workdir == f"--workdir={tmp_path}"
    again = read_file(str(ROOT / "configs" / "base.py"), flags)
    assert set(differences(values, again)) <= {"workdir"}


def test_a_single_convolution_stays_a_list_of_one(tmp_path):
    config = read_file(f"{ROOT}/configs/tiny.py")
    config["model"]["conv_layers"] = [[8, 400, 320]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = words(commands.training(read_run(tmp_path)))[4:]
    again = read_file(str(ROOT / "configs" / "base.py"), flags)
    assert again["model"]["conv_layers"] == ((8, 400, 320),)


def test_a_run_without_a_difference_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert commands.training(read_run(tmp_path)) == [
        f"python main.py --config=configs/base.py --workdir={tmp_path}"
    ]


def test_an_imported_run_goes_on_with_its_own_configuration(tmp_path):
    run = write_training(tmp_path / "run")
    (run / "config.py").write_text("")
    (line,) = commands.training(read_run(run))
    assert line == f"python main.py --config={run}/config.py --workdir={run}"


def test_names_with_blanks_and_quotes_are_quoted(tmp_path):
    run = read_run(write_training(tmp_path / "it's; a run"))
    for lines in (commands.training(run), commands.evaluation(run), commands.report(run)):
        assert str(run.folder) in " ".join(words(lines))
    extract, _, abx = commands.abx(run)
    assert str(run.folder) in words([extract]) and f"{run.folder}/features" in words([abx])


def test_the_evaluation_is_that_of_the_held_out_split(tmp_path):
    run = read_run(write_training(tmp_path / "run"))
    found = words(commands.evaluation(run, task="frames"))
    assert found == [
        *("python", "-m", "dinosr_jax", "evaluate", "run", str(run.folder)),
        *("data/prepared/embedded", "--train_split=train", "--split=validation", "--task=frames"),
    ]
