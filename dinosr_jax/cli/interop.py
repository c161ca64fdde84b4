"""Commands for other projects' checkpoints: `import`, `export`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line, silence_absl
from dinosr_jax.cli.options import COUNT, FROM_0, PATH, argument, option, output


@click.command("import")
@argument("checkpoint")
@output("Run to write.", required=True)
@shared.heads
@option("num_codebooks", COUNT, text="Fresh ones, of a student alone.")
@option("codebook_size", COUNT, text="Codewords of fresh ones.")
@option(
    "objective",
    ["dinosr", "spidr", "data2vec"],
    text="Of a checkpoint that does not say it: spidr's without config.json, a student alone.",
)
@option(
    "vocabulary",
    PATH,
    text="fairseq's dict.ltr.txt of a fine-tuned checkpoint.  [default: its 32 letters]",
)
@option("seed", int, 0, "Of what is fresh.")
@option("step", FROM_0, text="Updates.  [default: the checkpoint's]")
def import_command(
    checkpoint: Path, output: Path, step: int | None, vocabulary: Path | None, **choices: Any
) -> None:
    """Make a run of a checkpoint of fairseq, spidr or Hugging Face, or of an export.

    Nothing in it is executed. The run can be extracted from, and trained on; one of a fine-tuned
    checkpoint can be transcribed with.
    """
    from dinosr_jax.data.vocabulary import read_dictionary
    from dinosr_jax.interop import formats, runs

    silence_absl()
    with one_line():
        if vocabulary is not None:
            choices["symbols"] = read_dictionary(vocabulary).symbols
        read = formats.read_checkpoint(checkpoint, choices=formats.Choices(**choices))
        runs.write_run(read, output, step=step)
    lines = [f"{checkpoint}: {read.source}, {read.num_tensors} tensors used", *read.notes]
    lines.append(f"{output}: a run after {read.step if step is None else step} updates; go on:")
    lines.append(f"python main.py --config={output}/config.py --workdir={output} [data flags]")
    click.echo("\n  ".join(lines))


@click.command()
@argument("run")
@option(
    "format",
    ["huggingface", "fairseq", "spidr", "s3prl"],
    text="Whose.",
    field="kind",
    required=True,
)
@output("Folder to write.", required=True)
@option(
    "model",
    ["student", "teacher"],
    "student",
    "huggingface: which is the model; the other is beside it.",
)
@shared.heads
def export(run: Path, kind: Any, output: Path, model: Any, heads: int | None) -> None:
    """Write a checkpoint that fairseq, spidr, s3prl or Hugging Face's transformers read.

    RUN is a run, one of its checkpoints, or anything that import reads.
    """
    from dinosr_jax.interop import exports, runs

    if model == "teacher" and kind != "huggingface":
        holds = "the student" if kind == "s3prl" else "student and teacher"
        raise click.UsageError(f"--model: a checkpoint for {kind} holds {holds}")
    silence_absl()
    with one_line():
        trained = runs.read_any(run, heads=heads)
        warnings = exports.export(trained, output, kind=kind, model=model)
    lines = [f"{run}: the network after {trained.step} updates", *trained.notes]
    click.echo("\n  ".join(lines))
    click.echo(f"{output}: written for {kind}")
    for warning in warnings:
        click.echo(f"WARNING: {warning}", err=True)
