import numpy as np
import pytest

from dinosr_jax.data import vocabulary as v


def test_letters_are_fairseqs():
    symbols = v.letters().symbols
    assert len(symbols) == 32 and symbols[:5] == ("<s>", "<pad>", "</s>", "<unk>", "|")
    assert symbols[5:8] == ("E", "T", "A") and symbols[-1] == "Z"


def test_words_end_with_a_boundary():
    found = v.letters().encode("Tea, at!")
    assert [v.letters().symbols[i] for i in found] == ["T", "E", "A", "|", "A", "T", "|"]
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    "text, expected",
    [
        ("don’t -- stop", "DON'T STOP"),
        ("  two\twords\n", "TWO WORDS"),
        ("a|b", "A B"),
        ("", ""),
        ("ﬁne", "FINE"),
        ("naïve 3", "NAÏVE 3"),
    ],
)
def test_normalise(text, expected):
    assert v.letters().normalise(text) == expected


def test_what_is_unknown_is_named():
    assert v.letters().unknown("naïve 33 café") == ["Ï", "3", "É"]
    with pytest.raises(v.VocabularyError, match="'Ï'"):
        v.letters().encode("naïve")


def test_decode_is_the_inverse():
    text = "IT'S A TEST"
    assert v.letters().decode(v.letters().encode(text)) == text
    assert v.letters().decode([0, 1, 2]) == ""
    assert v.letters().decode([3, 4, 4, 5]) == "<unk> E"


def test_characters_of_any_language():
    found = v.characters(["Été, été!", "l’été"])
    assert found.symbols == (*v.SPECIAL, "|", "é", "t", "'", "l")
    assert found.decode(found.encode("L'ÉTÉ")) == "l'été"
    with pytest.raises(v.VocabularyError, match="empty"):
        v.characters(["", "..."])


def test_phones_have_no_boundary():
    found = v.phones([["s", "AH"], ["AH"]])
    assert found.symbols[4:] == ("AH", "s") and not found.of_characters
    assert found.decode(found.encode(" s  AH ")) == "s AH"
    with pytest.raises(v.VocabularyError, match="'ah'"):
        found.encode("ah")


def test_dictionary(tmp_path):
    path = tmp_path / "dict.ltr.txt"
    path.write_text("| 10\nE 5\n")
    assert v.read_dictionary(path).symbols == (*v.SPECIAL, "|", "E")
    for mark in ("\ufeff", "\n"):
        path.write_text(f"{mark}|\t10\r\ne\u0301 5\r\n\x85 1\r\n\r\n", encoding="utf-8")
        assert v.read_dictionary(path).symbols == (*v.SPECIAL, "|", "é", "\x85")
    for data in (b"| 1\n\xff 2\n", b""):
        path.write_bytes(data)
        with pytest.raises(v.VocabularyError, match=r"dict\.ltr\.txt: (line 2|the file is empty)"):
            v.read_dictionary(path)
    path.write_text("| 10\n| 5\n")
    with pytest.raises(v.VocabularyError, match="each"):
        v.read_dictionary(path)


def test_letters_with_accents_joined_and_apart_are_one_symbol():
    for symbols in (("|", "é"), ("|", "e\u0301"), ("é",), ("e\u0301",)):
        found = v.Vocabulary((*v.SPECIAL, *symbols))
        for text in ("é", "e\u0301"):
            labels = found.encode(text)
            assert found.symbols[labels[0]] == symbols[-1] and not found.unknown(text)
    assert v.characters(["e\u0301", "é"]).symbols[-1] == "é"
    upper = v.Vocabulary((*v.SPECIAL, "|", "\u03aa\u0301"[:1], "A"))
    assert upper.normalise("\u0390") == "\u03aa\u0301"  # its capital has no character of its own
