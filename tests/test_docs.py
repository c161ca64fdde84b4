"""README and pages: links lead somewhere, commands and options exist, and the site builds."""

import ast
import functools
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import soundfile
from absl import flags
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.cli.options import LocalPath
from dinosr_jax.config import read_file
from dinosr_jax.evaluation import comparison
from dinosr_jax.evaluation.probes import frame_classifier, head_training
from dinosr_jax.recipes import FIELDS
from tests.documented import CHECKED_ONLY, RUN, write_checkout

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
names = lambda path: path.name
TOOL = ["python", "-m", "dinosr_jax"]
FOLDERS = "benchmarks configs data dinosr_jax docs examples launch tests".split()
ROOMS = [path.name for path in (ROOT / "dinosr_jax").iterdir() if path.is_dir()]
PROGRAMS = ("python", "bash", "sbatch", "kubectl")
SECTIONS = {name.split(".")[0] for name in FIELDS if "." in name}
# of other programs; functions and fields of other projects that look like fields
STEPS = "num_steps"
FOREIGN_FILES = {"examples/wav2vec/config/finetuning"}
FOREIGN_OPTIONS = {"--xla_gpu_enable_latency_hiding_scheduler"}
NO_FIELDS = {"model.w2v_path", "optimizer.tri_stage", "optimizer.without_unused"}
NO_FIELDS |= {f"codebook.{function}" for function in ("init", "assign", "update")}


def without_code(text):
    """Markdown without blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def inline(text):
    return re.findall(r"`([^`\n]+)`", without_code(text))


def anchor(heading):
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


@functools.cache
def anchors(path):
    return {anchor(line) for line in re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.M)}


def broken_links(path, text):
    """Links and pictures of a page that lead nowhere."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, part = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.is_file() or (part and part not in anchors(file)):
            found.append(target)
    for name in re.findall(r'^--8<-- "(.*)"$', text, re.M):  # the site includes it
        if not (ROOT / name).is_file():
            found.append(name)
    return found


def missing_files(text):
    """Files of the repository that a page names and that are not there."""
    found = []
    for name in inline(text):
        if name.startswith("data/prepared"):
            continue
        first = name.split("/")[0]
        if not re.fullmatch(r"[\w*-]+/[\w./*-]*", name) or name in FOREIGN_FILES:
            continue
        places = [ROOT] * (first in FOLDERS) + [ROOT / "dinosr_jax"] * (first in ROOMS)
        if places and not any(path for place in places for path in place.glob(name.rstrip("/"))):
            found.append(name)
    return found


def commands(text):
    """Commands of a page, as lists of words: those of bash blocks, and those within the text."""
    lines = [
        line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in [*lines, *inline(text)]:
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z]+=.*", words[0]):  # a variable before it
                words = words[1:]
            if words and Path(words[0]).name in PROGRAMS and len(words) > 1:
                words[0] = Path(words[0]).name
                yield [word.removesuffix("...") for word in words]


def of_page(path):
    return list(commands(path.read_text()))


def command_of(words):
    """The command of the tools that the words begin with, and the words that follow."""
    found = cli
    while isinstance(found, click.Group):
        if not words or words[0] not in found.commands:
            raise ValueError(f"no command {' '.join(words[:1])!r}")
        found, words = found.commands[words[0]], words[1:]
    return found, words


def check_fields(given, *, config="configs/base.py"):
    """Raises ValueError of a --config.FIELD=VALUE that the configuration does not have."""
    path = ROOT / config
    read_file(str(path if path.is_file() else ROOT / "configs/base.py"), given)


def check_training(words):
    """Raises ValueError of a flag that main.py does not have."""
    import main  # noqa: F401 (defines them)

    config = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    fields = [word for word in words if word.startswith("--config.")]
    check_fields(fields, **({"config": config[0]} if config else {}))
    for word in words:
        name = word.partition("=")[0].removeprefix("--")
        known = name in flags.FLAGS and flags.FLAGS.find_module_defining_flag(name) == "main"
        if not word.startswith("--config.") and not (word.startswith("--") and known):
            raise ValueError(f"main.py has no flag {word}")


def check_tool(words):
    """Raises ValueError or UsageError of a command, option or value that the tools do not have."""
    command, words = command_of(words)
    given = [word for word in words if word.startswith("--config.")]
    if given and not command.ignore_unknown_options:
        raise ValueError(f"{command.name} has no {given[0]}")
    config = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    check_fields(given, **({"config": config[0]} if given and config else {}))
    words = [word for word in words if not word.startswith("--config.")]
    context = click.Context(command, info_name=command.name, ignore_unknown_options=False)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    if rest:
        raise ValueError(f"{command.name} has no argument {rest}")
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or not isinstance(value, str | list | tuple):
            continue
        if not isinstance(parameter.type, LocalPath):  # which need not be there
            parameter.type_cast_value(context, value)


def check_script(words):
    """Raises ValueError of a script that is not there, or of flags that it hands on."""
    script, *rest = words
    if not (ROOT / script).is_file():
        raise ValueError(f"no script {script}")
    text = (ROOT / script).read_text()
    if script.startswith("launch/") and script != "launch/test.sh" and rest:
        check_training(rest)
        return
    for word in rest:
        if word.startswith("--") and word.partition("=")[0] not in text:
            raise ValueError(f"{script} has no option {word}")


def check(words):
    """Raises an error of a command that does not exist as it is written."""
    if words[:3] == TOOL:
        check_tool(words[3:])
    elif words[:2] == ["python", "main.py"]:
        check_training(words[2:])
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words  # venv, pytest, ruff
    elif words[:3] == ["kubectl", "apply", "-f"]:
        assert (ROOT / words[3]).is_file(), words
    else:
        check_script(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_files_that_are_named_are_there(page):
    assert missing_files(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_exist(page):
    for words in of_page(page):
        if words[:4] != [*TOOL, "COMMAND"]:
            check(words)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").rglob("*.py")), ids=names)
def test_commands_of_configurations_exist(config):
    text = ast.get_docstring(ast.parse(config.read_text()))
    for line in re.findall(r"(?:^Commands?: |^ +)((?:python|bash) .*?)(?:  .*)?$", text, re.M):
        check(shlex.split(line))


def every_option():
    """Options of all commands, of main.py and of the programs around them."""
    import main  # noqa: F401

    def of(command):
        if isinstance(command, click.Group):
            return {name for child in command.commands.values() for name in of(child)}
        return {name for parameter in command.params for name in parameter.opts}

    ours = flags.FLAGS.flags_by_module_dict()["main"]
    return of(cli) | {f"--{flag.name}" for flag in ours} | FOREIGN_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_options_and_fields_in_the_text_exist(page):
    known = every_option()
    for text in inline(page.read_text()):
        words = shlex.split(text) if text.count("'") % 2 == 0 and text.count('"') % 2 == 0 else []
        if words and words[0].startswith("--"):
            fields = [word for word in words if word.startswith("--config.")]
            check_fields([word for word in fields if "=" in word and "FIELD" not in word])
            for word in words:
                name = word.partition("=")[0]
                assert not word.startswith("--") or word in fields or name in known, text
        section, _, rest = text.removeprefix("config.").partition(".")
        if section in SECTIONS and re.fullmatch(r"\w+( = .*)?", rest) and rest != "py":
            assert f"{section}.{rest.partition(' ')[0]}" in {*FIELDS, *NO_FIELDS}, text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("[a](README.md#nothing)", ["README.md#nothing"]),
        ("![a](docs/none.png)", ["docs/none.png"]),
        ('--8<-- "NONE.md"', ["NONE.md"]),
        ("[a](README.md#quick-start), [b](#quick-start), [c](https://x.org)", []),
    ],
)
def test_broken_links_are_found(text, found):
    assert broken_links(ROOT / "README.md", text) == found


@pytest.mark.parametrize(
    "wrong",
    [
        "python -m dinosr_jax extracts RUN INPUT --layer=5 --output=o",
        "python -m dinosr_jax extract RUN INPUT --layers=5 --output=o",
        "python -m dinosr_jax extract RUN INPUT --layer=5 --tensor=blocks --output=o",
        "python -m dinosr_jax evaluate abx features ITEMS",
        "python -m dinosr_jax evaluate wer hyp --reference=r --config.seed=1",
        "python -m dinosr_jax scale --config=configs/base.py --devices=4 --config.seeds=1",
        "python main.py --config=configs/base.py --workdirs=runs/base",
        "python main.py --config=configs/base.py --config.data.max_rung=3",
        "python main.py --config=configs/base.py runs",
        "bash launch/none.sh",
        "bash launch/quickstart.sh --config.steps=3",
        "bash benchmarks/gpu.sh --nothing",
    ],
)
def test_wrong_commands_are_found(wrong):
    (words,) = commands(f"```bash\n{wrong}\n```")
    with pytest.raises((ValueError, click.UsageError)):
        check(words)


def test_every_command_is_run_or_known_not_to_be():
    shown = {" ".join(words) for page in PAGES for words in of_page(page)}
    shown = {text for text in shown if text.startswith(("python -m dinosr_jax", "python main"))}
    listed = {" ".join(shlex.split(line)) for line in RUN}
    known = listed | {text for text in shown if any(re.search(p, text) for p in CHECKED_ONLY)}
    assert sorted(shown - known) == []
    assert sorted(listed - shown) == []


def shorten_probes(monkeypatch):
    """Classifiers and recognisers are trained for few steps; the commands say nothing of them."""
    (steps,) = (p for p in cli.commands["evaluate"].commands["frames"].params if p.name == STEPS)
    monkeypatch.setattr(steps, "default", 20)
    short = {
        "of_frames": frame_classifier.ClassifierSettings(num_steps=20),
        "of_recognition": head_training.HeadSettings(num_steps=4, eval_steps=4),
    }
    defaults = tuple((comparison.ComparisonOptions._field_defaults | short).values())
    monkeypatch.setattr(comparison.ComparisonOptions.__new__, "__defaults__", defaults)


@pytest.mark.very_slow
def test_commands_run(tmp_path, monkeypatch, run_main, compile_quickly, compile_once):
    """One after the other, as they are written, in a checkout of small configurations."""
    write_checkout(tmp_path, root=ROOT)
    monkeypatch.chdir(tmp_path)
    shorten_probes(monkeypatch)
    for line in RUN:
        words = shlex.split(line)
        for word in words:  # several write to the same place
            if word.startswith("--output="):
                output = Path(word.partition("=")[2])
                shutil.rmtree(output, ignore_errors=True)
                for path in output.parent.glob(f"{output.stem}.*"):
                    path.unlink()
        if words[:3] == TOOL:
            done = CliRunner().invoke(cli, words[3:])
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        else:
            assert run_main(*words[2:]) is None, line
    for page in ("README.md", "docs/features.md"):
        for block in blocks((ROOT / page).read_text(), "python"):
            space = {"waveform": soundfile.read(next(Path("FOLDER").glob("*.flac")))[0]}
            exec(block, space)
            assert space["features"].shape == (len(space["codes"]), 32)
    for name in ("features/features.json", "units.jsonl", "runs/quickstart/report/report.html"):
        assert (tmp_path / name).is_file()


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not there")
def test_the_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / page.stem / "index.html").is_file() or page.stem == "index"
