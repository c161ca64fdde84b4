"""Unit quality: the published rule by hand, lengths and names that do not fit, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.data.phones.alignments import Alignment, Phone
from dinosr_jax.data.text_files import TextError
from dinosr_jax.evaluation.result_files import read_result
from dinosr_jax.evaluation.units.quality import Rule, coverage, measure, to_row, to_table

ROOT = Path(__file__).parents[3]


def alignment(**utterances):
    """Utterances as text, one letter every 10 ms; '.' is silence that no interval covers."""
    phones = {
        id_: tuple(
            Phone(i / 100, (i + 1) / 100, letter) for i, letter in enumerate(text) if letter != "."
        )
        for id_, text in utterances.items()
    }
    return Alignment(phones, "tsv", "phones.tsv")


def units(**utterances):
    return {id_: np.array(list(map(int, text))) for id_, text in utterances.items()}


def test_by_hand():
    """x: 6 frames of units and 7 of phones; y: 4 and 3. Trimmed to 6 and 3."""
    found = measure(units(x="010", y="12"), alignment(x="AAAB.BB", y="BBB", z="A"), num_units=4)
    assert found.phones == ("A", "B", "SIL")
    #              u: 0  1  2  3   x: AA AB .B -> 0 0 1 1 0 0; y: BB B -> 1 1 2
    assert found.counts.tolist() == [[2, 1, 0, 0], [1, 3, 1, 0], [1, 0, 0, 0]]
    assert found.phone_purity == pytest.approx((2 + 3 + 1) / 9)
    assert found.cluster_purity == pytest.approx((2 + 3 + 1) / 9)
    h = lambda *counts: sum(c / 9 * math.log2(9 / c) for c in counts)
    assert found.pnmi == pytest.approx((h(3, 5, 1) + h(4, 4, 1) - h(2, 1, 1, 3, 1, 1)) / h(3, 5, 1))
    # units themselves are not trimmed: 0 twice, 1 twice, 2 once, in 0.1 s; 5 runs
    of_units = found.of_units
    assert (of_units.num_units, of_units.units_in_use) == (4, 3)
    assert of_units.perplexity == pytest.approx(2 ** (4 / 5 * math.log2(5 / 2) + math.log2(5) / 5))
    assert of_units.bit_rate == pytest.approx(2 * 5 / 0.1)
    assert of_units.units_per_second == pytest.approx(50)
    assert found.num_utterances == 2 and found.without_units == 1 and found.seconds == 0.1
    row = to_row(found, system="codebook", layer=5)
    assert row["frames"] == 9 and row["counts"] == found.counts.tolist() and row["utterances"] == 2
    json.dumps(row)
    table = to_table([row]).splitlines()
    assert len(table) == 2 and table[1].startswith(f"codebook        5   {found.pnmi:.4f}")
    mean = to_table([row, row | {"pnmi": 0.0}]).splitlines()[3]
    assert mean.startswith(f"mean            -   {found.pnmi / 2:.4f}")


def test_discophon_itself():
    evaluate = pytest.importorskip("discophon.evaluate")
    random = np.random.default_rng(0)
    codes, phones = {}, {}
    for name, spare in zip("abcd", (0, 1, -1, 2), strict=True):
        n = int(random.integers(20, 200))
        codes[name] = random.integers(0, 30, n)
        phones[name] = "".join("ABCDEFG"[c % 7] for c in codes[name].repeat(2))
        phones[name] = (phones[name] + "AB")[: 2 * n + spare]
    expected = evaluate.cooccurrence_matrix(
        {name: c.tolist() for name, c in codes.items()},
        {name: list(text) for name, text in phones.items()},
        n_units=30,
        n_phonemes=len("ABCDEFG"),
    )
    found = measure(codes, alignment(**phones), num_units=30)
    rows = [list(expected.phone.values).index(phone) for phone in "ABCDEFG"]
    np.testing.assert_array_equal(found.counts[:7], expected.values[rows])
    assert found.pnmi == pytest.approx(evaluate.pnmi(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "pairs"),
    [
        # phones A B C D E F, units 0 1 2
        ({}, "A0 B0 C1 D1 E2 F2"),
        ({"offset_seconds": 0.01}, "B0 C0 D1 E1 F2"),
        ({"offset_seconds": -0.01}, "A0 B1 C1 D2 E2"),
        ({"unit_seconds": 0.01, "tolerance": 3}, "A0 B1 C2"),
        ({"unit_seconds": 0.03, "tolerance": 3}, "A0 B0 C0 D1 E1 F1"),
    ],
)
def test_rules(rule, pairs):
    found = measure(units(x="012"), alignment(x="ABCDEF"), num_units=3, rule=Rule(**rule))
    there = [f"{found.phones[p]}{u}" for p, u in np.argwhere(found.counts)]
    assert " ".join(there) == pairs and found.counts.max() == 1
    published = (
        "repeated 2 times to 10 ms, phones at the centres of 10 ms, both trimmed to the shor"
    )
    assert (published in Rule(**rule).to_text()) == (not rule)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"unit_seconds": 0.025}, "unit_seconds: found 0.025 s, expected a multiple of 10 ms"),
        ({"unit_seconds": 0.0}, "unit_seconds: found 0 s"),
        ({"unit_seconds": float("nan")}, "unit_seconds: found nan s"),
        ({"offset_seconds": 0.0125}, "offset_seconds: found 0.0125 s, expected a multiple of 10"),
        ({"offset_seconds": 9.0}, "units and phones have no frame of 10 ms in common"),
    ],
)
def test_rules_that_make_no_sense(rule, expected):
    with pytest.raises(ValueError, match=expected):
        measure(units(x="012"), alignment(x="ABCDEF"), num_units=3, rule=Rule(**rule))


def test_lengths():
    """Up to the tolerance; then an error that names the worst, or left out and counted."""
    of_units, phones = units(a="01", b="01", c="0"), alignment(a="ABABAB", b="ABABABA", c="A")
    with pytest.raises(
        TextError, match="1 of 3 utterances: .* more than 2 .*worst is b: units 0.04 s, phones 0.07"
    ):
        measure(of_units, phones, num_units=2)
    found = measure(of_units, phones, num_units=2, rule=Rule(tolerance=3))
    assert found.counts.sum() == 4 + 4 + 1 and found.left_out == {}
    found = measure(of_units, phones, num_units=2, rule=Rule(bad="skip"))
    assert found.left_out == {"b": 3} and found.num_utterances == 2 and found.counts.sum() == 5
    assert found.of_units.units_per_second == pytest.approx(50) and found.seconds == 0.06
    assert "1 left out, too different in length" in coverage(found)
    with pytest.raises(TextError, match="1 of 1 .*worst is a: units 0.06 s, phones 0.03 s"):
        measure(units(a="012"), alignment(a="AAA"), num_units=3)
    with pytest.raises(TextError, match="2 of 3 utterances, more than half: .*worst is b"):
        measure(of_units, phones, num_units=2, rule=Rule(bad="skip", tolerance=1))


def test_names():
    """Those without phones are counted; the same name in two folders is never guessed."""
    of_units = units(**{"en/a": "0", "en/b": "0", "es/c": "0"})
    found = measure(of_units, alignment(a="AA", c="BB"), num_units=1)
    assert found.without_phones == ("en/b",) and found.counts.sum() == 4 and found.by_name == 2
    assert "2 of them found by the name without its folder" in coverage(found)
    assert "1 without phones (such as en/b) not scored" in coverage(found)
    found = measure(of_units, alignment(a="AA", c="BB").with_prefix("en/"), num_units=1)
    assert found.without_phones == ("en/b", "es/c") and found.without_units == 1
    assert found.by_name == 0 and "without its folder" not in coverage(found)
    with pytest.raises(
        TextError, match="en/a and es/a both fit a of phones.tsv; .*--prefix=FOLDER/"
    ):
        measure(of_units | units(**{"es/a": "0"}), alignment(a="AA"), num_units=1)
    with pytest.raises(
        TextError,
        match="found none of the 3 utterances; units are of names such as 'en/a', phones of 'z'",
    ):
        measure(of_units, alignment(z="AA"), num_units=1)


def test_units_beyond_the_inventory():
    with pytest.raises(ValueError, match="units: found 0 to 2, expected 0 to 1"):
        measure(units(x="012"), alignment(x="ABCDEF"), num_units=2)


@pytest.fixture
def folder(tmp_path):
    """Units of two layers that are the phones of the embedded table, and of one that is noise."""
    rng = np.random.default_rng(0)
    table = (ROOT / "data/embedded/phones_en.tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in table]
    names = list(dict.fromkeys(row[0] for row in rows))[:30]
    labels = sorted({row[3] for row in rows})
    with (
        (tmp_path / "u-layer03.jsonl").open("w") as good,
        (tmp_path / "u-layer04.jsonl").open("w") as bad,
    ):
        for name in names:
            own = [row for row in rows if row[0] == name]
            frames = int(float(own[-1][2]) * 100) // 2
            at = lambda t, own=own: next(
                (r[3] for r in own if float(r[1]) <= t < float(r[2])), "SIL"
            )
            codes = [labels.index(at(0.02 * i + 0.005)) for i in range(frames)]
            noise = rng.integers(0, 39, frames).tolist()
            for file, units in ((good, codes), (bad, noise)):
                file.write(json.dumps({"file": f"asterisk_en/{name}", "units": units}) + "\n")
                file.write(json.dumps({"file": f"asterisk_es/{name}", "units": units}) + "\n")
    return tmp_path


def test_the_command(folder):
    run = lambda *words: CliRunner().invoke(cli, ["evaluate", "units", *map(str, words)])
    files = [folder / "u-layer03.jsonl", folder / "u-layer04.jsonl"]
    phones = f"--alignment={ROOT / 'data/embedded/phones_en.tsv'}"
    found = run(*files, phones)
    assert found.exit_code == 1 and "both fit" in found.output and "--prefix" in found.output
    assert found.output.count("\n") == 1
    output = folder / "evaluation" / "units.json"
    found = run(*files, phones, "--prefix=asterisk_en/", "--system=kmeans", f"--output={output}")
    assert found.exit_code == 0, found.output
    header, good, bad, mean, *rest = found.output.splitlines()
    assert header.split()[:3] == ["system", "layer", "PNMI"]
    good, bad = good.split(), bad.split()
    assert good[:2] == ["kmeans", "3"] and bad[:2] == ["kmeans", "4"] and mean.startswith("mean")
    assert float(good[2]) > 0.9 and float(bad[2]) < 0.1
    text = "\n".join(rest)
    assert "30 utterances" in text and "30 without phones (such as asterisk_es/" in text
    assert "39 units assumed, the largest + 1" in text and "(the published rule)" in text
    record = read_result(output)
    assert record["kind"] == "units" and [row["layer"] for row in record["rows"]] == [3, 4]
    assert f"{record['rows'][0]['pnmi']:.4f}" == good[2]
    assert np.shape(record["rows"][1]["counts"]) == (len(record["phones"]), 39)
    assert record["command"].startswith("python -m dinosr_jax evaluate units ")
    assert "--prefix=asterisk_en/" in record["command"] and "--skip-bad" not in record["command"]
    assert (
        record["step"] is None
        and "published" in record["rule"]
        and "30 utterances" in record["data"]
    )
    gone = run(folder / "none.jsonl", phones)
    assert (
        gone.exit_code == 1 and gone.output.startswith("Error: ") and "No such file" in gone.output
    )
