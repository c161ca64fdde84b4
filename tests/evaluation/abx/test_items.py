"""Item files: what is read, written, made of phones, and which frames an item has."""

import csv
import json
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from dinosr_jax.data.phones.phones import Phone
from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.abx import items as it

TEXT = """#file onset offset #phone prev-phone next-phone speaker
6295-244435-0009 0.2925 0.4725 IH L NG 6295
a/b 3.5700 3.7 NG IH K 17
"""


def write(tmp_path, text, name="x.item"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def make(*rows):
    return it.Items(*map(list, zip(*rows, strict=True)))


def timed(*times):
    return make(*(("f", Decimal(a), Decimal(b), "p", "q", "r", "s") for a, b in times))


def test_reading(tmp_path):
    found = it.read_items(write(tmp_path, TEXT))
    assert found.files == ["6295-244435-0009", "a/b"] and found.speakers == ["6295", "17"]
    assert found.onsets == [Decimal("0.2925"), Decimal("3.5700")]
    assert (found.phones, found.previous, found.following) == (
        ["IH", "NG"],
        ["L", "IH"],
        ["NG", "K"],
    )


@pytest.mark.parametrize("name", ["x.item", "x.csv", "x.jsonl", "x.txt"])
def test_what_is_written_is_read(tmp_path, name):
    rows = [
        ("a b/c,d", Decimal("0.1"), Decimal("0.30"), '"', "ʃ", "#", "x y"),
        ("e", Decimal("1E+2"), Decimal("100.0005"), "t͡s", "1", "2", "3"),
    ]
    it.write_items(tmp_path / name, make(*rows))
    assert it.read_items(tmp_path / name) == make(*rows)


def test_other_spellings_are_read(tmp_path):
    expected = it.read_items(write(tmp_path, TEXT))
    older = TEXT.replace("#file ", "#file_ID ").replace("-phone", "_phone").replace("\n", "  \r\n")
    assert it.read_items(write(tmp_path, older)) == expected
    assert it.read_items(write(tmp_path, TEXT.replace(" ", "\t"))) == expected
    wider = "\n".join(f"{i} {line}" for i, line in enumerate(TEXT.splitlines()))
    assert it.read_items(write(tmp_path, wider)) == expected
    header, *rows = (line.split(" ") for line in TEXT.splitlines())
    lines = [dict(zip(header, row, strict=True)) for row in rows]
    lines[1] |= {"onset": 3.57, "offset": 3.7, "speaker": 17, "more": None}
    found = it.read_items(write(tmp_path, "\n\n".join(map(json.dumps, lines)), "x.jsonl"))
    assert found == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.4725", "NaN"), "line 2: offset: found 'NaN', expected seconds"),
        (("0.4725", "-1"), "line 2: offset: found '-1'"),
        (("0.4725", "0.2"), "line 2: found an offset of 0.2 s before the onset, 0.2925 s"),
        (("0.4725", "1e99999999999"), "line 2: offset"),
        ((" NG IH K 17", " NG IH K"), "line 3: found 6 fields, expected 7"),
        ((" next-phone", ""), "line 1: found the columns .*; next-phone is missing"),
        ((" next-phone", " onset"), "line 1: .* onset is there twice"),
        ((TEXT[TEXT.index("\n") :], "\n"), "found no item below the header"),
        ((TEXT, ""), "is empty"),
        ((TEXT, '{"#file": '), "line 1: no JSON"),
        ((TEXT, '{"#file": "a"}'), "line 1: .*onset is missing"),
        ((TEXT, "\0\1"), "value 0"),
        (("a/b", '"a/b'), "line 3: unexpected end of data"),
    ],
)
def test_broken_files(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        it.read_items(write(tmp_path, TEXT.replace(*change)))


@pytest.mark.parametrize("value", ["null", "true", "[1]", '""'])
def test_fields_of_another_kind(tmp_path, value):
    row = dict.fromkeys(it._HEADER, "1")
    text = json.dumps(row).replace('"speaker": "1"', f'"speaker": {value}')
    with pytest.raises(it.ItemError, match="line 1: speaker: found .*, expected a text"):
        it.read_items(write(tmp_path, text))


def test_slices_are_exact():
    # 2.03 s * 50 - 0.5 is 101 exactly, and 100.99999999999999 in binary
    starts, ends = it.frame_slices(
        timed(("1.9", "2.03"), ("0", "0.01"), ("0.011", "0.029")), frame_rate=Fraction(50)
    )
    np.testing.assert_array_equal(starts, [95, 0, 1])
    np.testing.assert_array_equal(ends, [102, 1, 1])


@pytest.mark.parametrize("rate", ["50", "100", "12.5", "16000/441"])
def test_slices_are_the_frames_whose_centre_is_inside(rate):
    rate, rng = Fraction(rate), np.random.default_rng(0)
    times = [sorted(Decimal(int(n)) / 200 for n in rng.integers(0, 200, 2)) for _ in range(60)]
    starts, ends = it.frame_slices(timed(*times), frame_rate=rate)
    centres = [(i + Fraction(1, 2)) / rate for i in range(120)]
    for (onset, offset), start, end in zip(times, starts, ends, strict=True):
        inside = [i for i, at in enumerate(centres) if Fraction(onset) <= at <= Fraction(offset)]
        assert list(range(start, end)) == inside


PHONES = {
    "u": (
        Phone(0.0, 0.1, "SIL"), Phone(0.1, 0.2, "A"), Phone(0.2, 0.3, "B"), Phone(0.3, 0.45, "C"),
        Phone(0.45, 0.5, "D"), Phone(0.7, 0.8, "E"), Phone(0.8, 0.9, "SPN"), Phone(0.9, 1.0, "F"),
    ),
    "v": (Phone(0.25, 0.35, "A"), Phone(0.35, 0.1 + 0.3, "A"), Phone(0.4, 0.6, "B")),
}  # fmt: skip


def rows_of(found):
    columns = (found.files, found.onsets, found.offsets, found.previous, found.phones)
    return [
        (f, float(a), float(b), f"{p}-{q}-{r}")
        for f, a, b, p, q, r in zip(*columns, found.following, strict=True)
    ]


def test_triphones_last_for_three_phones_without_silence():
    found = it.make_items(PHONES, {"u": "x", "v": "y"}, context="triphone")
    assert rows_of(found) == [
        ("u", 0.1, 0.45, "A-B-C"),
        ("u", 0.2, 0.5, "B-C-D"),  # D is followed by a gap, E by noise
        ("v", 0.25, 0.6, "A-A-B"),
    ]
    assert found.speakers == ["x", "x", "y"]


def test_phonemes_last_for_one_phone():
    found = it.make_items(PHONES, {"u": "x", "v": "y"}, context="phoneme")
    assert rows_of(found) == [
        ("u", 0.1, 0.2, "SIL-A-B"),
        ("u", 0.2, 0.3, "A-B-C"),
        ("u", 0.3, 0.45, "B-C-D"),
        ("u", 0.45, 0.5, "C-D-SIL"),
        ("u", 0.7, 0.8, "SIL-E-SPN"),
        ("u", 0.9, 1.0, "SPN-F-SIL"),
        ("v", 0.25, 0.35, "SIL-A-A"),
        ("v", 0.35, 0.4, "A-A-B"),
        ("v", 0.4, 0.6, "A-B-SIL"),
    ]
    assert str(found.offsets[7]) == "0.4"  # not 0.4000000000000001


def test_speakers_are_needed():
    with pytest.raises(it.ItemError, match="speakers of 1 of 2 utterances .* the first is v"):
        it.make_items(PHONES, {"u": "x"}, context="triphone")
    with pytest.raises(it.ItemError, match="found no triphone"):
        it.make_items({"u": PHONES["u"][:2]}, {"u": "x"}, context="triphone")


def test_names_without_folders():
    utterances = ["a/b/x", "c/y.1", "y"]
    made = make(*((id_, Decimal(0), Decimal(1), *"pqrs") for id_ in utterances))
    assert it.sharing_a_stem(utterances) is None
    assert it.named_by_stem(made, utterances).files == ["x", "y.1", "y"]
    assert it.named_by_stem(made, utterances).speakers == made.speakers
    more = [*utterances, "d/y"]  # without items of its own
    assert it.sharing_a_stem(more) == ("y", "d/y")
    with pytest.raises(it.ItemError, match="y and d/y would both be called y; .*--names=id"):
        it.named_by_stem(made, more)


def test_tables_of_speakers(tmp_path):
    table = [["shard", "file", "speaker", "text"], ["1", "a", "x", 'say "A'], ["1", "b", "y", ""]]
    tabs = write(tmp_path, "\n".join("\t".join(row) for row in table), "index.tsv")
    assert it.read_speakers(tabs) == {"a": "x", "b": "y"}
    with (tmp_path / "s.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    assert it.read_speakers(tmp_path / "s.csv") == {"a": "x", "b": "y"}
    for rows, message in (
        ("name\tspeaker\na\tx", r"found the columns \['name', 'speaker'\]"),
        ("file\tspeaker\na\tx\na\ty", "line 3: a: found the speakers x and y"),
        ("file\tspeaker\na", "line 2: expected a file and its speaker"),
    ):
        with pytest.raises(it.ItemError, match=message):
            it.read_speakers(write(tmp_path, rows, "bad.tsv"))
    with pytest.raises(TextError, match=r"bad\.csv: line 2: unexpected end of data"):
        it.read_speakers(write(tmp_path, 'file,speaker\na,"x\n', "bad.csv"))
