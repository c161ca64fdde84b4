"""The commands that reproduce a run and its figures, as a person types them."""

import shlex
from typing import Any

from dinosr_jax.config import differences
from dinosr_jax.recipes import published_recipe
from dinosr_jax.report.run_files import RunFiles

_ALIGNMENT = "# where the data holds no phones, add --alignment=FILE"


def changed(run: RunFiles) -> list[tuple[str, Any, Any]]:
    """(field, published, this run) of what differs from the published recipe."""
    published = published_recipe().to_dict()
    fields = differences(published, run.config) if run.config else {}
    return [(name, *values) for name, values in fields.items() if name != "workdir"]


def training(run: RunFiles) -> list[str]:
    """The run itself: the published recipe, and every field that differs."""
    folder = shlex.quote(str(run.folder))
    if (run.folder / "config.py").is_file():  # imported: its own configuration file
        config = shlex.quote(str(run.folder / "config.py"))
        return [f"python main.py --config={config} --workdir={folder}"]
    values = {name: value for name, _, value in changed(run) if value is not None}
    if "compute_dtype" in run.config:  # configs/base.py has another one than the paper
        values["compute_dtype"] = run.config["compute_dtype"]
    flags = [shlex.quote(f"--config.{name}={_written(v)}") for name, v in sorted(values.items())]
    first = f"python main.py --config=configs/base.py --workdir={folder}"
    return [line + " \\" for line in [first, *(f"  {flag}" for flag in flags)][:-1]] + [
        f"  {flags[-1]}" if flags else first
    ]


def evaluation(run: RunFiles, *, task: str = "") -> list[str]:
    """Unit quality, probes and the utterance to show."""
    split = run.value("data", "eval_split") or "test"
    words = [
        "python -m dinosr_jax evaluate run",
        shlex.quote(str(run.folder)),
        _data(run),
        shlex.quote(f"--train_split={run.value('data', 'train_split') or 'train'}"),
        shlex.quote(f"--split={split}"),
    ]
    return [" ".join(words + ([f"--task={task}"] if task else [])), _ALIGNMENT]


def abx(run: RunFiles) -> list[str]:
    """Features of all layers, items of an alignment, and the ABX error."""
    split = shlex.quote(f"--split={run.value('data', 'eval_split') or 'test'}")
    folder = str(run.folder)
    features, item, output = (
        shlex.quote(f"{folder}/{name}")
        for name in ("features", "triphones.item", "evaluation/abx.json")
    )
    cli = "python -m dinosr_jax"
    return [
        f"{cli} extract {shlex.quote(folder)} {_data(run)} {split} --layer=all --output={features}",
        f"{cli} evaluate items ALIGNMENT --speakers=FILE --output={item}",
        f"{cli} evaluate abx {features} --item={item} --output={output}",
    ]


def report(run: RunFiles) -> list[str]:
    """This report."""
    return [f"python -m dinosr_jax report {shlex.quote(str(run.folder))}"]


def _data(run: RunFiles) -> str:
    return shlex.quote(str(run.value("data", "data_dir") or "DATA"))


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + "".join(f"{_written(item)}," for item in value) + ")"
    return str(value)
