"""Beam search against all paths, in plain Python."""

import gzip
import itertools
import json
import math
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data.vocabulary import SPECIAL, Vocabulary, letters, phones
from dinosr_jax.inference.recognition import beam_search as bs
from dinosr_jax.inference.recognition.decoding import Clock, greedy
from dinosr_jax.inference.recognition.ngram import Bigram
from tests.witten_bell import WittenBell

pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not there")
CLOCK = Clock(field=400, hop=320)
GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = Vocabulary((*SPECIAL, "|", "A", "B"))
SENTENCES = ["A B", "AB A", "B A B", "A AB", "B B A"]
LEXICON = {"A": "A |", "B": "B |", "AB": "A B |", "BA": "B A |"}


def emissions_of(frames, seed, size=7):
    """Random log-probabilities; fairseq's special symbols never occur."""
    logits = np.random.default_rng(seed).normal(scale=2.0, size=(frames, size))
    logits[:, 1:4] = -50
    return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)


def brute_force(emissions, score, *, sil_weight=0.0):
    """(score, text) of the best of all paths; `score` gives that of their symbols, or None."""
    best = (-math.inf, None)
    choices = [0, 4, 5, 6]
    for path in itertools.product(choices, repeat=len(emissions)):
        tokens = "".join(SMALL.symbols[s] for s, _ in itertools.groupby(path) if s != 0)
        found = score(tokens)
        if found is not None:
            total = float(sum(emissions[t, s] for t, s in enumerate(path))) + found[0]
            total += sil_weight * path.count(SMALL.symbols.index("|"))
            best = max(best, (total, found[1]), key=lambda pair: pair[0])
    return best


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    (folder / "lm.arpa").write_text(Bigram(SENTENCES).to_arpa())
    (folder / "lexicon.lst").write_text("".join(f"{w}\t{s}\n" for w, s in LEXICON.items()))
    return folder


def log10_of(bigram, words):
    """Of the probability of a sentence with its end."""
    pairs = itertools.pairwise(["<s>", *words, "</s>"])
    return sum(math.log10(bigram.bigram(*pair)) for pair in pairs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weights", [(2.0, -1.0), (0.7, 1.5), (0.0, 0.0)])
def test_lexicon_and_ngram_find_the_best_of_all_paths(files, seed, weights):
    lm_weight, word_score = weights
    emissions, bigram = emissions_of(6, seed), Bigram(SENTENCES)

    def score(tokens):
        *words, rest = tokens.split("|")
        words = [word for word in words if word]
        if rest or not set(words) <= set(LEXICON):
            return None  # a word that did not end
        return lm_weight * log10_of(bigram, words) + word_score * len(words), " ".join(words)

    settings = bs.BeamSettings(
        files / "lm.arpa", files / "lexicon.lst", lm_weight=lm_weight, word_score=word_score
    )
    found = bs.BeamSearch(SMALL, CLOCK, settings)(emissions)
    expected = brute_force(emissions, score)
    assert found.text == expected[1]
    assert found.score == pytest.approx(expected[0], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_a_trigram_words_spelt_alike_and_boundaries(tmp_path, seed):
    """Words have a score, frames of a boundary another; the trigram tells A1 from A2."""
    spellings = {"A1": ["A"], "A2": ["A"], "B": ["B", "BB"], "AB": ["AB"]}
    sentences = ["A1 B A2", "B A1 B A2", "AB A2", "A2 A2 B", "B AB A1", "A1 A1"]
    ngram = WittenBell(sentences, order=3)
    (tmp_path / "lm.arpa").write_text(ngram.to_arpa())
    lines = [f"{word}\t{' '.join(s)} |\n" for word, some in spellings.items() for s in some]
    (tmp_path / "lexicon.lst").write_text("".join(lines))

    def score(tokens):
        *segments, rest = tokens.split("|")
        options = [[w for w, some in spellings.items() if s in some] for s in segments if s]
        if rest or not all(options):
            return None
        said = [(1.2 * ngram.log10(words), words) for words in itertools.product(*options)]
        best, words = max(said)
        return best + 0.9 * len(words), " ".join(words)

    settings = bs.BeamSettings(
        tmp_path / "lm.arpa", tmp_path / "lexicon.lst",
        lm_weight=1.2, word_score=0.9, sil_weight=-0.4,
    )  # fmt: skip
    emissions = emissions_of(7, seed)
    found = bs.BeamSearch(SMALL, CLOCK, settings)(emissions)
    expected = brute_force(emissions, score, sil_weight=-0.4)
    assert (found.text, len(found.words)) == (expected[1], len(expected[1].split()))
    assert found.score == pytest.approx(expected[0], abs=1e-3)


def test_the_ngram_of_these_tests_is_one(tmp_path):
    """Its probabilities sum to one; KenLM reads the same from its file."""
    ngram = WittenBell(["A B A", "B B", "AB A B A", "A"], order=3)
    for history in [(), ("A",), ("<s>", "A"), ("B", "A"), ("AB", "never"), ("<unk>", "<unk>")]:
        assert sum(ngram.probability(history, w) for w in ngram.words) == pytest.approx(1.0)
    (tmp_path / "lm.arpa").write_text(ngram.to_arpa())
    library = bs._library()
    known = library.dictionary.Dictionary(["A", "B", "AB", "<unk>"])
    kenlm = library.kenlm.KenLM(str(tmp_path / "lm.arpa"), known)
    for words in itertools.product(["A", "B", "AB", "<unk>"], repeat=4):
        state, total = kenlm.start(False), 0.0
        for word in words:
            state, found = kenlm.score(state, known.get_index(word))
            total += found
        total += kenlm.finish(state)[1]
        assert total == pytest.approx(ngram.log10(words), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_without_lexicon_and_ngram_it_is_the_best_path(seed):
    emissions = emissions_of(6, seed)
    found = bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(lm_weight=0.0))(emissions)
    best = greedy(SMALL, CLOCK)(emissions)
    assert (found.text, found.words) == (best.text, best.words)
    assert found.score == pytest.approx(best.score, abs=1e-3)


def test_log_add_sums_paths():
    """Two symbols in two frames: 'A' has three paths, each less probable than that of ''."""
    p = np.full((2, 7), 1e-9)
    p[:, 0], p[:, 5] = 0.55, 0.45
    emissions = np.log(p).astype(np.float32)
    of = lambda **more: bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(lm_weight=0.0, **more))(
        emissions
    )
    assert of().text == "" and of(log_add=True).text == "A"


def test_words_of_the_ngram_are_a_lexicon_where_none_is_given(files):
    emissions = emissions_of(6, 1)
    given = bs.BeamSettings(files / "lm.arpa", files / "three.lst")
    (files / "three.lst").write_text("A A |\nB B |\nAB A B |\n")
    alone = bs.BeamSettings(files / "lm.arpa")
    a, b = (bs.BeamSearch(SMALL, CLOCK, s)(emissions) for s in (given, alone))
    assert a == b


def test_an_ngram_of_symbols_needs_no_lexicon(tmp_path):
    bigram = Bigram(["A | B |", "A B | A |", "B | B |"])
    (tmp_path / "letters.arpa").write_text(bigram.to_arpa())
    emissions = emissions_of(5, 2)

    def score(tokens):
        return 1.5 * log10_of(bigram, tokens), " ".join(tokens.replace("|", " ").split())

    settings = bs.BeamSettings(tmp_path / "letters.arpa", lm_weight=1.5)
    found = bs.BeamSearch(SMALL, CLOCK, settings)(emissions)
    expected = brute_force(emissions, score)
    assert found.text == expected[1]


def test_compressed_ngrams(files):
    path = files / "lm.arpa.gz"
    path.write_bytes(gzip.compress((files / "lm.arpa").read_bytes(), mtime=0))
    emissions = emissions_of(6, 3)
    plain, packed = (
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(p))(emissions)
        for p in (files / "lm.arpa", path)
    )
    assert plain == packed


@pytest.mark.parametrize("form", ["trie", "probing"])
def test_kenlms_binaries(files, form):
    """A trigram of SENTENCES by KenLM's lmplz -o 3 --discount_fallback, and its build_binary."""
    lexicon, lms = (
        files / "lexicon.lst",
        [GOLDEN / f"trigram.{end}" for end in ("arpa", f"{form}.bin")],
    )
    plain, binary = (bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(lm, lexicon)) for lm in lms)
    weightless = plain.with_weights(lm_weight=0.0)
    for seed in range(8):
        emissions = emissions_of(12, seed)
        expected, found = plain(emissions), binary(emissions)
        assert found[:2] == expected[:2] and found.score == pytest.approx(expected.score, abs=1e-4)
        assert abs(found.score - weightless(emissions).score) > 0.1
    with pytest.raises(ValueError, match="--lexicon"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(lms[1]))


@pytest.mark.parametrize("form", ["trie", "probing"])
def test_kenlms_binaries_that_are_damaged(files, tmp_path, form):
    whole, bad = (GOLDEN / f"trigram.{form}.bin").read_bytes(), tmp_path / "bad.bin"
    for damaged in (whole[:100], whole[: len(whole) // 2], b"\xff" * 64 + whole[64:]):
        bad.write_bytes(damaged)
        with pytest.raises(ValueError, match="cannot be read as an n-gram"):
            bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(bad, files / "lexicon.lst"))


def test_words_have_the_times_of_their_letters(files):
    path = [0, 5, 5, 6, 4, 0, 0, 5, 4, 0]  # _AAB|__A|_
    emissions = np.full((10, 7), np.log(0.01), np.float32)
    emissions[np.arange(10), path] = np.log(0.94)
    settings = bs.BeamSettings(files / "lm.arpa", files / "lexicon.lst")
    found = bs.BeamSearch(SMALL, CLOCK, settings)(emissions)
    assert [tuple(w) for w in found.words] == [("AB", 0.0225, 0.0825), ("A", 0.1425, 0.1625)]


def test_a_spelling_may_hold_boundaries(files):
    path = [5, 4, 0, 6, 4, 0, 6, 4]  # A|_B|_B|
    emissions = np.full((8, 7), np.log(0.01), np.float32)
    emissions[np.arange(8), path] = np.log(0.94)
    (files / "compound.lst").write_text("A-B A | B |\nB B |\n")
    found = bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings("", files / "compound.lst"))(emissions)
    assert [tuple(w) for w in found.words] == [("A-B", 0.0025, 0.0825), ("B", 0.1225, 0.1425)]


def test_unknown_words_are_spelt(files):
    """'ABA' is none of the lexicon, but may begin 'ABAB' where what is unknown costs little."""
    path = [5, 6, 5, 4, 6, 4]
    emissions = np.full((6, 7), np.log(0.001), np.float32)
    emissions[np.arange(6), path] = np.log(0.994)
    (files / "long.lst").write_text("ABAB A B A B |\nB B |\n")
    of = lambda score: bs.BeamSearch(
        SMALL, CLOCK, bs.BeamSettings("", files / "long.lst", word_score=0.0, unk_score=score)
    )(emissions)
    assert of(-1.0).text.split()[0] == "ABA"
    assert set(of(-math.inf).text.split()) <= {"ABAB", "B"}


def test_emissions_that_are_none(files):
    decoder = bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(files / "lm.arpa"))
    for bad, words in [
        (emissions_of(5, 0)[:, :3], r"found \(5, 3\), expected \[frames, 7\]"),
        (emissions_of(5, 0)[0], r"found \(7,\)"),
        (np.full((5, 7), np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            decoder(bad)
    impossible = emissions_of(6, 0).astype(np.float64)
    impossible[impossible < -20] = -np.inf
    assert decoder(impossible).text == decoder(emissions_of(6, 0)).text
    assert math.isfinite(decoder(np.full((5, 7), -np.inf)).score)


def test_threads_may_share_a_decoder(files):
    decoder = bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(files / "lm.arpa"))
    inputs = [emissions_of(40, seed) for seed in range(12)]
    alone, together = [decoder(x) for x in inputs], [None] * len(inputs)

    def run(k):
        together[k] = decoder(inputs[k])

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(inputs))]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert together == alone


def test_other_weights_share_the_ngram(files):
    decoder, emissions = (
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(files / "lm.arpa")),
        emissions_of(9, 4),
    )
    changed = decoder.with_weights(lm_weight=0.3, word_score=2.0)
    anew = bs.BeamSettings(files / "lm.arpa", lm_weight=0.3, word_score=2.0)
    assert changed(emissions) == bs.BeamSearch(SMALL, CLOCK, anew)(emissions)
    assert decoder.settings.lm_weight == 2.0


def test_settings_are_kept_as_json(tmp_path):
    settings = bs.BeamSettings(Path("lm.arpa"), beam=20, lm_weight=1.25)
    (tmp_path / "s.json").write_text(json.dumps({"settings": bs.describe(settings), "wer": 0.1}))
    found = bs.BeamSettings(**bs.read_settings(tmp_path / "s.json"))
    assert found == settings._replace(lm="lm.arpa") and found.unk_score == -math.inf
    (tmp_path / "s.json").write_text('{"beem": 3}')
    with pytest.raises(ValueError, match="'beem'"):
        bs.read_settings(tmp_path / "s.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beam": 0}, "beam: found 0"),
        ({"beam_threshold": -1.0}, "beam_threshold: found -1"),
        ({"lm_weight": math.nan}, "lm_weight: found nan"),
        ({"beam": 5.5}, "beam: found 5.5"),
        ({"beam": "5"}, "beam: found '5'"),
        ({"beam": 2**31}, "beam: found 2147483648"),
        ({"beam_tokens": True}, "beam_tokens: found True"),
        ({"word_score": None}, "word_score: found None"),
        ({"unk_score": math.nan}, "unk_score: found nan"),
        ({"log_add": 1}, "log_add: found 1"),
        ({"lm": 3}, "lm: found 3"),
        ({"lm": "/nowhere.arpa"}, "no such file"),
    ],
)
def test_settings_are_checked(changes, words):
    with pytest.raises(ValueError, match=words):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(**changes))


def test_files_that_are_something_else(files, tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x00\x01 nothing")
    with pytest.raises(ValueError, match="ARPA"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(bad))
    with pytest.raises(ValueError, match="n-gram: first non-empty line"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(bad, files / "lexicon.lst"))
    bad.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\n")
    with pytest.raises(ValueError, match="ARPA"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(bad))
    packed = gzip.compress((files / "lm.arpa").read_bytes(), mtime=0)
    for number in (len(packed) // 2, 12):
        bad.write_bytes(packed[:number])
        with pytest.raises(ValueError, match="n-gram"):
            bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(bad, files / "lexicon.lst"))
    bad.write_text('[{"beam": 3}]')
    with pytest.raises(ValueError, match="cannot be read as settings"):
        bs.read_settings(bad)
    (tmp_path / "other.lst").write_text("tea t e a |\n")
    with pytest.raises(ValueError, match="none of its 1 words"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings("", tmp_path / "other.lst"))
    with pytest.raises(ValueError, match="word boundary"):
        bs.BeamSearch(phones([["s"]]), CLOCK, bs.BeamSettings("", files / "lexicon.lst"))


def test_a_lexicon_in_another_case_than_the_ngram_is_an_error(files, tmp_path):
    (tmp_path / "lower.lst").write_text("a A |\nb B |\n")
    with pytest.raises(ValueError, match="has none of its words .*same case"):
        bs.BeamSearch(SMALL, CLOCK, bs.BeamSettings(files / "lm.arpa", tmp_path / "lower.lst"))


def test_words_of_lexicon_and_ngram_with_accents_joined_and_apart_are_the_same(tmp_path):
    vocabulary = Vocabulary((*SPECIAL, "|", "é"))
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        of_ngram, of_lexicon = (unicodedata.normalize(f, "é") for f in (form, other))
        (tmp_path / "lm.arpa").write_text(Bigram([of_ngram]).to_arpa(), encoding="utf-8")
        (tmp_path / "lexicon.lst").write_text(f"{of_lexicon} {of_lexicon} |\n", encoding="utf-8")
        settings = bs.BeamSettings(tmp_path / "lm.arpa", tmp_path / "lexicon.lst")
        assert bs.lexicon_of(vocabulary, settings).spellings == {of_ngram: [["é", "|"]]}


def test_an_ngram_of_words_of_one_letter_is_one_of_words(tmp_path):
    (tmp_path / "lm.arpa").write_text(Bigram(["A B", "B A"]).to_arpa())
    words = bs.lexicon_of(SMALL, bs.BeamSettings(tmp_path / "lm.arpa"))
    assert words.spellings == {"A": [["A", "|"]], "B": [["B", "|"]]} and words.note() == ""


def test_the_english_letters(files):
    """Words of the lexicon that the recogniser cannot spell are left out."""
    settings = bs.BeamSettings(files / "lm.arpa")
    found = bs.BeamSearch(letters(), CLOCK, settings)(emissions_of(20, 0, size=32))
    assert set(found.text.split()) <= {"A", "B", "AB"}
    assert bs.BeamSearch(letters(), CLOCK, settings)(np.empty((0, 32), np.float32)).text == ""
