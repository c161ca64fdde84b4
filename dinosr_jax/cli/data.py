"""Commands about data: `prepare`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared


@click.command()
@click.option(
    "--dataset",
    type=click.Choice(["audio_folder", "librispeech"]),
    default="audio_folder",
    show_default=True,
    help="A folder of audio (--source), or LibriSpeech.",
)
@click.option(
    "--source",
    type=shared.LocalPath(),
    help="Folder of audio, nested or not; for librispeech: a dataset that TFDS prepared earlier.",
)
@click.option(
    "--data_dir", required=True, type=shared.LocalPath(), help="Where to write the dataset."
)
@click.option(
    "--split", help="librispeech: splits with commas, train_clean100,dev_clean.  [default: all]"
)
@click.option(
    "--archives",
    type=shared.LocalPath(),
    help="librispeech: folder of OpenSLR's tar.gz files.  [default: downloads them]",
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
    source: Path | None,
    data_dir: Path,
    split: str | None,
    archives: Path | None,
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
