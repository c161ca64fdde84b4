"""Options that several commands share, and how all of them are declared."""

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


PATH, FILE = LocalPath(), LocalPath(exists=True)
COUNT, FROM_0, SEED = click.IntRange(1), click.IntRange(0), click.IntRange(0, 2**32 - 1)
POSITIVE = click.FloatRange(min=0, min_open=True)


def option(
    name: str,
    kind: Any = None,
    default: Any = None,
    text: str | None = None,
    *,
    field: str | None = None,
    **how: Any,
) -> Callable:
    """Declares --NAME.

    Args:
      name: Without dashes.
      kind: A type of click, or the choices.
      default: Shown in the help, unless it is empty.
      text: Of the help.
      field: The parameter that gets the value; None for the name.
      **how: More for `click.option`.
    """
    if isinstance(kind, list):
        kind = click.Choice(kind)
    if default is not None:
        how = {"default": default, "show_default": default != ""} | how
    fields = () if field is None else (field,)
    return click.option(f"--{name}", *fields, type=kind, help=text, **how)


def together(*decorators: Callable) -> Callable:
    """One decorator of several, the first on top."""
    return lambda command: functools.reduce(lambda f, add: add(f), reversed(decorators), command)


def argument(name: str, **how: Any) -> Callable:
    """Declares an argument that is a path."""
    return click.argument(name, type=PATH, **how)


def output(text: str, **how: Any) -> Callable:
    """Declares --output."""
    return option("output", PATH, None, text, **how)


heads = option(
    "heads",
    COUNT,
    text="Attention heads of a checkpoint that does not say them.  [default: width / 64]",
)
stress = option("stress", ["strip", "keep"], "strip")
prefix = option("prefix", default="", text="Put before every name of the alignment: asterisk_en/.")
of_alignment = together(
    option(
        "format",
        ["textgrid", "fairseq", "cpc", "jsonl", "discophon", "tsv"],
        text="Of the alignment.  [default: by its content]",
        field="kind",
    ),
    option("tier", default="phones", text="Of TextGrids."),
    stress,
    prefix,
)
features = together(
    option(
        "max_memory",
        POSITIVE,
        2.0,
        "GiB of features that are held; what takes more is kept in files of a temporary folder.",
    ),
    option("cache", PATH, text="Folder to keep features in, in float16, instead."),
)
system = option(
    "system",
    ["codebook", "head", "kmeans", "mfcc", "untrained"],
    text="What it is of.  [default: what was written beside, else codebook]",
)
evaluation_output = output("Folder.  [default: RUN/evaluation]")
language = option("language", default="", text="Only utterances of this language of the dataset.")
key = lambda text: option("key", ["file", "name", "fileid", "audio"], "file", text)


def read_given_alignment(options: Mapping[str, Any]) -> Any:
    """The alignment of `--alignment` (or the argument), read as the options `of_alignment` say."""
    from dinosr_jax.data.phones.alignments import read_alignment

    how = {name: options[name] for name in ("kind", "tier", "stress")}
    return read_alignment(options["alignment"], **how).with_prefix(options["prefix"])
