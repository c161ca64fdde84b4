"""Commands for other projects' checkpoints: `import`, `export`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import EXPECTED
from dinosr_jax.cli.options import heads as heads_option

_FORMATS = click.Choice(["huggingface", "fairseq", "spidr", "s3prl"])


@click.command("import")
@click.argument("checkpoint", type=shared.LocalPath())
@click.option("--output", required=True, type=shared.LocalPath(), help="Run to write.")
@heads_option
@click.option("--num_codebooks", type=click.IntRange(min=1), help="Fresh ones, of a student alone.")
@click.option("--codebook_size", type=click.IntRange(min=1), help="Codewords of fresh ones.")
@click.option(
    "--objective",
    type=click.Choice(["dinosr", "spidr", "data2vec"]),
    help="Of a checkpoint that does not say it: spidr's without config.json, a student alone.",
)
@click.option(
    "--vocabulary",
    type=shared.LocalPath(),
    help="fairseq's dict.ltr.txt of a fine-tuned checkpoint.  [default: its 32 letters]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is fresh.")
@click.option("--step", type=click.IntRange(min=0), help="Updates.  [default: the checkpoint's]")
def import_command(
    checkpoint: Path, output: Path, step: int | None, vocabulary: Path | None, **choices: Any
) -> None:
    """Make a run of a checkpoint of fairseq, spidr or Hugging Face, or of an export.

    Nothing in it is executed. The run can be extracted from, and trained on; one of a fine-tuned
    checkpoint can be transcribed with.
    """
    import logging

    from dinosr_jax.interop import formats, runs

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if vocabulary is not None:
            from dinosr_jax.data.vocabulary import read_dictionary

            choices["symbols"] = read_dictionary(vocabulary).symbols
        found = formats.read_checkpoint(checkpoint, choices=formats.Choices(**choices))
        runs.write_run(found, output, step=step)
    except EXPECTED as error:
        raise click.ClickException(str(error)) from None
    lines = [f"{checkpoint}: {found.source}, {found.num_tensors} tensors used", *found.notes]
    lines.append(f"{output}: a run after {found.step if step is None else step} updates; go on:")
    lines.append(f"python main.py --config={output}/config.py --workdir={output} [data flags]")
    click.echo("\n  ".join(lines))


@click.command()
@click.argument("run", type=shared.LocalPath())
@click.option("--format", "kind", required=True, type=_FORMATS, help="Whose.")
@click.option("--output", required=True, type=shared.LocalPath(), help="Folder to write.")
@click.option(
    "--model",
    type=click.Choice(["student", "teacher"]),
    default="student",
    show_default=True,
    help="huggingface: which is the model; the other is beside it.",
)
@heads_option
def export(run: Path, kind: Any, output: Path, model: Any, heads: int | None) -> None:
    """Write a checkpoint that fairseq, spidr, s3prl or Hugging Face's transformers read.

    RUN is a run, one of its checkpoints, or anything that import reads.
    """
    import logging

    from dinosr_jax.interop import exports, runs

    if model == "teacher" and kind != "huggingface":
        holds = "the student" if kind == "s3prl" else "student and teacher"
        raise click.UsageError(f"--model: a checkpoint for {kind} holds {holds}")
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        found = runs.read_any(run, heads=heads)
        warnings = exports.export(found, output, kind=kind, model=model)
    except EXPECTED as error:
        raise click.ClickException(str(error)) from None
    lines = [f"{run}: the network after {found.step} updates", *found.notes]
    click.echo("\n  ".join(lines))
    click.echo(f"{output}: written for {kind}")
    for warning in warnings:
        click.echo(f"WARNING: {warning}", err=True)
