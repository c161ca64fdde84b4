"""Tokenizer files of Hugging Face: any order of symbols, as transformers reads them."""

import json

import numpy as np
import pytest

from dinosr_jax.data.vocabulary import SPECIAL, Vocabulary, letters
from dinosr_jax.interop import tokenizers

PHONES = (*SPECIAL, "AH", "S", "ts", "ʃ")
GERMAN = (*SPECIAL, "|", "e", "ä", "ß", "'", "n")


def put(folder, name, value):
    (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("symbols", [letters().symbols, GERMAN, PHONES], ids=len)
def test_what_is_written_is_read(symbols, tmp_path):
    tokenizers.write(tmp_path, symbols)
    found = tokenizers.read(tmp_path, {"pad_token_id": 0}, size=len(symbols))
    assert found == (symbols, list(range(len(symbols))), [])


@pytest.mark.parametrize("symbols", [letters().symbols, GERMAN, PHONES], ids=len)
def test_transformers_reads_the_same_text(symbols, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers.write(tmp_path, symbols)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(symbols) and theirs.pad_token_id == 0
    generator = np.random.default_rng(0)
    for _ in range(20):
        codes = np.concatenate([[0], generator.integers(3, len(symbols), 12), [0]])
        said = codes[np.concatenate([[True], codes[1:] != codes[:-1]])]
        ours = Vocabulary(symbols).decode(said[said != 0])
        assert " ".join(theirs.decode(np.repeat(codes, 2)).split()) == ours


def test_tokens_that_were_added(tmp_path):
    """As the usual recipe makes it: letters, [UNK], [PAD]; two more with rows; one without."""
    vocab = {"|": 2, "a": 0, "b": 1, "[UNK]": 3, "[PAD]": 4}
    put(tmp_path, "vocab.json", vocab)
    put(tmp_path, "special_tokens_map.json", {"unk_token": "[UNK]", "pad_token": "[PAD]"})
    put(tmp_path, "added_tokens.json", {"<s>": 5, "</s>": 6, "beyond": 7})
    fields = {"pad_token_id": 4}
    expected = ((*SPECIAL, "a", "b", "|"), [4, 5, 6, 3, 0, 1, 2], [])
    assert tokenizers.read(tmp_path, fields, size=7) == expected
    (tmp_path / "added_tokens.json").unlink()
    decoder = {"5": {"content": "<s>"}, "6": {"content": "</s>"}, "7": {"content": "beyond"}}
    put(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": decoder})
    assert tokenizers.read(tmp_path, fields, size=7) == expected
    without = tokenizers.read(tmp_path, fields, size=5)  # nothing ever says <s> and </s>
    assert without == (expected[0], [4, -1, -1, 3, 0, 1, 2], [])


def test_transformers_agrees_about_a_folder_in_another_order(tmp_path):
    """What it decodes from rows in its order, we decode from the same rows in ours."""
    transformers = pytest.importorskip("transformers")
    names = ["n", "ä", "[UNK]", "|", "e", "[PAD]", "'"]
    put(tmp_path, "vocab.json", {name: k for k, name in enumerate(names)})
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    kind = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
    put(tmp_path, "tokenizer_config.json", special | kind)
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    found = tokenizers.read(tmp_path, {"pad_token_id": 5}, size=7)
    vocabulary = Vocabulary(found.symbols)
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows = np.concatenate([[5], generator.permutation([0, 1, 3, 4, 6]), [5]])
        labels = [found.rows.index(row) for row in rows]
        assert vocabulary.decode(labels) == " ".join(theirs.decode(rows).split())


def test_rows_are_put_into_our_order():
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(3, 5)), generator.normal(size=3)
    tensors = {"lm_head.weight": weight, "lm_head.bias": bias, "other": weight}
    found = tokenizers.reorder(tensors, [2, -1, 0, 1])
    np.testing.assert_array_equal(found["lm_head.weight"][[0, 2, 3]], weight[[2, 0, 1]])
    np.testing.assert_array_equal(found["lm_head.bias"][[0, 2, 3]], bias[[2, 0, 1]])
    assert not found["lm_head.weight"][1].any() and found["lm_head.bias"][1] < -1000
    assert found["other"] is weight
    short = tensors | {"lm_head.bias": bias[:2]}  # left as it is, to be named as an error
    assert tokenizers.reorder(short, [2, -1, 0, 1])["lm_head.bias"] is short["lm_head.bias"]


@pytest.mark.parametrize(
    ("vocab", "fields", "words"),
    [
        ("[1]", {}, "vocab.json"),
        ("{broken", {}, "vocab.json: not JSON"),
        ('{"a": "b"}', {}, "'a': 'b'"),
        ('{"a": true}', {}, "'a': True"),
        ('{"<pad>": 0, "a": 2}', {}, "'a' is number 2"),
        ('{"<pad>": 0, "a": 0}', {}, "'a' is number 0"),
        ('{"<pad>": 0}', {}, "names of 1 symbols"),
        ('{"<pad>": 0, "a": 1}', {"pad_token_id": 2}, "pad_token_id, which is 2"),
        ('{"<pad>": 0, "a": 1}', {"pad_token_id": [0]}, r"pad_token_id, which is \[0\]"),
        ('{"<pad>": 1, "a": 0}', {}, "'<pad>' is a symbol"),
    ],
)
def test_a_broken_vocabulary_is_an_error(vocab, fields, words, tmp_path):
    (tmp_path / "vocab.json").write_text(vocab)
    with pytest.raises(ValueError, match=words):
        tokenizers.read(tmp_path, fields, size=2)


def test_symbols_without_a_delimiter_are_said(tmp_path):
    put(tmp_path, "vocab.json", {"<pad>": 0, "一": 1, "二": 2})
    put(tmp_path, "tokenizer_config.json", {"tokenizer_class": "Wav2Vec2CTCTokenizer"})
    (note,) = tokenizers.read(tmp_path, {}, size=3).notes
    assert "no word delimiter" in note
