"""The command `evaluate units`, and how a command is written into the results."""

import shlex
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import COUNT, FROM_0, PATH, POSITIVE, argument, option, output
from dinosr_jax.errors import UserError


def command_text(context: click.Context) -> str:
    """The command, with the arguments that were given, as one types it."""
    names, parent = [], context
    while parent.parent is not None:
        names, parent = [parent.info_name, *names], parent.parent
    words = ["python", "-m", "dinosr_jax", *names]
    for parameter in context.command.params:
        if context.get_parameter_source(parameter.name).name != "COMMANDLINE":
            continue
        value = context.params[parameter.name]
        if isinstance(parameter, click.Argument):
            words += map(str, value if parameter.nargs == -1 else [value])
        elif parameter.is_flag:
            words.append(parameter.opts[0])
        else:
            words.append(f"{parameter.opts[0]}={value}")
    return shlex.join(words)


@click.command("units")
@argument("units", nargs=-1, required=True)
@option("alignment", PATH, text="File, or folder of TextGrids.", required=True)
@shared.of_alignment
@option("tolerance", FROM_0, 2, "Frames of 10 ms by which lengths may differ.")
@option("skip-bad", text="Leave out, and count, what differs by more.", is_flag=True)
@option("unit_seconds", POSITIVE, text="[default: what was written beside, else 0.02]")
@option(
    "offset_seconds",
    float,
    0.0,
    "Time of the first unit: another rule than the published one.  [default: 0]",
    show_default=False,
)
@option("num_units", COUNT, text="K.  [default: what was written beside, else the largest + 1]")
@shared.system
@output("JSON to write.")
@click.pass_context
def evaluate_units(context: click.Context, **options: Any) -> None:
    """Unit quality: purity, PNMI, perplexity, bit rate of files of units, one row each.

    UNITS are what `units` writes, or files of spidr, discophon, minimal-hubert or fastabx. The
    alignment is of TextGrids, or a table of fairseq (HuBERT), CPC, spidr, discophon, or one with
    the columns file, start_s, end_s, phone. An utterance is found by its name, or by its name
    without folders where that is unambiguous; --prefix says the folder of the alignment.
    """
    with one_line():
        _evaluate_units(options, command_text(context))


def _evaluate_units(options: dict[str, Any], command: str) -> None:
    from dinosr_jax.evaluation import result_files
    from dinosr_jax.evaluation.units import quality as unit_quality
    from dinosr_jax.inference.units import unit_file

    alignment = shared.read_given_alignment(options)
    given = {name: options[name] for name in ("num_units", "unit_seconds")}
    rows, files, notes, data, rules = [], [], [], [], []
    for path in options["units"]:
        file = unit_file.read_units(path, **given)
        rule = unit_quality.Rule(
            unit_seconds=file.unit_seconds,
            offset_seconds=options["offset_seconds"],
            tolerance=options["tolerance"],
            bad="skip" if options["skip_bad"] else "raise",
        )
        try:
            quality = unit_quality.measure(
                file.utterances, alignment, num_units=file.num_units, rule=rule
            )
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        system = options["system"] or file.source or "codebook"
        row = unit_quality.to_row(quality, system=system, layer=file.layer)
        rows.append(row | {"file": str(path)})
        files.append(file)
        data.append(unit_quality.coverage(quality))
        rules.append(rule.to_text())
        notes.append(f"{path}: {data[-1]}")
        if file.known == "largest":
            notes.append(
                f"{path}: {file.num_units} units assumed, the largest + 1; see --num_units"
            )
        if not (options["system"] or file.source):
            notes.append(f"{path}: units of a codebook assumed; see --system")
    joined = lambda texts: " | ".join(dict.fromkeys(filter(None, texts)))
    stress = "stress stripped" if options["stress"] == "strip" else "stress kept"
    text = f"{joined(rules)}; {options['alignment']} ({alignment.kind}), {stress}"
    click.echo("\n".join([unit_quality.to_table(rows), *notes, f"rule: {text}"]))
    if options["output"] is not None:
        steps = {file.step for file in files}
        result_files.write_results(
            options["output"],
            kind="units",
            rows=rows,
            command=command,
            checkpoint=joined(file.checkpoint for file in files),
            step=steps.pop() if len(steps) == 1 else None,
            data=joined(data),
            rule=text,
            phones=list(alignment.labels),
        )
        click.echo(options["output"])
