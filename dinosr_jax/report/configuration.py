"""The part of a report that says how the run is set up, and how to repeat it."""

from typing import Any

from dinosr_jax.report import commands
from dinosr_jax.report.markup import Section
from dinosr_jax.report.run_files import RunFiles, numbers

_FACTS = {
    "update": "step",
    "epochs": "epoch",
    "audio of the batch (seconds)": "audio_seconds",
    "speed (seconds of audio a second)": "audio_seconds_per_second",
    "utterances that could not be decoded, since the record before": "num_bad_utterances",
}


def setup(run: RunFiles) -> Section:
    """Configuration, data, hardware, versions and commands."""
    data, last = run.value("data"), run.records[-1] if run.records else {}
    shown = lambda value: "not recorded" if value is None else _one_line(value)
    differing = commands.changed(run)
    names = list(dict.fromkeys(name for start in run.environments for name in start))
    text = lambda result, name: str(result.get(name, ""))
    parts = {
        "fields": [(name, _one_line(value)) for name, value in _flat(run.config)],
        "differing": [(name, shown(own), shown(theirs)) for name, theirs, own in differing],
        "data": sorted(data.items()) if isinstance(data, dict) else None,
        "last": [
            (name, f"{number:,.4g}")
            for name, field in _FACTS.items()
            if (number := numbers(last, field)) is not None
        ],
        "starts_head": ["started after update" if name == "step" else name for name in names],
        "starts": [
            [_one_line(start.get(name, "")) for name in names] for start in run.environments[-20:]
        ],
        "versions": [
            (result["kind"], text(result, "date")[:10], _one_line(result.get("versions", "")))
            for result in run.results
        ],
        "training": commands.training(run),
        "results": list(dict.fromkeys(filter(None, (text(r, "command") for r in run.results)))),
        "report": commands.report(run),
    }
    return Section("setup", "Configuration, data and commands", parts)


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_line(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_one_line, value)) + ")"
    return str(value)


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    fields = []
    for name, value in sorted(config.items()):
        whole = prefix + str(name)
        fields += _flat(value, whole + ".") if isinstance(value, dict) else [(whole, value)]
    return fields
