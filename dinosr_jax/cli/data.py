"""Commands about data: `prepare`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.errors import UserError


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
    "sources",
    multiple=True,
    type=shared.LocalPath(),
    help="Folder of audio, nested or not; several make one dataset, with ids FOLDER/ID. For "
    "librispeech: a dataset that TFDS prepared earlier.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="FIELD=NAME",
    help="Leave out language=NAME or speaker=NAME, as the folders or their tables name them.",
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
    sources: tuple[Path, ...],
    exclude: tuple[str, ...],
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
    if dataset == "audio_folder" and not sources:
        raise click.UsageError("--source=FOLDER is missing (or give --dataset=librispeech)")
    if dataset == "audio_folder" and (split or archives):
        raise click.UsageError("--split and --archives are for --dataset=librispeech")
    if dataset == "librispeech" and (len(sources) > 1 or exclude):
        raise click.UsageError("several --source, and --exclude, are for folders of audio")
    if sources and archives is not None:
        raise click.UsageError("give --source or --archives, not both")

    from dinosr_jax.data.prepare import audio_folder, librispeech

    options: dict[str, Any] = {"encoding": encoding, "num_workers": num_workers}
    try:
        if dataset == "librispeech":
            splits = [name.strip() for name in (split or "").replace("+", ",").split(",")]
            librispeech.prepare_librispeech(
                data_dir,
                splits=list(dict.fromkeys(filter(None, splits))),
                archives=archives,
                source=sources[0] if sources else None,
                **options,
            )
        else:
            audio_folder.prepare(*sources, data_dir=data_dir, exclude=exclude, **options)
    except UserError as error:
        raise click.ClickException(str(error)) from None
