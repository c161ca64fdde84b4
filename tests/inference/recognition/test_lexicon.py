import gzip

import pytest

from dinosr_jax.data.vocabulary import SPECIAL, Vocabulary, letters, phones
from dinosr_jax.inference.recognition import lexicon
from dinosr_jax.inference.recognition.lexicon import arpa_words, is_of_symbols, read_lexicon, spell
from dinosr_jax.inference.recognition.ngram import Bigram


def test_spellings_of_librispeechs_lexicon(tmp_path):
    """Tabs or spaces, several spellings, the same one twice, the boundary missing."""
    path = tmp_path / "lexicon.lst"
    path.write_text("TEA\tT E A |\nTEE T E E |\n\nTEA T |\nTEA T E A |\nATE A T E\n")
    found = read_lexicon(path, letters())
    assert found.spellings == {
        "TEA": [["T", "E", "A", "|"], ["T", "|"]],
        "TEE": [["T", "E", "E", "|"]],
        "ATE": [["A", "T", "E", "|"]],
    }
    assert found.left_out == () and found.note() == ""


def test_what_cannot_be_spelt_is_counted(tmp_path):
    path = tmp_path / "lexicon.lst"
    path.write_text("TEA T E A |\nth\u00e9 t h \u00e9 |\nEMPTY |\nNONE\nX <unk> |\n")
    found = read_lexicon(path, letters())
    assert list(found.spellings) == ["TEA"]
    assert found.left_out == ("th\u00e9", "EMPTY", "NONE", "X")
    assert (
        found.note() == "4 of 5 words cannot be spelt and are left out: th\u00e9, EMPTY, NONE ..."
    )


def test_words_are_spelt_as_the_vocabulary_writes_them(tmp_path):
    found = spell(["tea", "don\u2019t", "caf\u00e9"], letters(), path=tmp_path)
    assert found.spellings == {"tea": [[*"TEA", "|"]], "don\u2019t": [[*"DON'T", "|"]]}
    assert found.left_out == ("caf\u00e9",)
    with pytest.raises(ValueError, match="none of its 1 words"):
        spell(["caf\u00e9"], letters(), path=tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"tea t e a |\n"])
def test_other_files_are_no_lexicon(tmp_path, content):
    path = tmp_path / "lexicon.lst"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="lexicon.lst"):
        read_lexicon(path, letters())
    with pytest.raises(ValueError, match="word boundary"):
        read_lexicon(path, phones([["s"]]))


@pytest.mark.parametrize("packed", [False, True])
def test_words_of_an_ngram(tmp_path, packed):
    path = tmp_path / "lm"
    text = Bigram(["TEA FOR TWO", "TWO"]).to_arpa().encode()
    path.write_bytes(gzip.compress(text, mtime=0) if packed else text)
    assert sorted(arpa_words(path)) == ["FOR", "TEA", "TWO"]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="no n-gram in ARPA's form"):
        arpa_words(path)
    assert arpa_words(path, binary=()) == ()


def test_ngrams_of_symbols(tmp_path):
    """Of characters only where the boundary is among them: A and I are words, too."""
    path, small = tmp_path / "lm.arpa", Vocabulary((*SPECIAL, "|", "A", "I"))
    for sentence, vocabulary, expected in [
        ("A | I |", small, True),
        ("A I", small, False),
        ("AI I", small, False),
        ("s AH", phones([["s", "AH"]]), True),
        ("s IH", phones([["s", "AH"]]), False),
    ]:
        path.write_text(Bigram([sentence]).to_arpa())
        assert is_of_symbols(path, vocabulary) is expected


def test_marks_line_ends_and_accents(tmp_path):
    vocabulary = Vocabulary((*SPECIAL, "|", "é", "t"))
    path = tmp_path / "lexicon.lst"
    path.write_bytes("\ufeffte\u0301\tt e\u0301 |\r\nx\x85t t\r\n\r\n".encode())
    found = read_lexicon(path, vocabulary)
    assert found.spellings == {"te\u0301": [["t", "é", "|"]], "x": [["t", "t", "|"]]}
    path.write_bytes(b"t t |\n\xff t\n")
    with pytest.raises(ValueError, match=r"lexicon\.lst: line 2: found byte 0xff"):
        read_lexicon(path, vocabulary)


def test_an_ngram_is_unpacked_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(lexicon, "MAX_UNPACKED_BYTES", 2**21)
    path = tmp_path / "lm.arpa.gz"
    path.write_bytes(gzip.compress(b"\\1-grams:\n" + b"-1 a\n" * 2**20, mtime=0))
    with pytest.raises(ValueError, match=r"lm\.arpa\.gz: found more than 0\.00\d+ GiB"):
        arpa_words(path)
