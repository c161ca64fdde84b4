"""The tools, as commands: `python -m dinosr_jax COMMAND --help`. Training is `main.py`."""

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """DinoSR in JAX: tools around training (training itself is main.py)."""


@cli.command()
@click.option("--source", required=True, help="Folder of audio, nested or not.")
@click.option("--data_dir", required=True, help="Where to write the dataset.")
@click.option(
    "--num_workers",
    type=click.IntRange(min=1),
    help="Threads that check files.  [default: one a core]",
)
def prepare(source: str, data_dir: str, num_workers: int | None) -> None:
    """Check a folder of audio and write it as records to train from.

    Takes whatever libsndfile reads (flac, wav, ogg, opus, mp3, ...). Files that cannot be used are
    listed with the reason, in skipped.tsv. A killed run goes on where it stopped.
    """
    from dinosr_jax.data import corpora, manifest, sources

    try:
        corpora.prepare(source, data_dir=data_dir, num_workers=num_workers)
    except (sources.SourceError, manifest.ManifestError) as error:
        raise click.ClickException(str(error)) from None
