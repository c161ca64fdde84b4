"""Paths that are URLs, locks, and files that are whole or not there, also among planted links."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import dinosr_jax
from configs import tiny
from dinosr_jax import files
from dinosr_jax.cli import cli
from dinosr_jax.cli.options import LocalPath
from dinosr_jax.config import parse

ROOT = Path(__file__).parents[1]
URLS = ("gs://x/y", "s3://x/y", "https://x/y", "file://x/y", "GS://x/y", "hdfs:///x")
# Options and arguments that take text which is no path.
TEXTS = """split train_split valid_split prefix tier shard layer name language frame_rate topology
    overrides learning_rates task exclude""".split()


def commands(group=cli, name=()):
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*name, word))
        else:
            yield (*name, word), command


def path_parameters():
    for words, command in commands():
        for parameter in command.params:
            if isinstance(parameter.type, LocalPath):
                yield words, command, parameter


@pytest.mark.parametrize(
    ("words", "command", "parameter"),
    [pytest.param(*case, id=" ".join([*case[0], case[2].name])) for case in path_parameters()],
)
def test_every_path_of_every_command_refuses_urls(words, command, parameter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    others = []
    for other in command.params:
        if other is not parameter and other.required:
            value = other.type.choices[0] if isinstance(other.type, click.Choice) else "1"
            value = "there" if isinstance(other.type, LocalPath) else value
            others += [f"{other.opts[0]}={value}" if other.opts[0].startswith("-") else value]
    for url in URLS:
        option = parameter.opts[0].startswith("-")
        given = [f"{parameter.opts[0]}={url}", *others] if option else None
        if not option:  # arguments, in their order
            given = [text for text in others if text.startswith("-")]
            for argument in command.params:
                if isinstance(argument, click.Argument) and argument.required:
                    given.append(url if argument is parameter else "there")
        result = CliRunner().invoke(cli, [*words, *given])
        name = parameter.opts[0] if option else parameter.metavar or parameter.name.upper()
        assert result.exit_code == 2, result.output
        assert f"found the URL {url}" in result.output and name in result.output
        assert os.listdir() == ["there"]


def test_no_option_takes_a_path_as_plain_text():
    assert not [
        (*words, parameter.name)
        for words, command in commands()
        for parameter in command.params
        if isinstance(parameter.type, (click.Path, click.File, click.types.StringParamType))
        and not isinstance(parameter.type, LocalPath)
        and parameter.name not in TEXTS
    ]


@pytest.mark.parametrize(
    "field",
    [
        "workdir",
        "init",
        "data.data_dir",
        "data.eval_data_dir",
        "data.alignment",
        "ctc.lexicon",
        "ctc.vocabulary",
    ],
)
def test_every_path_of_a_configuration_refuses_urls(field):
    for url in URLS:
        config = tiny.get_config()
        config.update_from_flattened_dict({field: url})
        with pytest.raises(ValueError, match=rf"config\.{field}: found '{url}', expected a path"):
            parse(config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/tiny.py", "--workdir=gs://x/y"], "--workdir: found the URL gs://x/y"),
        (["--config=gs://x/y.py", "--config.seed=1"], "--config: found the URL gs://x/y.py"),
        (["--config=nothing.py"], "No such file or directory: 'nothing.py'"),
    ],
)
def test_training_refuses_urls_before_anything_is_made(flags, words, tmp_path):
    flags[0] = flags[0].replace("configs/", f"{ROOT}/configs/")
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [str, Path])
def test_load_refuses_urls(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="found the URL gs:/+bucket/run, expected a path"):
        dinosr_jax.load(kind("gs://bucket/run"))
    assert not files.is_url("./gs:/x") and not files.is_url("/a/gs://x") and not files.is_url("a:b")


def test_a_lock_is_held_by_one_and_given_back(tmp_path):
    with files.open_lock(tmp_path / "lock") as first:
        assert files.lock(first.fileno(), name="it")
        with files.open_lock(tmp_path / "lock") as second, pytest.raises(BlockingIOError):
            files.lock(second.fileno(), name="it")
    with files.open_lock(tmp_path / "lock") as third:
        assert files.lock(third.fileno(), name="it")


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_named_in_a_warning(code, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.open_lock(tmp_path / "lock") as file:
        assert not files.lock(file.fileno(), name="the folder")
    assert "the folder: its file system has no locks" in caplog.text


def test_another_error_of_a_lock_is_no_lack_of_locks(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with files.open_lock(tmp_path / "lock") as file, pytest.raises(OSError, match="Input/output"):
        files.lock(file.fileno(), name="it")


def test_a_lock_that_is_a_planted_link_is_refused(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic links"):
        files.open_lock(tmp_path / "lock")
    assert (tmp_path / "mine").read_text() == "precious"


def test_temporary_names_cannot_be_foreseen_or_planted(tmp_path, monkeypatch):
    names = {files.temporary_path(tmp_path) for _ in range(100)}
    assert len(names) == 100
    (tmp_path / "mine").write_text("precious")
    planted = tmp_path / "planted.tmp"
    planted.symlink_to(tmp_path / "mine")
    monkeypatch.setattr(files, "temporary_path", lambda folder: planted)
    with pytest.raises(FileExistsError):
        files.replace_text(tmp_path / "out", "text")
    assert (tmp_path / "mine").read_text() == "precious" and not (tmp_path / "out").exists()
    assert planted.is_symlink()  # of somebody else: it stays


def test_what_fails_leaves_the_file_of_before(tmp_path):
    files.replace_text(tmp_path / "out", "before")
    with pytest.raises(RuntimeError), files.replacing(tmp_path / "out") as file:
        file.write(b"half")
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.mark.parametrize("sync", [True, False])
def test_contents_are_on_disk_before_the_name_is(sync, tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, Path.replace
    kind = lambda handle: "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(kind(fd)), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda *a: (calls.append("name"), replace(*a)))
    with files.replacing(tmp_path / "out", sync=sync) as file:
        file.write(b"x")
    assert calls == (["file", "name", "folder"] if sync else ["name"])
