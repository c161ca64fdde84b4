"""Alignments in the formats of the field: the same phones from all, names, and broken files."""

import functools
import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest

from dinosr_jax.data.phones.alignments import Phone, TextError, frame_labels, read_alignment
from dinosr_jax.data.phones.textgrid import Interval, to_textgrid

ROOT = Path(__file__).parents[3]
PHONES = (Phone(0.0, 3.57, "SIL"), Phone(3.57, 3.6, "AH"), Phone(3.6, 3.61, "T"))
LABELS = ["sil"] * 357 + ["AH0"] * 3 + ["T"]


def tsv(rows):
    return "\n".join(["file\tstart_s\tend_s\tphone", *rows]) + "\n"


def textgrid(spans, **tiers):
    spans = [Interval(*span) for span in spans]
    end = spans[-1].end
    tiers = {"words": [Interval(0, end, "a word")], "phones": spans} | tiers
    return to_textgrid(tiers, end=end)


TABLES = {
    "fairseq": f"1-2-3\t{','.join(LABELS)}\n1-2-4\tT\n",
    "cpc": f"1-2-3 {'7 ' * 357}11 11 11 0\n1-2-4 5\n",
    "jsonl": json.dumps({"name": "1-2-3", "phones": LABELS})
    + '\n\n{"file":"1-2-4","phones":["T"]}\n',
    "discophon": "#file onset offset #phone\n1-2-4 0 0.01 T\n"
    "1-2-3 0 3.57 SIL\n1-2-3 3.57 3.60 AH0\n1-2-3 3.60 3.61 T\n",
    "tsv": tsv(
        ["1-2-3\t3.57\t3.60\tAH0", "1-2-3\t0\t3.57\t", "1-2-3\t3.6\t3.61\tT", "1-2-4\t0\t0.01\tT"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("form", ["plain", "gzip", "utf-16", "named"])
def test_every_table_gives_the_same_phones(tmp_path, kind, form):
    path = tmp_path / "table"
    data = TABLES[kind].encode("utf-16" if form == "utf-16" else "utf-8")
    path.write_bytes(gzip.compress(data, mtime=0) if form == "gzip" else data)
    found = read_alignment(path, kind=kind if form == "named" else None)
    assert found.kind == kind and set(found.utterances) == {"1-2-3", "1-2-4"}
    if kind == "cpc":
        pairs = zip(PHONES, "7 11 0".split(), strict=True)
        expected = tuple(phone._replace(label=label) for phone, label in pairs)
        assert found.find("1-2-3") == expected and " ".join(found.labels) == "0 11 5 7 SIL"
        return
    assert found.find("1-2-3") == PHONES and found.find("1-2-4") == (Phone(0.0, 0.01, "T"),)
    assert found.labels == ("AH", "SIL", "T")
    labels = frame_labels(found.find("1-2-3"), num_frames=361)
    assert labels.tolist() == ["SIL"] * 357 + ["AH"] * 3 + ["T"]
    kept = read_alignment(path, stress="keep")
    assert kept.find("1-2-3")[1].label == "AH0"


def test_columns_in_another_order_and_other_steps(tmp_path):
    path = tmp_path / "table"
    path.write_text("phone\textra\tend_s\tfile\tstart_s\nEY1\t?\t0.5\ta b\t0.25\n")
    assert read_alignment(path).utterances == {"a b": (Phone(0.25, 0.5, "EY"),)}
    path.write_text('{"audio": "x", "phones": [3, 3, 4], "step": 0.02}\n')
    assert read_alignment(path).find("x") == (Phone(0.0, 0.04, "3"), Phone(0.04, 0.06, "4"))


def test_textgrids(tmp_path):
    edges, labels = (0, 0.1, 0.35, 0.4, 0.45, 0.5), ("", "HH", "EY1", "spn", "sp")
    mfa = list(zip(edges[:-1], edges[1:], labels, strict=True))
    expected = ["SIL", "HH", "EY", "SPN", "SIL"]
    (tmp_path / "84" / "121").mkdir(parents=True)
    one, two = tmp_path / "84/121/84-121-0.TextGrid", tmp_path / "84/84-121-1.textgrid"
    one.write_bytes(textgrid(mfa).encode("utf-16"))
    other = textgrid(mfa, phones=[], **{"84 - phones": [Interval(*x) for x in mfa]})
    two.write_text(other.replace('"phones"', '"other"'))
    (tmp_path / "84" / "notes.txt").write_text("no alignment")
    (tmp_path / "84" / "loop").symlink_to(tmp_path)
    found = read_alignment(tmp_path)
    assert found.kind == "textgrid" and list(found.utterances) == ["84/84-121-1", "84/121/84-121-0"]
    for phones in found.utterances.values():
        assert [phone.label for phone in phones] == expected and phones[2][:2] == (0.35, 0.4)
    single = read_alignment(one, tier="words")
    assert single.utterances == {"84-121-0": (Phone(0.0, 0.5, "a word"),)}
    message = "expected one interval tier 'phone', found 0; the file has 'words', 'phones'"
    with pytest.raises(TextError, match=message):
        read_alignment(one, tier="phone")
    with pytest.raises(TextError, match="is a folder; expected a file of the format tsv"):
        read_alignment(tmp_path, kind="tsv")


def test_ids(tmp_path):
    path = tmp_path / "table"
    ids = ["en/a", "es/a", "en/b", "c", "v1.2"]
    path.write_text(tsv([f"{id_}\t0\t1\t{i}" for i, id_ in enumerate(ids)]))
    found = read_alignment(path)
    of = lambda id_: phones and phones[0].label if (phones := found.find(id_)) else None
    there = ["en/a", "data/es/a.wav", "b", "b.flac", "x/y/c.opus", "v1.2"]
    assert list(map(of, there)) == ["0", "1", "2", "2", "3", "4"]
    # in two folders; in another folder; not there
    assert [of("a"), of("fr/a"), of("es/b"), of("d"), of("v1")] == [None] * 5
    assert list(found.match(["en/a", "es/a", "fr/a", "x/c.wav"])) == ["en/a", "es/a", "x/c.wav"]
    with pytest.raises(TextError, match="a is ambiguous in .*: found en/a and es/a"):
        found.match(["b", "a"])
    with pytest.raises(TextError, match="x/c and y/c both fit c of .*--prefix=FOLDER/"):
        found.match(["x/c", "y/c"])
    named = found.with_prefix("x/")
    assert list(named.match(["x/c", "y/c"])) == ["x/c"] and named.find("y/c") is None


def test_the_embedded_table():
    """Its last end need not be a multiple of 10 ms; every utterance begins at 0."""
    found = read_alignment(ROOT / "data/embedded/phones_en.tsv")
    assert found.kind == "tsv" and len(found.utterances) == 549 and len(found.labels) == 39
    assert found.find("asterisk_en/activated")[2] == (0.2, 0.29, "K")
    assert all(phones[0].start == 0 for phones in found.utterances.values())


BROKEN = {
    "no format": ("hello world\n", "line 1: found 'hello world'; expected a TextGrid, or a table"),
    "binary": (bytes(range(256)), "line 3: found byte 0x80 at 128; expected text"),
    "only a header": (tsv([]), "found no utterance below the header"),
    "a missing column": (
        "file\tstart\tend_s\tphone\n",
        "line 1: found the columns .*, expected start_s once",
    ),
    "a cut row": (tsv(["a\t0\t1\tT", "a\t1\t2"]), r"line 3: found 'a\\t1\\t2', expected 4 fields"),
    "no number": (tsv(["a\t0\tx\tT"]), "line 2: found times '0' and 'x', expected seconds"),
    "not a number": (tsv(["a\tnan\t1\tT"]), "line 2: a: found times nan and 1.0, expected numbers"),
    "backwards": (tsv(["a\t1\t0.5\tT"]), "line 2: a: found an interval from 1.0 to 0.5 s"),
    "overlap": (
        tsv(["a\t0\t1\tT", "a\t.9\t2\tD"]),
        "line 3: a: found 'D' from 0.9 .* overlaps 'T'",
    ),
    "no name": (tsv(["\t0\t1\tT"]), "line 2: found .*, expected 4 fields"),
    "an item file": (
        "#file onset offset #phone prev-phone next-phone speaker\n",
        "an item file is none",
    ),
    "discophon cut": (
        "#file onset offset #phone\na 0 1\n",
        "line 2: found 'a 0 1', expected file, onset",
    ),
    "the same twice": (
        "a\tT,D\nb\tT\na\tT\n",
        "line 3: found a, which is in line 1 too, expected every",
    ),
    "an empty label": (
        "a\tT,,D\n",
        "line 1: found .*expected an id, a tab, and phones with commas",
    ),
    "fairseq and cpc": ("a\tT,D\nb 1 2\n", "line 2: found 'b 1 2', expected an id, a tab"),
    "cpc and fairseq": ("b 1 2\na\tT,D\n", "line 2: found 'T,D', expected an id and whole numbers"),
    "cpc without labels": ("b 1 2\na\n", "line 2: found 'a', expected an id and whole"),
    "cut json": (
        '{"name": "a", "phones": ["T"]}\n{"name": "b", "pho',
        "line 2: found .*expected a JSON object",
    ),
    "json of another kind": (
        '{"name": "a", "units": [1]}\n',
        "line 1: found phones: None, expected a list",
    ),
    "json, a label of no kind": (
        '{"name": "a", "phones": ["T", null]}\n',
        "expected a list of labels",
    ),
    "json without labels": (
        '{"name": "a", "phones": []}\n',
        "line 1: found no label of a, expected one",
    ),
    "json without a name": (
        '{"id": "a", "phones": ["T"]}\n',
        "found the fields id, phones; expected one of file",
    ),
    "json with two names": (
        '{"name": "a", "file": "b", "phones": ["T"]}\n',
        "expected one of file, name",
    ),
    "json, a step of 0": (
        '{"name": "a", "phones": ["T"], "step": 0}\n',
        "found step: 0, expected seconds",
    ),
    "json, deep": ("{" + '"a":[' * 100_000, "line 1: found .*expected a JSON object"),
    "no tier": (
        textgrid([(0, 1, "a")]).replace('"phones"', '"phonemes"'),
        "the file has 'words', 'phonemes'",
    ),
    "an empty tier": (textgrid([(0, 1, "a")], phones=[]), "found no interval in the tier 'phones'"),
    "a TextGrid with an overlap": (
        textgrid([(0, 1, "a"), (0.5, 2, "b")]),
        "line 30: table: found 'b' .* overlaps 'a'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    """One line that names the file, the line, what was found and what was expected."""
    data, expected = BROKEN[case]
    path = tmp_path / "table"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(TextError, match=expected) as found:
        read_alignment(path)
    text = str(found.value)
    assert text.startswith(str(path)) and "\n" not in text and re.search("expected|found", text)


def test_folders_that_hold_nothing_or_the_same_twice(tmp_path):
    with pytest.raises(TextError, match="found no .TextGrid in the folder; of other formats name"):
        read_alignment(tmp_path)
    for name in ("x.TextGrid", "x.textgrid"):
        (tmp_path / name).write_text(textgrid([(0, 1, "a")]))
    with pytest.raises(TextError, match="found x twice, expected it once"):
        read_alignment(tmp_path)
    (tmp_path / "x.textgrid").write_text("")
    (tmp_path / "x.TextGrid").unlink()
    with pytest.raises(TextError, match="x.textgrid: the file is empty"):
        read_alignment(tmp_path)
    with pytest.raises(ValueError, match="kind: found 'mfa', expected textgrid"):
        read_alignment(tmp_path, kind="mfa")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_and_labels_with_accents_joined_and_apart(tmp_path, form):
    """In tables, JSON that escapes them, TextGrids named so, and what is asked for."""
    written = functools.partial(unicodedata.normalize, form)
    (tmp_path / "table").write_text(tsv([written("é/ö\t0\t1\tã")]), encoding="utf-8")
    (tmp_path / "jsonl").write_text(json.dumps({"name": written("é/ö"), "phones": [written("ã")]}))
    (tmp_path / "grids" / written("é")).mkdir(parents=True)
    grid = tmp_path / "grids" / written("é/ö.TextGrid")
    grid.write_text(textgrid([(0, 1, written("ã"))]), encoding="utf-8")
    for name in ("table", "jsonl", "grids"):
        found = read_alignment(tmp_path / name)
        assert found.labels == ("SIL", "\xe3") and list(found.utterances) == ["\xe9/\xf6"]
        for other in ("NFC", "NFD"):
            asked = unicodedata.normalize(other, "é/ö")
            assert list(found.match([asked])) == [asked] and found.find(asked + ".wav")
            prefixed = found.with_prefix(unicodedata.normalize(other, "ü/"))
            assert prefixed.find(written("ü/é/ö"))
