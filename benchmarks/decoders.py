"""Decoders on the same emissions and n-gram: time, error rate, agreement.

  python -m dinosr_jax transcribe RUN DATA --split=validation --emissions=emissions --output=h.jsonl
  python benchmarks/decoders.py emissions --lm=lm.arpa --reference=DATA --split=validation

Without `emissions` they are made of the references: their letters, for 1 or 2 frames, blanks
between, and noise: greedy decoding reads nothing of it, the n-gram most words.
Greedy, flashlight-text (the one that `transcribe` uses) and ctc-beam-decoder (pip install
ctc-beam-decoder), each with the words of the n-gram as its lexicon or vocabulary. The emissions are
those of fairseq's 32 letters. One thread each, in turn; time is that of the CPU.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from dinosr_jax.data.vocabulary import letters
from dinosr_jax.evaluation.wer import rates, references
from dinosr_jax.inference.recognition import beam_search, decoding, lexicon

CLOCK = decoding.Clock(field=400, hop=320)


def greedy(_):
    """No search."""
    decode = decoding.greedy(letters(), CLOCK)
    return lambda emissions: decode(emissions).text


def flashlight(arguments, *, log_add=False):
    """The decoder of `transcribe`: the best path, or all paths."""
    settings = beam_search.BeamSettings(
        arguments.lm,
        beam=arguments.beam,
        lm_weight=arguments.lm_weight,
        word_score=arguments.word_score,
        log_add=log_add,
    )
    decode = beam_search.BeamSearch(letters(), CLOCK, settings)
    return lambda emissions: decode(emissions).text


def flashlight_log_add(arguments):
    """All paths, as ctc-beam-decoder."""
    return flashlight(arguments, log_add=True)


def ctc_beam_decoder(arguments):
    """All paths; given flashlight's weights, bounds and, by a penalty, its words only."""
    import ctc_beam_decoder as library

    symbols = letters().symbols
    labels = ["", *symbols[5:], " "]  # the blank, letters, the boundary; special symbols go
    columns = [0, *range(5, 32), 4]
    decoder = library.BeamSearchDecoder(
        labels,
        kenlm_model_path=str(arguments.lm),
        unigrams=lexicon.arpa_words(Path(arguments.lm)),
        alpha=arguments.lm_weight / math.log(10),  # it weighs natural logarithms
        beta=arguments.word_score,
        unk_score_offset=-1000.0,
    )
    how = {"beam_width": arguments.beam, "beam_prune_logp": -100.0, "token_min_logp": -100.0}
    return lambda emissions: decoder.decode(emissions[:, columns], **how)


def made(text, random):
    """Emissions [T, 32] of a text: each frame's symbol is 4 above Gumbel noise."""
    vocabulary = letters()
    path = [0]
    for label in vocabulary.encode(text, unknown="mark").tolist():
        path += [label] * random.integers(1, 3) + [0] * random.integers(1, 3)
    logits = random.gumbel(size=(len(path), len(vocabulary.symbols)))
    logits[:, 1:4] -= 20  # of fairseq's special symbols the blank alone is said
    logits[np.arange(len(path)), path] += 4
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def main() -> None:
    """Prints a row for each decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("emissions", type=Path, nargs="?")
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
    folder, random = arguments.emissions, np.random.default_rng(0)
    if folder is None:
        found = {id_: made(row.text, random) for id_, row in known.items()}
    else:
        paths = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.npy")}
        found = {id_: np.load(paths[id_]) for id_ in sorted(paths)}
    ids = [id_ for id_ in found if id_ in known]
    seconds = sum(len(found[id_]) for id_ in ids) * CLOCK.hop / 16_000
    print(f"{len(ids)} utterances, {seconds / 60:.1f} minutes; beam {arguments.beam}")
    print("decoder              WER      CER   audio s a CPU second        same text as flashlight")
    texts: dict[str, list[str]] = {}
    for make in (greedy, flashlight, flashlight_log_add, ctc_beam_decoder):
        decode = make(arguments)
        start = time.process_time()
        texts[make.__name__] = [decode(found[id_]) for id_ in ids]
        rate = seconds / (time.process_time() - start)
        said = zip(ids, texts[make.__name__], strict=True)
        pairs = [references.Pair(known[id_], text) for id_, text in said]
        errors = rates.rates(pairs).errors
        same = "-"
        if "flashlight" in texts:
            both = zip(texts["flashlight"], texts[make.__name__], strict=True)
            same = f"{sum(a == b for a, b in both)} of {len(ids)}"
        print(f"{make.__name__:18} {errors.wer:6.1%}  {errors.cer:6.1%}  {rate:18.1f}   {same:>24}")


if __name__ == "__main__":
    main()
