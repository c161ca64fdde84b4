"""Commands of recognition: `transcribe`, and `evaluate wer`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.inference import network, run_options, run_over_inputs

_FILE = shared.LocalPath()
decoder_options = shared.together(
    click.option(
        "--decoder",
        type=click.Choice(["greedy", "beam"]),
        help="[default: beam where --lm or --settings is given, else greedy]",
    ),
    click.option("--lm", type=_FILE, help="n-gram of words: .arpa, .arpa.gz or KenLM's binary."),
    click.option("--lexicon", type=_FILE, help="Words, and their letters with | at the end."),
    click.option("--beam", type=click.IntRange(min=1), help="[default: 500]"),
    click.option("--beam_threshold", type=float, help="[default: 100]"),
    click.option("--lm_weight", type=float, help="[default: 2]"),
    click.option("--word_score", type=float, help="[default: -1]"),
    click.option("--sil_weight", type=float, help="Of the word boundary.  [default: 0]"),
    click.option("--settings", type=_FILE, help="The last options, as `sweep` writes them."),
)


@click.command()
@run_over_inputs
@click.option("--output", required=True, type=_FILE, help="JSON lines to write.")
@click.option(
    "--key",
    type=click.Choice(["file", "name", "fileid", "audio"]),
    default="file",
    show_default=True,
    help="Field of the path (file) or of the basename, as of `units`.",
)
@click.option("--emissions", type=_FILE, help="Folder to keep log-probabilities [T, V] in.")
@decoder_options
@run_options
def transcribe(
    checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, emissions: Path | None, **given: Any
) -> None:
    """Write what is said in recordings: {"file": ..., "text": ..., "words": [...]} a line.

    CHECKPOINT is a fine-tuned run (its best checkpoint), a step of one, or an exported folder;
    INPUT as in `extract`. Words have their start and end in seconds. The same command goes on where
    it stopped.
    """
    from dinosr_jax.inference.recognition.emissions import check_recogniser, clock_of
    from dinosr_jax.inference.recognition.transcribe import transcribe_files

    wish = {name: given.pop(name) for name in _DECODER}
    with network(checkpoint, given, skip_bad) as (trained, settings):
        check_recogniser(trained)
        settings["decoding"] = choose_decoding(trained.vocabulary, clock_of(trained), wish)
        settings["emissions_folder"] = emissions
        found = transcribe_files(trained, inputs, **settings)
    text = f"{found.written} written"
    text += f", {found.there_before} were there" if found.there_before else ""
    click.echo(text + (f", {len(found.skipped)} left out (skipped.tsv)" if found.skipped else ""))


_DECODER = (
    "decoder", "lm", "lexicon", "beam", "beam_threshold", "lm_weight", "word_score", "sil_weight",
    "settings",
)  # fmt: skip


def choose_decoding(vocabulary: Any, clock: Any, wish: dict[str, Any]) -> Any:
    """The `Decoding` that options ask for."""
    import functools

    from dinosr_jax.inference.recognition import decoding
    from dinosr_jax.inference.recognition.transcribe import Decoding

    chosen = wish.pop("decoder") or ("beam" if wish["lm"] or wish["settings"] else "greedy")
    given = {name: value for name, value in wish.items() if value is not None}
    if chosen == "greedy":
        if given:
            raise ValueError(f"--{next(iter(given))} is for --decoder=beam")
        make = functools.partial(decoding.greedy, vocabulary, clock)
        return Decoding(make, {"decoder": "greedy"})
    from dinosr_jax.cli.sweep import check_words, settings_of
    from dinosr_jax.inference.recognition import beam_search

    settings = settings_of(wish)
    check_words(vocabulary, settings, say=functools.partial(click.echo, err=True))
    make = functools.partial(beam_search.BeamSearch, vocabulary, clock, settings)
    return Decoding(make, {"decoder": "beam", **beam_search.describe(settings)}, by="processes")


@click.command("wer")
@click.argument("hypotheses", metavar="HYP", type=_FILE)
@click.option(
    "--reference",
    required=True,
    type=_FILE,
    help="JSON lines, a table, lines of an id and its words, a LibriSpeech tree, or a dataset.",
)
@click.option("--split", default="", help="--reference is a prepared dataset; of this.")
@click.option("--language", default="", help="Only utterances of this language of the dataset.")
@click.option(
    "--normalise",
    type=click.Choice(["librispeech", "lower", "none"]),
    default="librispeech",
    show_default=True,
    help="Both sides: upper or lower case without punctuation, or as they are.",
)
@click.option(
    "--missing",
    type=click.Choice(["error", "delete", "leave"]),
    default="error",
    show_default=True,
    help="What HYP lacks: an error, all deletions, or left out.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of the bootstrap.")
@click.option("--worst", type=click.IntRange(min=0), default=5, show_default=True)
@click.option("--output", type=_FILE, help="JSON file to write.")
def wer_command(hypotheses: Path, reference: Path, output: Path | None, **given: Any) -> None:
    """Word and character error rates of HYP, the output of `transcribe`, with an interval."""
    import json

    from dinosr_jax.evaluation.wer import rates, references
    from dinosr_jax.inference.outputs import write_text

    with one_line():
        said = references.read_transcripts(hypotheses)
        where = {name: given.pop(name) for name in ("split", "language")}
        known = references.read_transcripts(reference, **where)
        pairs, extra = references.join(known, said, path=reference)
        found = rates.rates(pairs, num_worst=given.pop("worst"), **given)
        if output is not None:
            sides = {"hypotheses": str(hypotheses), "reference": str(reference), **where}
            report = sides | rates.to_dict(found) | {"not_in_reference": extra}
            write_text(output, json.dumps(report, indent=2, allow_nan=False) + "\n")
    click.echo(rates.to_text(found))
    if extra:
        some = ", ".join(extra[:3]) + (" ..." if len(extra) > 3 else "")
        click.echo(f"{len(extra)} of HYP are not in the reference and were not used: {some}")


@click.command()
@run_over_inputs
@click.option(
    "--reference",
    type=_FILE,
    help="Transcripts, as of `evaluate wer`.  [default: those of INPUT with --split]",
)
@click.option("--language", default="", help="Only utterances of this language of the dataset.")
@decoder_options
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--output", required=True, type=_FILE, help="JSON file to write.")
@run_options
def sweep(
    checkpoint: Path,
    inputs: tuple[Path, ...],
    skip_bad: bool,
    reference: Path | None,
    language: str,
    output: Path,
    trials: int,
    seed: int,
    **given: Any,
) -> None:
    """Tune --lm_weight and --word_score of beam search on a development set.

    CHECKPOINT and INPUT as of `transcribe`. The emissions are computed once; trials are drawn from
    fairseq's bounds, 0 to 8 and -5 to 5. `transcribe --settings=OUTPUT` uses the best.
    """
    import json

    from dinosr_jax.cli.sweep import tune
    from dinosr_jax.inference.outputs import write_text

    wish = {name: given.pop(name) for name in _DECODER}
    known = {"reference": reference, "inputs": inputs, "split": given["split"]}
    known["language"] = language
    with network(checkpoint, given, skip_bad) as (trained, settings):
        found = tune(trained, settings, known, wish, number=trials, seed=seed)
        write_text(output, json.dumps(found, indent=2) + "\n")
    click.echo("lm_weight word_score    WER     CER")
    for trial in found["trials"][:10]:
        row = "{lm_weight:9.3f} {word_score:10.3f} {wer:6.2%} {cer:7.2%}"
        click.echo(row.format(**trial))
    click.echo(f"{output}: the best of {trials}; transcribe --settings={output}")


@click.command()
@click.argument("transcripts", type=_FILE)
@click.option("--split", default="", help="TRANSCRIPTS is a prepared dataset; of this.")
@click.option("--language", default="", help="Only utterances of this language of the dataset.")
@click.option("--vocabulary", type=_FILE, help="dict.ltr.txt.  [default: English letters]")
@click.option("--output", required=True, type=_FILE, help="ARPA file to write.")
def ngram(
    transcripts: Path, split: str, language: str, vocabulary: Path | None, output: Path
) -> None:
    """Write a small bigram of the words of transcripts, for --lm.

    TRANSCRIPTS as --reference of `evaluate wer`. For more than some thousands of sentences take
    KenLM's lmplz.
    """
    from dinosr_jax.data import vocabulary as vocabularies
    from dinosr_jax.evaluation.wer.references import read_transcripts
    from dinosr_jax.inference.outputs import write_text
    from dinosr_jax.inference.recognition.ngram import Bigram

    with one_line():
        if language and not split:
            raise ValueError("--language is of a prepared dataset, with --split")
        found = read_transcripts(transcripts, split=split, language=language)
        read = vocabularies.read_dictionary
        spell = (read(vocabulary) if vocabulary else vocabularies.letters()).normalise
        bigram = Bigram(spell(row.text) for row in found.values())
        write_text(output, bigram.to_arpa())
    words = len(bigram.vocabulary) - 1
    click.echo(f"{output}: {len(bigram.pairs)} bigrams of {words} words, {len(found)} transcripts")
