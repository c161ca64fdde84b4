"""Commands about data: `prepare`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import COUNT, PATH, option
from dinosr_jax.errors import UserError


@click.command()
@option(
    "dataset",
    ["audio_folder", "librispeech"],
    "audio_folder",
    "A folder of audio (--source), or LibriSpeech.",
)
@option(
    "source",
    PATH,
    text="Folder of audio, nested or not; several make one dataset, with ids FOLDER/ID. For "
    "librispeech: a dataset that TFDS prepared earlier.",
    field="sources",
    multiple=True,
)
@option(
    "exclude",
    text="Leave out language=NAME or speaker=NAME, as the folders or their tables name them.",
    multiple=True,
    metavar="FIELD=NAME",
)
@option("data_dir", PATH, text="Where to write the dataset.", required=True)
@option("split", text="librispeech: splits with commas, train_clean100,dev_clean.  [default: all]")
@option(
    "archives",
    PATH,
    text="librispeech: folder of OpenSLR's tar.gz files.  [default: downloads them]",
)
@option(
    "encoding",
    ["original", "pcm16"],
    "original",
    "Store the files' own bytes, or samples: twice the bytes of FLAC, no decoding.",
)
@option("num_workers", COUNT, text="Threads that check files.  [default: one a core]")
def prepare(
    dataset: str,
    sources: tuple[Path, ...],
    exclude: tuple[str, ...],
    data_dir: Path,
    split: str | None,
    archives: Path | None,
    **options: Any,
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

    with one_line(UserError):
        if dataset == "audio_folder":
            audio_folder.prepare(*sources, data_dir=data_dir, exclude=exclude, **options)
            return
        splits = [name.strip() for name in (split or "").replace("+", ",").split(",")]
        librispeech.prepare_librispeech(
            data_dir,
            splits=list(dict.fromkeys(filter(None, splits))),
            archives=archives,
            source=sources[0] if sources else None,
            **options,
        )
