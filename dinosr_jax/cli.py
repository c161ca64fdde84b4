"""The tools, as commands: `python -m dinosr_jax COMMAND --help`. Training is `main.py`."""

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

    from dinosr_jax.training import ahead

    terminal, told = sys.stderr.isatty(), []

    def progress(elapsed: float) -> None:
        if terminal or elapsed >= 30 * len(told):
            told.append(elapsed)
            text = f"compiling for {options['topology']} ... {elapsed:.0f} s"
            click.echo("\r" + text if terminal else text, nl=not terminal, err=True)

    try:
        values = _read_config(config, overrides)
        found = ahead.compile_ahead(values, libtpu=libtpu, progress=progress, **options)
    except (ahead.AheadError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo("\n" * terminal, nl=False, err=True)
    click.echo(json.dumps(found.to_dict()) if as_json else found.to_text(values["num_steps"]))


def _read_config(path: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """A configuration file with --config.FIELD=VALUE flags, as a checked nested dict."""
    import ast
    import runpy

    from dinosr_jax.config import parse

    values = runpy.run_path(path)["get_config"]().to_dict()
    for override in overrides:
        name, found, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not found:
            raise ValueError(f"found {override!r}, expected --config.FIELD=VALUE")
        *parents, field = name.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise ValueError(f"{override}: config.{name}: unknown field")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        part[field] = text if isinstance(part.get(field), str) else value
    parse(values)
    return values


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
    from dinosr_jax.training import scaling

    try:
        changed = scaling.scale(_read_config(config, overrides), **options)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    click.echo(" \\\n  ".join([f"python main.py --config={config}", *overrides, *flags]))


_run = click.argument("run", type=click.Path(path_type=Path))
_inputs = click.argument("inputs", metavar="FILE_OR_FOLDER", type=click.Path(path_type=Path))
_split = click.option(
    "--split", default="", help="FILE_OR_FOLDER is a prepared dataset; read this."
)


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument(
    "inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@_split
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
@click.option("--shard", default="0/1", show_default=True, help="Part i of n, i from 0 to n - 1.")
@click.option("--skip-bad", is_flag=True, help="List what cannot be used in skipped.tsv; go on.")
@click.option("--batch_seconds", type=click.FloatRange(min=0, min_open=True), help="A device.")
@click.option("--chunk_seconds", type=float, default=120.0, show_default=True)
@click.option("--overlap_seconds", type=float, default=20.0, show_default=True)
@click.option("--num_workers", type=click.IntRange(min=1), help="Decode.  [default: one a core]")
def extract(checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, **options: Any) -> None:
    """Write features of recordings: [T, D] .npy, 50 frames a second, and features.json.

    CHECKPOINT is a run, a step of one, or another project's checkpoint; INPUT audio files, folders,
    fairseq manifests, or prepared datasets with --split. `block` is a layer's output (Hugging
    Face's hidden state), `ffn` the output of its feed-forward block before the residual. Recordings
    above --chunk_seconds are computed in chunks. The same command goes on where it stopped.

    Without --skip-bad the first bad file ends it: files that cannot be opened before anything is
    computed, in the order of INPUT; damage further inside when it is reached, longest first.
    """
    import logging

    from tqdm.auto import tqdm

    from dinosr_jax.data import audio, manifest
    from dinosr_jax.inference import batches, model, outputs
    from dinosr_jax.inference.extract import extract_files
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
            found = extract_files(
                trained,
                inputs,
                network=options.pop("model"),
                bad="skip" if skip_bad else "raise",
                options=batches.Options(**fields),
                progress=progress,
                say=bar.write,
                **options,
            )
    except errors as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = click.ClickException("interrupted; the same command goes on where it stopped")
        stopped.exit_code = 130
        raise stopped from None
    left_out = f", {len(found.skipped)} left out (skipped.tsv)" if found.skipped else ""
    there = f", {found.there_before} were there" if found.there_before else ""
    click.echo(f"{found.written} written{there}{left_out}")


@cli.command()
@_run
@_inputs
@_split
@click.option("--layer", required=True, type=int, help="Layer, from 1; the top ones have units.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="JSONL to write.")
def units(run: Path, inputs: Path, split: str, layer: int, output: Path) -> None:
    """Write discrete units of recordings: one JSON object a line with `file` and `units`.

    RUN is the workdir of a training run. Units are the codes of the teacher's codebook, one every
    20 ms.
    """
    import json

    from dinosr_jax.inference import units as discrete

    compute = lambda trained, waveform: discrete.extract_units(trained, waveform, layer=layer)
    check = lambda trained: discrete.codebook_of_layer(trained, layer)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    with temporary.open("w") as file:
        for name, codes in _each_recording(run, inputs, split, check=check, compute=compute):
            file.write(json.dumps({"file": name, "units": codes.tolist()}) + "\n")
    temporary.replace(output)


def _each_recording(
    run: Path, inputs: Path, split: str, *, check: Callable, compute: Callable
) -> Iterator[tuple[str, Any]]:
    """Computes something of every recording; lists those that cannot be used, with the reason."""
    import logging

    from tqdm.auto import tqdm

    from dinosr_jax.data.audio import AudioError
    from dinosr_jax.inference.inputs import open_inputs
    from dinosr_jax.inference.model import load
    from dinosr_jax.training.checkpoint import CheckpointError

    logging.getLogger("absl").setLevel(logging.ERROR)
    left_out = []
    try:
        trained = load(run)
        check(trained)
        recordings = open_inputs(inputs, split=split)
        click.echo(f"{run}: the network after {trained.step} updates")
        for recording in tqdm(recordings, unit="utterance", dynamic_ncols=True):
            try:
                result = compute(trained, recording.load())
            except AudioError as error:
                left_out.append(f"  {recording.id}: {error}")
                continue
            yield recording.id, result
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if left_out:
        click.echo("\n".join([f"{len(left_out)} of {len(recordings)} left out:", *left_out]))
    if len(left_out) == len(recordings):
        raise click.ClickException(f"nothing in {inputs} could be used")
