import math

import pytest

from dinosr_jax.inference.recognition.ngram import DISCOUNT, Bigram

SENTENCES = ["A B", "AB A", "B A B", "A AB", "B B A", ""]


def test_probabilities_sum_to_one():
    bigram = Bigram(SENTENCES)
    for first in ["<s>", "A", "B", "AB", "never"]:
        total = sum(bigram.bigram(first, word) for word in [*bigram.vocabulary, "<unk>"])
        assert total == pytest.approx(1.0)


def test_by_hand():
    """Of 12 words and 5 ends A is 5; A follows B twice of five times, two of three kinds."""
    bigram = Bigram(SENTENCES)
    assert bigram.unigram("A") == 5 / 18
    after_b = bigram.pairs["B", "A"], bigram.pairs["B", "B"], bigram.pairs["B", "</s>"]
    assert after_b == (2, 1, 2)
    expected = (2 - DISCOUNT) / 5 + DISCOUNT * 3 / 5 * 5 / 18
    assert bigram.bigram("B", "A") == pytest.approx(expected)


def test_the_file_is_in_arpas_form():
    lines = Bigram(SENTENCES).to_arpa().splitlines()
    ones, twos = lines.index("\\1-grams:"), lines.index("\\2-grams:")
    assert lines[1] == f"ngram 1={twos - ones - 2}"
    end = lines.index("\\end\\")
    assert lines[2] == f"ngram 2={end - twos - 2}"
    assert f"{math.log10(5 / 18):.7f}" in [line.split()[0] for line in lines[ones + 1 : twos - 1]]


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="no word"):
        Bigram(["", "<s> </s>"])
