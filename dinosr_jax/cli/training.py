"""Commands around training: `compile`, `scale`. Training itself is main.py."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import COUNT, FILE, PATH, option

_OVERRIDES = {"nargs": -1, "metavar": "[--config.FIELD=VALUE]..."}


@click.command("compile", context_settings={"ignore_unknown_options": True})
@option("config", FILE, required=True)
@option("topology", text="TPU and its chips: v5e:4x4, v6e:2x4, v4:2x2x2.", required=True)
@option("batch_size", COUNT, text="Utterances, over all devices.")
@option("seconds", float, text="Length of each.  [default: data.max_seconds]")
@option(
    "optimization",
    ["O0", "O1", "O2", "O3"],
    "O0",
    "Effort of the compiler; runs have O2, which takes several times as long.",
)
@option("libtpu", PATH, text="Folder with libtpu.  [env: DINOSR_LIBTPU]", envvar="DINOSR_LIBTPU")
@option("json", text="Print one JSON object.", field="as_json", is_flag=True)
@click.argument("overrides", **_OVERRIDES)
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

    terminal, shown = sys.stderr.isatty(), []

    def progress(elapsed: float) -> None:
        if terminal or elapsed >= 30 * len(shown):
            shown.append(elapsed)
            text = f"compiling for {options['topology']} ... {elapsed:.0f} s"
            click.echo("\r" + text if terminal else text, nl=not terminal, err=True)

    with one_line():
        values = read_file(config, overrides)
        costs = tpu_compile.compile_ahead(values, libtpu=libtpu, progress=progress, **options)
    click.echo("\n" * terminal, nl=False, err=True)
    click.echo(json.dumps(costs.to_dict()) if as_json else costs.to_text(values["num_steps"]))


@click.command(context_settings={"ignore_unknown_options": True})
@option("config", FILE, required=True)
@option("devices", COUNT, text="How many there are.", required=True)
@option(
    "device_seconds",
    float,
    240.0,
    "Audio that one device holds; 240 s of base take 11 GiB (compile --help).",
)
@option("batch_seconds", float, text="Audio of an update.  [default: the config's]")
@click.argument("overrides", **_OVERRIDES)
def scale(config: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Fit a recipe to the devices at hand: print the flags for main.py.

    The batch stays, and with it the whole recipe, by gradient accumulation. With --batch_seconds it
    gets smaller; learning rate, Adam, EMA, codebook decay and schedule follow.
    """
    from dinosr_jax.config import read_file
    from dinosr_jax.training.planning import scaling

    with one_line():
        changed = scaling.scale(read_file(config, overrides), **options)
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    click.echo(" \\\n  ".join([f"python main.py --config={config}", *overrides, *flags]))
