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


_run = click.argument("run", type=click.Path(path_type=Path))
_inputs = click.argument("inputs", metavar="FILE_OR_FOLDER", type=click.Path(path_type=Path))
_split = click.option(
    "--split", default="", help="FILE_OR_FOLDER is a prepared dataset; read this."
)


@cli.command()
@_run
@_inputs
@_split
@click.option("--layer", required=True, type=int, help="Layer, from 1.")
@click.option("--tensor", type=click.Choice(["block", "ffn"]), default="block", show_default=True)
@click.option(
    "--model", type=click.Choice(["student", "teacher"]), default="student", show_default=True
)
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
def extract(
    run: Path, inputs: Path, split: str, layer: int, tensor: Any, model: Any, output: Path
) -> None:
    """Write features of recordings: one [T, D] float32 .npy an utterance, 50 frames a second.

    RUN is the workdir of a training run. `block` is the layer's output (Hugging Face's hidden
    state), `ffn` the output of its feed-forward block before the residual.
    """
    import numpy as np

    from dinosr_jax.inference import extract as features

    def compute(trained: features.Trained, waveform: np.ndarray) -> np.ndarray:
        return features.extract(trained, waveform, layer=layer, tensor=tensor, network=model)

    check = lambda trained: features.check_layer(trained, layer)
    for name, array in _each_recording(run, inputs, split, check=check, compute=compute):
        path = output / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)


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
    from dinosr_jax.inference.extract import load_run
    from dinosr_jax.inference.inputs import open_inputs
    from dinosr_jax.training.checkpoint import CheckpointError

    logging.getLogger("absl").setLevel(logging.ERROR)
    left_out = []
    try:
        trained = load_run(run)
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
