"""Commands of recognition: `transcribe`, `sweep`, `ngram`, and `evaluate wer`."""

from pathlib import Path
from typing import Any

import click

from dinosr_jax.cli import options as shared
from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.inference import echo_counts, network, run_options, run_over_inputs
from dinosr_jax.cli.options import COUNT, FROM_0, PATH, SEED, argument, option, output
from dinosr_jax.errors import UserError

_DECODER = {
    "decoder": (
        ["greedy", "beam"],
        "[default: beam where --lm or --settings is given, else greedy]",
    ),
    "lm": (PATH, "n-gram of words: .arpa, .arpa.gz or KenLM's binary."),
    "lexicon": (PATH, "Words, and their letters with | at the end."),
    "beam": (COUNT, "[default: 500]"),
    "beam_threshold": (float, "[default: 100]"),
    "lm_weight": (float, "[default: 2]"),
    "word_score": (float, "[default: -1]"),
    "sil_weight": (float, "Of the word boundary.  [default: 0]"),
    "settings": (PATH, "The last options, as `sweep` writes them."),
}
_decoder_options = shared.together(
    *(option(name, kind, text=text) for name, (kind, text) in _DECODER.items())
)


@click.command()
@run_over_inputs
@output("JSON lines to write.", required=True)
@shared.key("Field of the path (file) or of the basename, as of `units`.")
@option("emissions", PATH, text="Folder to keep log-probabilities [T, V] in.")
@_decoder_options
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

    decoder = {name: given.pop(name) for name in _DECODER}
    with network(checkpoint, given, skip_bad) as (trained, settings):
        check_recogniser(trained)
        settings["decoding"] = _decoding(trained.vocabulary, clock_of(trained), decoder)
        settings["emissions_folder"] = emissions
        done = transcribe_files(trained, inputs, **settings)
    echo_counts(done)


def _decoding(vocabulary: Any, clock: Any, decoder: dict[str, Any]) -> Any:
    """The `Decoding` of the options of a decoder."""
    import functools

    from dinosr_jax.cli.sweep import beam_settings
    from dinosr_jax.inference.recognition import beam_search, decoding
    from dinosr_jax.inference.recognition.transcribe import Decoding

    kind = decoder.pop("decoder") or ("beam" if decoder["lm"] or decoder["settings"] else "greedy")
    if kind == "greedy":
        if given := [name for name, value in decoder.items() if value is not None]:
            raise UserError(f"--{given[0]} is for --decoder=beam")
        make = functools.partial(decoding.greedy, vocabulary, clock)
        return Decoding(make, {"decoder": "greedy"})
    settings = beam_settings(decoder, vocabulary, say=functools.partial(click.echo, err=True))
    make = functools.partial(beam_search.BeamSearch, vocabulary, clock, settings)
    return Decoding(make, {"decoder": "beam", **beam_search.describe(settings)}, by="processes")


@click.command("wer")
@argument("hypotheses", metavar="HYP")
@option(
    "reference",
    PATH,
    text="JSON lines, a table, lines of an id and its words, a LibriSpeech tree, or a dataset.",
    required=True,
)
@option("split", default="", text="--reference is a prepared dataset; of this.")
@shared.language
@option(
    "normalise",
    ["librispeech", "lower", "none"],
    "librispeech",
    "Both sides: upper or lower case without punctuation, or as they are.",
)
@option(
    "missing",
    ["error", "delete", "leave"],
    "error",
    "What HYP lacks: an error, all deletions, or left out.",
)
@option("seed", SEED, 0, "Of the bootstrap.", show_default=False)
@option("worst", FROM_0, 5)
@output("JSON file to write.")
def wer_command(hypotheses: Path, reference: Path, output: Path | None, **given: Any) -> None:
    """Word and character error rates of HYP, the output of `transcribe`, with an interval."""
    import json

    from dinosr_jax.evaluation.wer import rates, references
    from dinosr_jax.inference.outputs import write_text

    with one_line():
        recognised = references.read_transcripts(hypotheses)
        where = {name: given.pop(name) for name in ("split", "language")}
        known = references.read_transcripts(reference, **where)
        pairs, extra = references.join(known, recognised, path=reference)
        result = rates.rates(pairs, num_worst=given.pop("worst"), **given)
        if output is not None:
            sides = {"hypotheses": str(hypotheses), "reference": str(reference), **where}
            report = sides | rates.to_dict(result) | {"not_in_reference": extra}
            write_text(output, json.dumps(report, indent=2, allow_nan=False) + "\n")
    click.echo(rates.to_text(result))
    if extra:
        some = ", ".join(extra[:3]) + (" ..." if len(extra) > 3 else "")
        click.echo(f"{len(extra)} of HYP are not in the reference and were not used: {some}")


@click.command()
@run_over_inputs
@option(
    "reference",
    PATH,
    text="Transcripts, as of `evaluate wer`.  [default: those of INPUT with --split]",
)
@shared.language
@_decoder_options
@option("trials", COUNT, 50)
@option("seed", SEED, 0)
@output("JSON file to write.", required=True)
@run_options
def sweep(
    checkpoint: Path, inputs: tuple[Path, ...], skip_bad: bool, output: Path, **given: Any
) -> None:
    """Tune --lm_weight and --word_score of beam search on a development set.

    CHECKPOINT and INPUT as of `transcribe`. The emissions are computed once; trials are drawn from
    fairseq's bounds, 0 to 8 and -5 to 5. `transcribe --settings=OUTPUT` uses the best.
    """
    import json

    from dinosr_jax.cli.sweep import tune
    from dinosr_jax.inference.outputs import write_text

    decoder = {name: given.pop(name) for name in _DECODER}
    chosen = {name: given.pop(name) for name in ("reference", "language", "trials", "seed")}
    with network(checkpoint, given, skip_bad) as (trained, settings):
        tuned = tune(trained, inputs, settings, decoder, **chosen)
        write_text(output, json.dumps(tuned, indent=2) + "\n")
    click.echo("lm_weight word_score    WER     CER")
    for trial in tuned["trials"][:10]:
        row = "{lm_weight:9.3f} {word_score:10.3f} {wer:6.2%} {cer:7.2%}"
        click.echo(row.format(**trial))
    click.echo(f"{output}: the best of {chosen['trials']}; transcribe --settings={output}")


@click.command()
@argument("transcripts")
@option("split", default="", text="TRANSCRIPTS is a prepared dataset; of this.")
@shared.language
@option("vocabulary", PATH, text="dict.ltr.txt.  [default: English letters]")
@output("ARPA file to write.", required=True)
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
            raise UserError("--language is of a prepared dataset, with --split")
        texts = read_transcripts(transcripts, split=split, language=language)
        read = vocabularies.read_dictionary
        spell = (read(vocabulary) if vocabulary else vocabularies.letters()).normalise
        bigram = Bigram(spell(row.text) for row in texts.values())
        write_text(output, bigram.to_arpa())
    words = len(bigram.vocabulary) - 1
    click.echo(f"{output}: {len(bigram.pairs)} bigrams of {words} words, {len(texts)} transcripts")
