"""Commands that take things from a network: `extract`, `units`."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line, silence_absl
from dinosr_jax.cli.options import COUNT, PATH, POSITIVE, SEED, argument, option, output, together

run_over_inputs = together(
    argument("checkpoint"),
    argument("inputs", nargs=-1, required=True),
    option("split", default="", text="INPUT are prepared datasets; read this."),
    shared.heads,
)
run_options = together(
    option("shard", default="0/1", text="Part i of n, from 0."),
    option("skip-bad", text="List what cannot be used in skipped.tsv; go on.", is_flag=True),
    option("batch_seconds", POSITIVE, text="A device."),
    option("chunk_seconds", float, 600.0),
    option("overlap_seconds", float, 60.0),
    option("num_workers", COUNT, text="Decode.  [default: one a core]"),
)


def _layers(text: str) -> Callable:
    """`--layer=1,5` or `--layer=1 --layer=5`, as the former."""
    join = lambda context, option, values: ",".join(values)
    return option("layer", text=text, required=True, multiple=True, callback=join)


@click.command()
@run_over_inputs
@_layers("From 1 (0: their input); 5, or 1,5,9, or all.")
@option("tensor", ["block", "ffn"], "block")
@option("model", ["student", "teacher"], "student")
@output("Folder to write.", required=True)
@option("dtype", ["float32", "float16"], "float32")
@option(
    "layout",
    ["files", "fairseq"],
    "files",
    "One .npy a recording; or one NAME_i_n.npy with its NAME_i_n.len, in the order of INPUT, "
    "0 frames for what is left out.",
)
@option("name", default="features", text="NAME of fairseq's layout.")
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
        done = extract_files(trained, inputs, **settings)
    echo_counts(done)


@click.command()
@run_over_inputs
@_layers("5, or 10,11,12, or all that have units.")
@option(
    "source",
    ["codebook", "head", "kmeans"],
    "codebook",
    "Teacher's codebook, student's head, or --kmeans.",
)
@output("File to write.")
@option(
    "format",
    ["jsonl", "text", "km"],
    "jsonl",
    "A line: a JSON object; name, tab, 1 2 3; or HuBERT's .km, 1 2 3, in the order of INPUT, "
    "empty for what is left out.",
)
@shared.key("Field of the path (file) or of the basename (spidr, minimal-hubert, fastabx).")
@option("deduplicate", text="One unit a run, with `durations` in JSON lines.", is_flag=True)
@option("textgrid", PATH, text="Folder for TextGrids, too.")
@option("kmeans", PATH, text="File of centroids (.npz).")
@option("fit", text="Fit k-means on INPUT, write --kmeans, use it.", is_flag=True)
@option("num_clusters", COUNT, text="--fit.  [default: 500]")
@option("seed", SEED, text="--fit.  [default: 0]")
@option(
    "max_frames",
    COUNT,
    text="--fit: a sample of so many frames is held in memory.  [default: 500,000]",
)
@option("tensor", ["block", "ffn"], text="kmeans.  [--fit: block]")
@option("model", ["student", "teacher"], text="kmeans. [--fit: student]")
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
        done = writer.write_units(trained, inputs, **settings)
    click.echo(writer.to_text(done))


def echo_counts(done: Any) -> None:
    """Prints how many recordings were written, were there before, and were left out."""
    text = f"{done.written} written"
    text += f", {done.there_before} were there" if done.there_before else ""
    click.echo(text + (f", {len(done.skipped)} left out (skipped.tsv)" if done.skipped else ""))


@contextlib.contextmanager
def network(
    checkpoint: Path, options: dict[str, Any], skip_bad: bool
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The network, and settings with progress and batches; errors become one line."""
    from dinosr_jax.inference import pretrained
    from dinosr_jax.inference.forward import batched
    from dinosr_jax.interop import runs
    from dinosr_jax.progress import progress_bar

    silence_absl()
    fields = {field: options.pop(field) for field in batched.Options._fields}
    heads = options.pop("heads")
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    bar = progress_bar(unit="s of audio", unit_scale=True, bar_format=shown)

    def progress(done: float, total: float) -> None:
        bar.total = total
        bar.update(min(done, total - bar.n))  # sums round

    settings = options | {"bad": "skip" if skip_bad else "raise", "progress": progress}
    settings |= {"options": batched.Options(**fields), "say": bar.write}
    with one_line(), bar:
        trained = pretrained.load(checkpoint, heads=heads)
        place = runs.step_folder(checkpoint, trained.config, trained.step)
        bar.write(f"{place}: the network after {trained.step} updates")
        for note in trained.notes:
            bar.write(f"  {note}")
        yield trained, settings
