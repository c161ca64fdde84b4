"""The tools, as commands: `python -m dinosr_jax COMMAND --help`. Training is `main.py`."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """DinoSR in JAX: tools around training (training itself is main.py)."""


@cli.command()
@click.option(
    "--dataset",
    type=click.Choice(["audio_folder", "librispeech"]),
    default="audio_folder",
    show_default=True,
    help="A folder of audio (--source), or LibriSpeech.",
)
@click.option(
    "--source",
    help="Folder of audio, nested or not; for librispeech: a dataset that TFDS prepared earlier.",
)
@click.option("--data_dir", required=True, help="Where to write the dataset.")
@click.option(
    "--split", help="librispeech: splits with commas, train_clean100,dev_clean.  [default: all]"
)
@click.option(
    "--archives", help="librispeech: folder of OpenSLR's tar.gz files.  [default: downloads them]"
)
@click.option(
    "--encoding",
    type=click.Choice(["original", "pcm16"]),
    default="original",
    show_default=True,
    help="Store the files' own bytes, or samples: twice the bytes of FLAC, no decoding.",
)
@click.option(
    "--num_workers",
    type=click.IntRange(min=1),
    help="Threads that check files.  [default: one a core]",
)
def prepare(
    dataset: str,
    source: str | None,
    data_dir: str,
    split: str | None,
    archives: str | None,
    encoding: Any,
    num_workers: int | None,
) -> None:
    """Check recordings and write them as records to train from.

    A folder of audio may hold whatever libsndfile reads (flac, wav, ogg, opus, mp3, ...).
    LibriSpeech (60 GB) is downloaded, or taken from the archives of OpenSLR. What cannot be used is
    listed with the reason, in skipped.tsv. A killed run goes on where it stopped.
    """
    if dataset == "audio_folder" and source is None:
        raise click.UsageError("--source=FOLDER is missing (or give --dataset=librispeech)")
    if dataset == "audio_folder" and (split or archives):
        raise click.UsageError("--split and --archives are for --dataset=librispeech")
    if source is not None and archives is not None:
        raise click.UsageError("give --source or --archives, not both")

    from dinosr_jax.data import corpora, librispeech, manifest, sources

    options: dict[str, Any] = {"encoding": encoding, "num_workers": num_workers}
    try:
        if dataset == "librispeech":
            splits = [name.strip() for name in (split or "").replace("+", ",").split(",")]
            librispeech.prepare_librispeech(
                data_dir,
                splits=list(dict.fromkeys(filter(None, splits))),
                archives=archives,
                source=source,
                **options,
            )
        else:
            corpora.prepare(source, data_dir=data_dir, **options)
    except (sources.SourceError, manifest.ManifestError) as error:
        raise click.ClickException(str(error)) from None


@cli.command("compile", context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
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
@click.option("--libtpu", envvar="DINOSR_LIBTPU", help="Folder with libtpu.  [env: DINOSR_LIBTPU]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.argument("overrides", nargs=-1, metavar="[--config.FIELD=VALUE]...")
def compile_command(
    config: str, overrides: tuple[str, ...], libtpu: str | None, as_json: bool, **options: Any
) -> None:
    """Compile the update for a TPU that is not there: memory, FLOPs, exchange, least time.

    Needs PyPI's libtpu, in this environment or in a folder of its own, and no TPU. The batch is the
    largest of the longest crops in `data.max_batch_seconds`, if not given.
    """
    import json
    import sys

    from dinosr_jax.config import read_file
    from dinosr_jax.training import ahead

    terminal, told = sys.stderr.isatty(), []

    def progress(elapsed: float) -> None:
        if terminal or elapsed >= 30 * len(told):
            told.append(elapsed)
            text = f"compiling for {options['topology']} ... {elapsed:.0f} s"
            click.echo("\r" + text if terminal else text, nl=not terminal, err=True)

    try:
        values = read_file(config, overrides)
        found = ahead.compile_ahead(values, libtpu=libtpu, progress=progress, **options)
    except (ahead.AheadError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n" * terminal, nl=False, err=True)
    click.echo(json.dumps(found.to_dict()) if as_json else found.to_text(values["num_steps"]))


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--config", required=True, type=click.Path(exists=True, dir_okay=False))
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
def scale(config: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Fit a recipe to the devices at hand: print the flags for main.py.

    The batch stays, and with it the whole recipe, by gradient accumulation. With --batch_seconds it
    gets smaller; learning rate, Adam, EMA, codebook decay and schedule follow.
    """
    from dinosr_jax.config import read_file
    from dinosr_jax.training import scaling

    try:
        changed = scaling.scale(read_file(config, overrides), **options)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    click.echo(" \\\n  ".join([f"python main.py --config={config}", *overrides, *flags]))


def _together(*decorators: Callable) -> Callable:
    """One decorator of several, the first on top."""
    return lambda command: functools.reduce(lambda f, add: add(f), reversed(decorators), command)


_run_over_inputs = _together(
    click.argument("checkpoint", type=click.Path(path_type=Path)),
    click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path)),
    click.option("--split", default="", help="INPUT are prepared datasets; read this."),
)
_run_options = _together(
    click.option("--shard", default="0/1", show_default=True, help="Part i of n, from 0."),
    click.option(
        "--skip-bad", is_flag=True, help="List what cannot be used in skipped.tsv; go on."
    ),
    click.option("--batch_seconds", type=click.FloatRange(min=0, min_open=True), help="A device."),
    click.option("--chunk_seconds", type=float, default=120.0, show_default=True),
    click.option("--overlap_seconds", type=float, default=20.0, show_default=True),
    click.option(
        "--num_workers", type=click.IntRange(min=1), help="Decode.  [default: one a core]"
    ),
)


@cli.command()
@_run_over_inputs
@click.option("--layer", required=True, help="From 1 (0: their input); 5, or 1,5,9, or all.")
@click.option("--tensor", type=click.Choice(["block", "ffn"]), default="block", show_default=True)
@click.option(
    "--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
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
@_run_options
def extract(checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, **options: Any) -> None:
    """Write features of recordings: [T, D] .npy, 50 frames a second, and features.json.

    CHECKPOINT is a run, a step of one, or another project's checkpoint; INPUT audio files, folders,
    fairseq manifests, or prepared datasets with --split. `block` is a layer's output (Hugging
    Face's hidden state), `ffn` the output of its feed-forward block before the residual. Recordings
    above --chunk_seconds are computed in chunks. The same command goes on where it stopped.

    Without --skip-bad the first bad file ends it: files that cannot be opened before anything is
    computed, in the order of INPUT; damage further inside when it is reached, longest first.
    """
    from dinosr_jax.inference.extract import extract_files

    options["network"] = options.pop("model")
    with _network(checkpoint, options, skip_bad) as (trained, settings):
        found = extract_files(trained, inputs, **settings)
    text = f"{found.written} written"
    text += f", {found.there_before} were there" if found.there_before else ""
    click.echo(text + (f", {len(found.skipped)} left out (skipped.tsv)" if found.skipped else ""))


@cli.command()
@_run_over_inputs
@click.option("--layer", required=True, help="5, or 10,11,12, or all that have units.")
@click.option(
    "--source",
    type=click.Choice(["codebook", "head", "kmeans"]),
    default="codebook",
    show_default=True,
    help="Teacher's codebook, student's head, or --kmeans.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON lines to write.")
@click.option(
    "--key",
    type=click.Choice(["file", "name", "fileid", "audio"]),
    default="file",
    show_default=True,
    help="Field of the path (file) or of the basename (spidr, minimal-hubert, fastabx).",
)
@click.option("--deduplicate", is_flag=True, help="One unit a run, with `durations` in frames.")
@click.option("--textgrid", type=click.Path(path_type=Path), help="Folder for TextGrids, too.")
@click.option("--kmeans", type=click.Path(path_type=Path), help="File of centroids (.npz).")
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
@_run_options
def units(
    checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, deduplicate: bool, **options: Any
) -> None:
    """Write discrete units of recordings: a JSON object a line, {"file": ..., "units": [...]}.

    One unit every 20 ms. CHECKPOINT and INPUT as in `extract`. Several layers have a file each,
    OUTPUT's stem with -layer05; OUTPUT's stem with .stats.json has the statistics. A file that is
    there is replaced when the new one is whole; a run that was stopped starts anew.
    """
    from dinosr_jax.inference import unit_files

    names = {"num_clusters", "seed", "max_frames"}
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    fit = unit_files.Fit(**given) if options.pop("fit") else None
    if given and fit is None:
        raise click.UsageError(f"--{sorted(given)[0]} is for --fit")
    take = lambda *fields: {field: options.pop(field) for field in fields}
    wish = unit_files.Wish(
        fit=fit,
        network=options.pop("model"),
        kmeans_file=options.pop("kmeans"),
        **take("layer", "source", "tensor"),
    )
    form = "runs" if deduplicate else "frames"
    style = unit_files.Style(form=form, textgrids=options.pop("textgrid"), **take("key"))
    options |= {"wish": wish, "style": style}
    with _network(checkpoint, options, skip_bad) as (trained, settings):
        found = unit_files.write_units(trained, inputs, **settings)
    click.echo(unit_files.to_text(found))


@contextlib.contextmanager
def _network(
    checkpoint: Path, options: dict[str, Any], skip_bad: bool
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The network, and settings with progress and batches; errors become one line."""
    import logging

    from tqdm.auto import tqdm

    from dinosr_jax.data import audio, manifest
    from dinosr_jax.inference import batches, model, outputs
    from dinosr_jax.training.checkpoint import CheckpointError

    logging.getLogger("absl").setLevel(logging.ERROR)
    errors = (
        audio.AudioError, CheckpointError, manifest.ManifestError, outputs.OutputError, ValueError,
        OSError,
    )  # fmt: skip
    fields = {field: options.pop(field) for field in batches.Options._fields}
    shown = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    bar = tqdm(unit="s of audio", unit_scale=True, dynamic_ncols=True, bar_format=shown)

    def progress(done: float, total: float) -> None:
        bar.total = total
        bar.update(min(done, total - bar.n))  # sums round

    try:
        with bar:
            trained = model.load(checkpoint)
            bar.write(f"{checkpoint}: the network after {trained.step} updates")
            yield (
                trained,
                options
                | {
                    "bad": "skip" if skip_bad else "raise",
                    "options": batches.Options(**fields),
                    "progress": progress,
                    "say": bar.write,
                },
            )
    except errors as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = click.ClickException("interrupted; run the same command again")
        stopped.exit_code = 130
        raise stopped from None


_FORMATS = click.Choice(["huggingface", "fairseq", "spidr"])


@cli.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Run to write.")
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads.  [default: width / 64]")
@click.option("--num_codebooks", type=click.IntRange(min=1), help="Fresh ones, of a student alone.")
@click.option("--codebook_size", type=click.IntRange(min=1), help="Codewords of fresh ones.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is fresh.")
@click.option("--step", type=click.IntRange(min=0), help="Updates.  [default: the checkpoint's]")
def import_command(checkpoint: Path, output: Path, step: int | None, **choices: Any) -> None:
    """Make a run of a checkpoint of fairseq, spidr or Hugging Face, or of an export.

    Nothing in it is executed. The run can be extracted from, and trained on.
    """
    import logging

    from dinosr_jax.interop import formats, runs

    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        found = formats.read_checkpoint(checkpoint, choices=formats.Choices(**choices))
        runs.write_run(found, output, step=step)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    lines = [f"{checkpoint}: {found.source}, {found.num_tensors} tensors used", *found.notes]
    lines.append(f"{output}: a run after {found.step if step is None else step} updates; go on:")
    lines.append(f"python main.py --config={output}/config.py --workdir={output} [data flags]")
    click.echo("\n  ".join(lines))


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "kind", required=True, type=_FORMATS, help="Whose.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--model",
    type=click.Choice(["student", "teacher"]),
    default="student",
    show_default=True,
    help="huggingface: which is the model; the other is beside it.",
)
def export(run: Path, kind: Any, output: Path, model: Any) -> None:
    """Write a checkpoint that fairseq, spidr or Hugging Face's transformers read.

    RUN is a run, one of its checkpoints, or anything that import reads.
    """
    import logging

    from dinosr_jax.interop import exports, runs

    if model == "teacher" and kind != "huggingface":
        raise click.UsageError(f"--model: a checkpoint for {kind} holds student and teacher")
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        exports.export(runs.read_any(run), output, kind=kind, model=model)
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{output}: written for {kind}")
