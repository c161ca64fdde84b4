"""Decoders on the same emissions and n-gram: time, error rate, agreement.

  python -m dinosr_jax transcribe RUN DATA --split=validation --emissions=emissions --output=h.jsonl
  python benchmarks/decoders.py emissions --lm=lm.arpa --reference=DATA --split=validation

Greedy, flashlight-text (the one that `transcribe` uses) and ctc-beam-decoder (pip install
ctc-beam-decoder), each with the words of the n-gram as its lexicon or vocabulary. The emissions are
those of fairseq's 32 letters. One thread each, in turn; time is that of the CPU.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dinosr_jax.data.vocabulary import letters
from dinosr_jax.evaluation import references, wer
from dinosr_jax.inference import beam_search, decoding, lexicon

CLOCK = decoding.Clock(field=400, hop=320)


def greedy(_):
    """No search."""
    decode = decoding.greedy(letters(), CLOCK)
    return lambda emissions: decode(emissions).text


def flashlight(arguments):
    """The decoder of `transcribe`."""
    settings = beam_search.Settings(
        arguments.lm,
        beam=arguments.beam,
        lm_weight=arguments.lm_weight,
        word_score=arguments.word_score,
    )
    decode = beam_search.beam_search(letters(), CLOCK, settings)
    return lambda emissions: decode(emissions).text


def ctc_beam_decoder(arguments):
    """Sums over alignments; words that the n-gram lacks cost `unk_score_offset`."""
    import ctc_beam_decoder as library

    symbols = letters().symbols
    labels = ["", *symbols[5:], " "]  # the blank, letters, the boundary; special symbols go
    columns = [0, *range(5, 32), 4]
    decoder = library.BeamSearchDecoder(
        labels,
        kenlm_model_path=str(arguments.lm),
        unigrams=lexicon.arpa_words(Path(arguments.lm)),
        alpha=arguments.lm_weight,
        beta=arguments.word_score,
    )
    return lambda emissions: decoder.decode(emissions[:, columns], beam_width=arguments.beam)


def main() -> None:
    """Prints a row for each decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("emissions", type=Path)
    parser.add_argument("--lm", required=True, type=Path)
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--split", default="")
    parser.add_argument("--language", default="")
    parser.add_argument("--beam", type=int, default=100)
    parser.add_argument("--lm_weight", type=float, default=2.0)
    parser.add_argument("--word_score", type=float, default=-1.0)
    arguments = parser.parse_args()
    where = {"split": arguments.split, "language": arguments.language}
    known = references.read_transcripts(arguments.reference, **where)
    found = {
        path.relative_to(arguments.emissions).with_suffix("").as_posix(): np.load(path)
        for path in sorted(arguments.emissions.rglob("*.npy"))
    }
    ids = [id_ for id_ in found if id_ in known]
    seconds = sum(len(found[id_]) for id_ in ids) * CLOCK.hop / 16_000
    print(f"{len(ids)} utterances, {seconds / 60:.1f} minutes; beam {arguments.beam}")
    print("decoder            WER      CER   audio s a CPU second        same text as flashlight")
    texts: dict[str, list[str]] = {}
    for make in (greedy, flashlight, ctc_beam_decoder):
        decode = make(arguments)
        start = time.process_time()
        texts[make.__name__] = [decode(found[id_]) for id_ in ids]
        rate = seconds / (time.process_time() - start)
        said = zip(ids, texts[make.__name__], strict=True)
        pairs = [references.Pair(known[id_], text) for id_, text in said]
        errors = wer.rates(pairs).errors
        same = "-"
        if "flashlight" in texts:
            both = zip(texts["flashlight"], texts[make.__name__], strict=True)
            same = f"{sum(a == b for a, b in both)} of {len(ids)}"
        print(f"{make.__name__:16} {errors.wer:6.1%}  {errors.cer:6.1%}  {rate:18.1f}   {same:>24}")


if __name__ == "__main__":
    main()
