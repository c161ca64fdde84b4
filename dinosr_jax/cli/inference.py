"""Commands that take things from a network: `extract`, `units`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import heads, together

run_over_inputs = together(
    click.argument("checkpoint", type=shared.LocalPath()),
    click.argument("inputs", nargs=-1, required=True, type=shared.LocalPath()),
    click.option("--split", default="", help="INPUT are prepared datasets; read this."),
    heads,
)
run_options = together(
    click.option("--shard", default="0/1", show_default=True, help="Part i of n, from 0."),
    click.option(
        "--skip-bad", is_flag=True, help="List what cannot be used in skipped.tsv; go on."
    ),
    click.option("--batch_seconds", type=click.FloatRange(min=0, min_open=True), help="A device."),
    click.option("--chunk_seconds", type=float, default=600.0, show_default=True),
    click.option("--overlap_seconds", type=float, default=60.0, show_default=True),
    click.option(
        "--num_workers", type=click.IntRange(min=1), help="Decode.  [default: one a core]"
    ),
)


def _layers(text: str) -> Callable:
    """`--layer=1,5` or `--layer=1 --layer=5`, as the former."""
    join = lambda context, option, values: ",".join(values)
    return click.option("--layer", required=True, multiple=True, callback=join, help=text)


@click.command()
@run_over_inputs
@_layers("From 1 (0: their input); 5, or 1,5,9, or all.")
@click.option("--tensor", type=click.Choice(["block", "ffn"]), default="block", show_default=True)
@click.option(
    "--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True
)
@click.option("--output", required=True, type=shared.LocalPath(), help="Folder to write.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True
)
@click.option(
    "--layout",
    type=click.Choice(["files", "fairseq"]),
    default="files",
    show_default=True,
    help="One .npy a recording; or one NAME_i_n.npy with its NAME_i_n.len, in the order of INPUT, "
    "0 frames for what is left out.",
)
@click.option("--name", default="features", show_default=True, help="NAME of fairseq's layout.")
@run_options
def extract(checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, **options: Any) -> None:
    """Write features of recordings: [T, D] .npy, a row a frame, and features.json.

    CHECKPOINT is a run, a step of one, or another project's checkpoint; INPUT audio files, folders,
    fairseq manifests, or prepared datasets with --split. `block` is a layer's output (Hugging
    Face's hidden state), `ffn` the output of its feed-forward block before the residual. Recordings
    above --chunk_seconds are computed in chunks. The same command goes on where it stopped.

    Without --skip-bad the first bad file ends it: files that cannot be opened before anything is
    computed, in the order of INPUT; damage further inside when it is reached, longest first.
    """
    from dinosr_jax.inference.features.writer import extract_files

    options["network"] = options.pop("model")
    with network(checkpoint, options, skip_bad) as (trained, settings):
        found = extract_files(trained, inputs, **settings)
    text = f"{found.written} written"
    text += f", {found.there_before} were there" if found.there_before else ""
    click.echo(text + (f", {len(found.skipped)} left out (skipped.tsv)" if found.skipped else ""))


@click.command()
@run_over_inputs
@_layers("5, or 10,11,12, or all that have units.")
@click.option(
    "--source",
    type=click.Choice(["codebook", "head", "kmeans"]),
    default="codebook",
    show_default=True,
    help="Teacher's codebook, student's head, or --kmeans.",
)
@click.option("--output", type=shared.LocalPath(), help="File to write.")
@click.option(
    "--format",
    type=click.Choice(["jsonl", "text", "km"]),
    default="jsonl",
    show_default=True,
    help="A line: a JSON object; name, tab, 1 2 3; or HuBERT's .km, 1 2 3, in the order of INPUT, "
    "empty for what is left out.",
)
@click.option(
    "--key",
    type=click.Choice(["file", "name", "fileid", "audio"]),
    default="file",
    show_default=True,
    help="Field of the path (file) or of the basename (spidr, minimal-hubert, fastabx).",
)
@click.option("--deduplicate", is_flag=True, help="One unit a run, with `durations` in JSON lines.")
@click.option("--textgrid", type=shared.LocalPath(), help="Folder for TextGrids, too.")
@click.option("--kmeans", type=shared.LocalPath(), help="File of centroids (.npz).")
@click.option("--fit", is_flag=True, help="Fit k-means on INPUT, write --kmeans, use it.")
@click.option("--num_clusters", type=click.IntRange(min=1), help="--fit.  [default: 500]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="--fit.  [default: 0]")
@click.option(
    "--max_frames",
    type=click.IntRange(min=1),
    help="--fit: a sample of so many frames is held in memory.  [default: 500,000]",
)
@click.option("--tensor", type=click.Choice(["block", "ffn"]), help="kmeans.  [--fit: block]")
@click.option("--model", type=click.Choice(["student", "teacher"]), help="kmeans. [--fit: student]")
@run_options
def units(
    checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, deduplicate: bool, **options: Any
) -> None:
    """Write discrete units of recordings: a line each, {"file": ..., "units": [...]} or plain.

    One unit every 20 ms. CHECKPOINT and INPUT as in `extract`. Several layers have a file each,
    OUTPUT's stem with -layer05; OUTPUT's stem with .stats.json has the statistics. A file that is
    there is replaced when the new one is whole; a run that was stopped starts anew.
    """
    from dinosr_jax.inference.units import writer

    names = {"num_clusters", "seed", "max_frames"}
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    fit = writer.Fit(**given) if options.pop("fit") else None
    if given and fit is None:
        raise click.UsageError(f"--{sorted(given)[0]} is for --fit")
    take = lambda *fields: {field: options.pop(field) for field in fields}
    units_of = writer.UnitOptions(
        fit=fit,
        network=options.pop("model"),
        kmeans_file=options.pop("kmeans"),
        **take("layer", "source", "tensor"),
    )
    form = "runs" if deduplicate else "frames"
    style = writer.Style(form=form, textgrids=options.pop("textgrid"), **take("key", "format"))
    options |= {"units": units_of, "style": style}
    with network(checkpoint, options, skip_bad) as (trained, settings):
        found = writer.write_units(trained, inputs, **settings)
    click.echo(writer.to_text(found))


@contextlib.contextmanager
def network(
    checkpoint: Path, options: dict[str, Any], skip_bad: bool
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The network, and settings with progress and batches; errors become one line."""
    import logging

    from dinosr_jax.inference import pretrained
    from dinosr_jax.inference.forward import batched
    from dinosr_jax.interop import runs
    from dinosr_jax.progress import progress_bar

    logging.getLogger("absl").setLevel(logging.ERROR)
    fields = {field: options.pop(field) for field in batched.Options._fields}
    number = options.pop("heads")
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    bar = progress_bar(unit="s of audio", unit_scale=True, bar_format=shown)

    def progress(done: float, total: float) -> None:
        bar.total = total
        bar.update(min(done, total - bar.n))  # sums round

    with one_line(), bar:
        trained = pretrained.load(checkpoint, heads=number)
        place = runs.step_folder(checkpoint, trained.config, trained.step)
        bar.write(f"{place}: the network after {trained.step} updates")
        for note in trained.notes:
            bar.write(f"  {note}")
        yield (
            trained,
            options
            | {
                "bad": "skip" if skip_bad else "raise",
                "options": batched.Options(**fields),
                "progress": progress,
                "say": bar.write,
            },
        )
