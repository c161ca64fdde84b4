"""Options that several commands share."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from dinosr_jax.files import LOCAL, is_url


class LocalPath(click.Path):
    """A path on this machine; with `exists`, of a file that is there. A URL is refused."""

    def __init__(self, *, exists: bool = False):
        super().__init__(exists=exists, dir_okay=not exists, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        if is_url(value):
            self.fail(f"found the URL {value}, expected {LOCAL}", param, ctx)
        return super().convert(value, param, ctx)


def together(*decorators: Callable) -> Callable:
    """One decorator of several, the first on top."""
    return lambda command: functools.reduce(lambda f, add: add(f), reversed(decorators), command)


heads = click.option(
    "--heads",
    type=click.IntRange(min=1),
    help="Attention heads of a checkpoint that does not say them.  [default: width / 64]",
)
stress = click.option(
    "--stress", type=click.Choice(["strip", "keep"]), default="strip", show_default=True
)
prefix = click.option(
    "--prefix", default="", help="Put before every name of the alignment: asterisk_en/."
)
of_alignment = together(
    click.option(
        "--format",
        "kind",
        type=click.Choice(["textgrid", "fairseq", "cpc", "jsonl", "discophon", "tsv"]),
        help="Of the alignment.  [default: by its content]",
    ),
    click.option("--tier", default="phones", show_default=True, help="Of TextGrids."),
    stress,
    prefix,
)
features = together(
    click.option(
        "--max_memory",
        type=click.FloatRange(min=0, min_open=True),
        default=2.0,
        show_default=True,
        help="GiB of features that are held; what takes more is computed for every batch.",
    ),
    click.option(
        "--cache",
        type=LocalPath(),
        help="Folder to keep features in, in float16, instead.",
    ),
)
system = click.option(
    "--system",
    type=click.Choice(["codebook", "head", "kmeans", "mfcc", "untrained"]),
    help="What it is of.  [default: what was written beside, else codebook]",
)


def read_given_alignment(options: Mapping[str, Any]) -> Any:
    """The alignment that `--alignment` (or the argument) and the options `of_alignment` say."""
    from dinosr_jax.data.phones.alignments import read_alignment

    how = {name: options[name] for name in ("kind", "tier", "stress")}
    return read_alignment(options["alignment"], **how).with_prefix(options["prefix"])
