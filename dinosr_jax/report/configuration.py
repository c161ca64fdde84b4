"""The part of a report that says how the run is set up, and how to repeat it."""

from collections.abc import Sequence
from typing import Any

from dinosr_jax.report import commands, markup
from dinosr_jax.report.markup import Section
from dinosr_jax.report.run_files import RunFiles, numbers


def setup_section(run: RunFiles) -> Section:
    """Configuration, data, hardware, versions and commands."""
    body = [markup.heading("Configuration"), _configuration(run), markup.heading("Data")]
    data = run.value("data")
    if isinstance(data, dict):
        caption = "Where the speech comes from and how it is cut"
        body.append(markup.table(caption, ("field", "value"), sorted(data.items())))
    else:
        body.append(markup.paragraph("Not known: config.json does not say."))
    last = run.records[-1] if run.records else {}
    facts = [
        (name, f"{number:,.4g}")
        for name, field in _FACTS.items()
        if (number := numbers(last, field)) is not None
    ]
    if facts:
        body.append(markup.table("At the last record", ("what", "value"), facts))
    body += [markup.heading("Hardware and versions"), _environment(run)]
    body += [markup.heading("Commands"), *_commands(run)]
    return Section("setup", "Configuration, data and commands", "".join(body))


_FACTS = {
    "update": "step",
    "epochs": "epoch",
    "audio of the batch (seconds)": "audio_seconds",
    "speed (seconds of audio a second)": "audio_seconds_per_second",
    "utterances that could not be decoded, since the record before": "num_bad_utterances",
}


def _configuration(run: RunFiles) -> str:
    if not run.config:
        return markup.paragraph("Not known: there is no config.json that can be read.")
    shown = lambda value: "not recorded" if value is None else _one_line(value)
    rows = [(name, shown(own), shown(published)) for name, published, own in commands.changed(run)]
    text = f"{len(rows)} fields differ from the published recipe."
    differing = markup.table(
        "What differs from the published recipe", ("field", "this run", "published"), rows
    )
    every = [(name, _one_line(value)) for name, value in _flat(run.config)]
    whole = markup.table("All fields", ("field", "value"), every)
    return (
        markup.paragraph(text) + (differing if rows else "") + markup.details("All fields", whole)
    )


def _environment(run: RunFiles) -> str:
    parts = []
    if run.environments:
        names = list(dict.fromkeys(name for e in run.environments for name in e))
        rows = [[_one_line(e.get(name, "")) for name in names] for e in run.environments[-20:]]
        heads = ["started after update" if name == "step" else name for name in names]
        parts.append(markup.table("Where it was trained, a row each start", heads, rows))
    else:
        parts.append(markup.paragraph("Where it was trained is not recorded."))
    rows = [
        (result["kind"], str(result.get("date", ""))[:10], _one_line(result.get("versions", "")))
        for result in run.results
    ]
    if rows:
        head = ("result", "date", "versions")
        parts.append(markup.table("Versions that measured", head, rows))
    return "".join(parts)


def _commands(run: RunFiles) -> Sequence[str]:
    parts = [markup.paragraph("The run:"), markup.commands(commands.training(run))]
    told = dict.fromkeys(str(result.get("command", "")) for result in run.results)
    if any(told):
        parts.append(markup.paragraph("The results:"))
        parts.append(markup.commands([command for command in told if command]))
    parts += [markup.paragraph("This report:"), markup.commands(commands.report(run))]
    return parts


def _one_line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_one_line(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_one_line, value)) + ")"
    return str(value)


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in sorted(config.items()):
        whole = prefix + str(name)
        found += _flat(value, whole + ".") if isinstance(value, dict) else [(whole, value)]
    return found
