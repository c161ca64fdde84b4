"""Commands around training: `compile`, `scale`. Training itself is main.py."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import EXPECTED


@click.command("compile", context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=shared.LocalPath(exists=True))
@click.option("--topology", required=True, help="TPU and its chips: v5e:4x4, v6e:2x4, v4:2x2x2.")
@click.option("--batch_size", type=click.IntRange(min=1), help="Utterances, over all devices.")
@click.option("--seconds", type=float, help="Length of each.  [default: data.max_seconds]")
@click.option(
    "--optimization",
    type=click.Choice(["O0", "O1", "O2", "O3"]),
    default="O0",
    show_default=True,
    help="Effort of the compiler; runs have O2, which takes several times as long.",
)
@click.option(
    "--libtpu",
    type=shared.LocalPath(),
    envvar="DINOSR_LIBTPU",
    help="Folder with libtpu.  [env: DINOSR_LIBTPU]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("overrides", nargs=-1, metavar="[--config.FIELD=VALUE]...")
def compile_command(
    config: Path, overrides: tuple[str, ...], libtpu: Path | None, as_json: bool, **options: Any
) -> None:
    """Compile the update for a TPU that is not there: memory, FLOPs, traffic, least time.

    Needs PyPI's libtpu, in this environment or in a folder of its own, and no TPU. The batch is the
    largest of the longest crops in `data.max_batch_seconds`, if not given.
    """
    import json
    import sys

    from dinosr_jax.config import read_file
    from dinosr_jax.training.planning import tpu_compile

    terminal, told = sys.stderr.isatty(), []

    def progress(elapsed: float) -> None:
        if terminal or elapsed >= 30 * len(told):
            told.append(elapsed)
            text = f"compiling for {options['topology']} ... {elapsed:.0f} s"
            click.echo("\r" + text if terminal else text, nl=not terminal, err=True)

    try:
        values = read_file(config, overrides)
        found = tpu_compile.compile_ahead(values, libtpu=libtpu, progress=progress, **options)
    except EXPECTED as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n" * terminal, nl=False, err=True)
    click.echo(json.dumps(found.to_dict()) if as_json else found.to_text(values["num_steps"]))


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=shared.LocalPath(exists=True))
@click.option("--devices", required=True, type=click.IntRange(min=1), help="How many there are.")
@click.option(
    "--device_seconds",
    type=float,
    default=240.0,
    show_default=True,
    help="Audio that one device holds; 240 s of base take 11 GiB (compile --help).",
)
@click.option("--batch_seconds", type=float, help="Audio of an update.  [default: the config's]")
@click.argument("overrides", nargs=-1, metavar="[--config.FIELD=VALUE]...")
def scale(config: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Fit a recipe to the devices at hand: print the flags for main.py.

    The batch stays, and with it the whole recipe, by gradient accumulation. With --batch_seconds it
    gets smaller; learning rate, Adam, EMA, codebook decay and schedule follow.
    """
    from dinosr_jax.config import read_file
    from dinosr_jax.training.planning import scaling

    try:
        changed = scaling.scale(read_file(config, overrides), **options)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    click.echo(" \\\n  ".join([f"python main.py --config={config}", *overrides, *flags]))
