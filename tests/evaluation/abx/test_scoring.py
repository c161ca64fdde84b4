"""ABX against fastabx' scores, hand-computed cells, and a transcription of the definition."""

import collections
import itertools
import json
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dinosr_jax.cli import abx as commands
from dinosr_jax.cli import cli
from dinosr_jax.evaluation import result_files
from dinosr_jax.evaluation.abx import distances as fd
from dinosr_jax.evaluation.abx import dtw, scoring
from dinosr_jax.evaluation.abx import item_features as ff
from dinosr_jax.evaluation.abx.items import Items, read_items

GOLDEN = Path(__file__).parents[2] / "golden"
DISTANCES = ("angular", "euclidean", "kl_symmetric", "identical")
ALL = scoring.Caps(None, None)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """What fastabx said of features and units, which are written as files."""
    folder = tmp_path_factory.mktemp("golden")
    said = json.loads((GOLDEN / "abx.json").read_text())
    with np.load(GOLDEN / "abx.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for name, x in arrays.items():
        kind, _, id_ = name.partition("/")
        kinds = {"units": {"identical": x[:, None]}}.get(kind) or {
            "angular": x,
            "euclidean": x,
            "kl_symmetric": np.exp(x) / np.exp(x).sum(1, keepdims=True),
        }
        for distance, array in kinds.items():
            path = folder / distance / f"{id_}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    with (folder / "units.jsonl").open("w") as file:
        for name, x in arrays.items():
            if name.startswith("units/"):
                line = {"file": name.removeprefix("units/"), "units": x.tolist()}
                file.write(json.dumps(line) + "\n")
    for name, lines in said["items"].items():
        (folder / f"{name}.item").write_text("\n".join(lines) + "\n")
    return folder, said["scores"]


def gathered(folder, item, distance):
    items = read_items(folder / f"{item}.item")
    (source,) = ff.open_features(folder / distance)
    return ff.gather(source, items, distance=distance), items


@pytest.mark.parametrize("distance", DISTANCES)
def test_scores_of_fastabx(golden, distance):
    folder, scores = golden
    chosen = [score for score in scores if score["distance"] == distance]
    assert len(chosen) == 8
    for score in chosen:
        features, items = gathered(folder, score["item"], distance)
        found = scoring.measure(
            features,
            items,
            speaker=score["speaker"],
            context=score["context"],
            distance=distance,
            caps=scoring.Caps(200, 2),  # do not bite: there are three speakers
        )
        assert found.error == pytest.approx(score["error"], abs=2e-5), score


def test_scores_of_fastabx_itself(golden):
    fastabx = pytest.importorskip("fastabx")
    torch = pytest.importorskip("torch")
    folder, _ = golden
    for distance, (speaker, context) in itertools.product(
        DISTANCES, itertools.product(("within", "across"), ("triphone", "any"))
    ):
        features, items = gathered(folder, "phoneme", distance)
        expected = fastabx.zerospeech_abx(
            folder / "phoneme.item",
            folder / distance,
            max_size_group=None,
            max_x_across=None,
            speaker=speaker,
            context={"triphone": "within"}.get(context, context),
            distance=distance,
            feature_maker=lambda path: torch.from_numpy(np.load(path)),
            extension=".npy",
            progress=False,
        )
        task = {"speaker": speaker, "context": context, "distance": distance, "caps": ALL}
        assert scoring.measure(features, items, **task).error == pytest.approx(expected, abs=2e-5)


def of_numbers(*rows):
    """Items of one frame: (phone, speaker, context, number); compared by their difference."""
    phones, speakers, contexts, numbers = map(list, zip(*rows, strict=True))
    n = len(rows)
    values = np.asarray(numbers, np.float32)[:, None]
    frames = fd.Frames(fd.equal_frames(values), values, np.zeros(n, np.float32))
    slices = dtw.ItemFrames(np.arange(n), np.ones(n, np.int64))
    times = [Decimal(0)] * n
    items = Items(["f"] * n, times, times, phones, contexts, contexts, speakers)
    return ff.Gathered(frames, slices, np.arange(n)), items


def error(*rows, speaker="within", context="triphone", caps=ALL):
    found = scoring.measure(
        *of_numbers(*rows), speaker=speaker, context=context, distance="euclidean", caps=caps
    )
    return found.error


def test_within_by_hand():
    # p = {0, 2}, q = {3}: x 0: |0-2| < |0-3|, right; x 2: |2-0| > |2-3|, wrong. Error 1/2.
    # q is there once: no cell in which it is A
    assert error(("p", "s", "c", 0), ("p", "s", "c", 2), ("q", "s", "c", 3)) == 0.5
    # q = {3, 4}: p: x 0 right, right; x 2: |2-0| against 1 (wrong) and 2 (tie): 2.5 of 4 right
    # q: x 3: 1 against 3 (right) and 1 (tie), x 4: 1 against 4 and 2: 3.5 of 4 right
    rows = [("p", "s", "c", 0), ("p", "s", "c", 2), ("q", "s", "c", 3), ("q", "s", "c", 4)]
    assert error(*rows) == pytest.approx((1.5 / 4 + 0.5 / 4) / 2)


def test_across_by_hand():
    # of A = {1}, B = {4} of s, X = {3} of t: |3-1| > |3-4|: wrong; A = {4}, X = {9}: right
    rows = [("p", "s", "c", 1), ("q", "s", "c", 4), ("p", "t", "c", 3), ("q", "t", "c", 9)]
    # of t: A = {3}, B = {9}, X = {1}: right; A = {9}, B = {3}, X = {4}: wrong
    assert error(*rows, speaker="across") == 0.5
    # another context has no cell of two phones and two speakers
    other = [("p", "s", "d", 0), ("q", "t", "d", 0)]
    assert error(*rows, *other, speaker="across") == 0.5


def test_order_of_the_means():
    wrong, right = (0, 10, 1), (0, 1, 10)  # p, p, q: both x wrong, both right
    cell = lambda speaker, context, numbers: [
        (phone, speaker, context, number) for phone, number in zip("ppq", numbers, strict=True)
    ]
    # speaker s: two contexts wrong, one right; speaker t: one right. First contexts, then speakers
    rows = [*cell("s", "c", wrong), *cell("s", "d", wrong), *cell("s", "e", right)]
    by_speaker = (error(*rows) + error(*cell("t", "c", right))) / 2
    assert error(*rows, *cell("t", "c", right)) == pytest.approx(by_speaker)
    assert error(*cell("s", "c", right)) == 0 and error(*cell("s", "c", wrong)) == 1


def oracle(rows, *, speaker, context):
    """The definition, cell by cell."""
    groups = collections.defaultdict(list)
    for i, (phone, who, around, _) in enumerate(rows):
        groups[phone, who, around if context == "triphone" else ""].append(i)
    d = lambda i, j: abs(rows[i][3] - rows[j][3])
    cells = collections.defaultdict(list)
    for (p, s, c), a in groups.items():
        for (q, t, e), b in groups.items():
            if p == q or (s, c) != (t, e):
                continue
            for (r, u, g), x in groups.items():
                if r != p or g != c or (u == s) != (speaker == "within"):
                    continue
                triples = [(i, j, k) for i in x for j in a for k in b if i != j]
                scores = [(d(i, j) > d(i, k)) + 0.5 * (d(i, j) == d(i, k)) for i, j, k in triples]
                if scores:
                    cells[p, q, s].append(np.mean(scores))
    pairs = collections.defaultdict(list)
    for (p, q, _), found in cells.items():
        pairs[p, q] += [np.mean(found)] if context == "triphone" else found
    return np.mean([np.mean(found) for found in pairs.values()])


@pytest.mark.parametrize("speaker", ["within", "across"])
@pytest.mark.parametrize("context", ["triphone", "any"])
def test_the_definition(monkeypatch, speaker, context):
    rng = np.random.default_rng(0)
    rows = [
        (*(letters[i] for letters, i in zip(("pqr", "stu", "cd"), codes, strict=True)), number)
        for *codes, number in rng.integers(0, [3, 3, 2, 12], (60, 4)).tolist()
    ]
    expected = oracle(rows, speaker=speaker, context=context)
    assert error(*rows, speaker=speaker, context=context) == pytest.approx(expected, abs=1e-9)
    monkeypatch.setattr(scoring, "_CHUNK", 50)  # a part of the cells at a time
    assert error(*rows, speaker=speaker, context=context) == pytest.approx(expected, abs=1e-9)


def angular(x, starts, lengths, *, phones, speakers, **task):
    """Error of slices of frames [T, D], all in one context."""
    values, own = fd.prepare(x, distance="angular")
    frames, n = fd.Frames(fd.equal_frames(values), values, own), len(starts)
    times, context = [Decimal(0)] * n, ["c"] * n
    items = Items(["f"] * n, times, times, phones, context, context, speakers)
    gathered = ff.Gathered(frames, dtw.ItemFrames(starts, lengths), np.arange(n))
    return scoring.measure(gathered, items, distance="angular", **task).error


def test_features_that_say_nothing_are_at_chance():
    rng = np.random.default_rng(1)
    x = np.tile(rng.normal(size=(1, 768)), (900, 1))
    lengths, starts = rng.integers(1, 9, 80), rng.integers(0, 800, 80)
    code = lambda letters: rng.choice(list(letters), 80).tolist()
    slices = (x, starts, lengths)
    labels = {"phones": code("pqr"), "speakers": code("st")}
    for speaker in ("within", "across"):
        assert angular(*slices, speaker=speaker, context="any", **labels) == 0.5


def test_equal_items_are_equally_far():
    """B is A in every frame: each x is as close to one as to the other, wherever they are."""
    x = np.random.default_rng(2).normal(size=(600, 100))
    x[300:] = x[:300]  # the second phone says what the first one says
    slices = (x, np.arange(0, 600, 10), np.full(60, 7))
    labels = {"phones": ["p"] * 30 + ["q"] * 30, "speakers": ["s", "t"] * 30}
    assert angular(*slices, speaker="across", context="triphone", caps=ALL, **labels) == 0.5


def many(rng, *, each=30):
    return [
        (phone, speaker, "c", float(rng.normal() + (phone == "p")))
        for phone in "pqr"
        for speaker in "stuvwxyz"
        for _ in range(each)
    ]


def test_caps_and_seeds():
    features, items = of_numbers(*many(np.random.default_rng(3)))
    find = lambda *caps, speaker="within": scoring.measure(
        features,
        items,
        speaker=speaker,
        context="any",
        distance="euclidean",
        caps=scoring.Caps(*caps),
    )
    whole = find(None, None)
    assert whole.items == 720 and find(30, None, 1) == whole == find(1000, None, 2)
    drawn = find(10, None, 0)
    assert drawn.items == 240 and drawn == find(10, None, 0)
    assert drawn.error != find(10, None, 1).error
    assert drawn.error == pytest.approx(whole.error, abs=0.05)
    across = [find(2, most, 0, speaker="across") for most in (None, 7, 5)]
    pairs = 8 * 3 * 2  # A and B
    assert [found.cells for found in across] == [pairs * 7, pairs * 7, pairs * 5]
    assert across[0] == across[1]
    for caps in ((1, None), (None, 1)):
        with pytest.raises(scoring.AbxError, match="found 1, expected 2 or more"):
            find(*caps)


def test_a_cap_draws_every_item_alike():
    rng = np.random.default_rng(4)
    features, items = of_numbers(*many(rng, each=6))
    groups = [
        scoring._make_groups(items, features.kept, "any", 2, np.random.default_rng(seed)).members
        for seed in range(200)
    ]
    counts = np.bincount(np.concatenate(groups), minlength=len(items))
    assert (np.abs(counts - 200 * 2 / 6) < 6 * np.sqrt(200 * 2 / 9)).all() and counts.min() > 0


@pytest.mark.parametrize(
    ("rows", "speaker", "message"),
    [
        ([("p", "s", "c", 0), ("p", "s", "c", 1)], "within", "the 2 items make no cell within"),
        ([("p", "s", "c", 0), ("q", "s", "c", 1)], "within", "one of them twice"),
        ([("p", "s", "c", 0), ("q", "s", "d", 1)], "within", "in the same context"),
        ([("p", "s", "c", 0), ("q", "s", "c", 1)], "across", "one of them of another speaker"),
    ],
)
def test_nothing_to_compare(rows, speaker, message):
    with pytest.raises(scoring.AbxError, match=message):
        error(*rows, speaker=speaker)


def run(*arguments):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def test_commands(golden, tmp_path):
    folder, scores = golden
    caps = ("--max_size_group=0", "--max_x_across=0", f"--output={tmp_path / 'abx.json'}")
    out = run("abx", folder / "units.jsonl", f"--item={folder / 'phoneme.item'}", *caps)
    assert out.exit_code == 0, out.output
    record = result_files.read_result(tmp_path / "abx.json")
    expected = {
        score["speaker"]: score["error"]
        for score in scores
        if (score["distance"], score["item"], score["context"])
        == ("identical", "phoneme", "triphone")
    }
    assert len(record["rows"]) == 2
    for row in record["rows"]:
        assert row["error"] == pytest.approx(expected[row["speaker"]], abs=2e-5)
        assert (row["distance"], row["context"]) == ("identical", "triphone")
        assert f"{row['error']:.2%}" in out.output
    assert record["kind"] == "abx" and "--max_size_group=0" in record["command"]
    assert "identical distance" in record["rule"] and "384 items of 12" in record["data"]


def test_one_speaker_has_an_error_within_only(golden, tmp_path):
    folder, _ = golden
    header, *lines = (folder / "phoneme.item").read_text().splitlines()
    speaker = lines[0].split()[-1]
    own = [line for line in lines if line.split()[-1] == speaker]
    assert 0 < len(own) < len(lines)
    (tmp_path / "one.item").write_text("\n".join([header, *own]) + "\n")
    out = run("abx", folder / "units.jsonl", f"--item={tmp_path / 'one.item'}")
    assert out.exit_code == 0 and "within" in out.output, out.output
    assert "one speaker: there is no error across speakers" in out.output
    out = run("abx", folder / "units.jsonl", f"--item={tmp_path / 'one.item'}", "--speaker=across")
    assert out.exit_code == 1 and "no cell across speakers" in out.output


def test_commands_refuse_in_one_line(golden, tmp_path):
    folder, _ = golden
    item = f"--item={folder / 'phoneme.item'}"
    for arguments, message in (
        ((tmp_path, item), "found no .npy"),
        ((folder / "angular", f"--item={tmp_path / 'no'}"), "No such file"),
        ((folder / "angular", item, "--frame_rate=0"), "--frame_rate: found '0'"),
        ((folder / "angular", item, "--frame_rate=10"), "items have no frame at 10"),
        ((folder / "angular", item, "--frame_rate=60"), "--pad_end"),
        ((folder / "angular", item, "--distance=kl_symmetric"), "expected probabilities"),
        ((folder / "angular", item, "--max_size_group=1"), "found 1, expected 2 or more"),
    ):
        out = run("abx", *arguments)
        assert out.exit_code == 1 and message in out.output, out.output
        assert "Traceback" not in out.output and out.output.count("Error") == 1


@pytest.fixture(scope="module")
def spoken_in_folders(tmp_path_factory):
    """Six recordings of a folder en/, by six speakers: phones, speakers, features and units."""
    folder = tmp_path_factory.mktemp("spoken")
    labels = ["AA", "B", "IY", "B", "AA", "IY", "B", "B"]
    phones, speakers, units, random = [], [], {}, np.random.default_rng(0)
    for i in range(6):
        name = f"en/u{i}"
        speakers.append(f"{name}\t{'abcdef'[i]}\n")
        for k, label in enumerate(random.permuted(labels)):
            phones.append(f"{name}\t{k / 10}\t{(k + 1) / 10}\t{label}\n")
        (folder / "features/en").mkdir(parents=True, exist_ok=True)
        np.save(folder / f"features/{name}.npy", random.normal(size=(40, 3)))
        units[name] = random.integers(0, 4, 40).tolist()
    (folder / "phones.tsv").write_text("file\tstart_s\tend_s\tphone\n" + "".join(phones))
    (folder / "speakers.tsv").write_text("file\tspeaker\n" + "".join(speakers))
    lines = [json.dumps({"file": name, "units": codes}) for name, codes in units.items()]
    (folder / "units.jsonl").write_text("\n".join(lines))
    plain = [f"{name}\t{' '.join(map(str, codes))}" for name, codes in units.items()]
    (folder / "units.txt").write_text("\n".join(plain))
    return folder


def test_items_of_an_alignment(tmp_path, monkeypatch):
    (tmp_path / "phones.tsv").write_text(
        "file\tstart_s\tend_s\tphone\n"
        + "".join(
            f"u{i}\t{k / 10}\t{(k + 1) / 10}\t{phone}\n"
            for i in range(2)
            for k, phone in enumerate(["sil", "AH0", "B", "sp", "T", "IY1", "T"])
        )
    )
    (tmp_path / "index.tsv").write_text("file\tspeaker\nf/u0\ta\nf/u1\tb\n")
    common = ["items", tmp_path / "phones.tsv", f"--speakers={tmp_path / 'index.tsv'}"]
    out = run(*common, "--prefix=f/", f"--output={tmp_path / 'x.item'}")
    assert out.exit_code == 0 and "2 triphone items of 2 recordings, 2 speakers" in out.output
    assert (tmp_path / "x.item").read_text().splitlines() == [
        "#file onset offset #phone prev-phone next-phone speaker",
        "u0 0.4 0.7 IY T T a",
        "u1 0.4 0.7 IY T T b",
    ]
    assert "named without folders (--names=stem)" in out.output and "left out" not in out.output
    out = run(*common, "--prefix=f/", "--names=id", f"--output={tmp_path / 'id.item'}")
    assert read_items(tmp_path / "id.item").files == ["f/u0", "f/u1"]
    assert "named with folders (--names=id)" in out.output
    out = run(*common, "--prefix=f/", "--context=phoneme", f"--output={tmp_path / 'y.csv'}")
    assert "10 phoneme items" in out.output
    assert read_items(tmp_path / "y.csv").phones[:3] == ["AH", "B", "T"]
    out = run(*common, f"--output={tmp_path / 'x.item'}")
    assert out.exit_code == 1 and "speakers of 2 of 2 utterances are not known" in out.output
    # a split of a prepared dataset knows its own speakers only
    monkeypatch.setattr(commands, "_speakers", lambda path, split: {"f/u1": "b"})
    out = run(*common, "--prefix=f/", "--split=test", f"--output={tmp_path / 'z.item'}")
    assert out.exit_code == 0 and "1 triphone items of 1 recordings" in out.output, out.output


def test_items_of_the_part_that_a_table_names(spoken_in_folders, tmp_path):
    table = tmp_path / "part.tsv"
    table.write_text("file\tspeaker\nen/u1\tb\nen/u3\td\nelsewhere\te\n")
    common = ["items", spoken_in_folders / "phones.tsv", f"--speakers={table}"]
    out = run(*common, f"--output={tmp_path / 'x.item'}")
    assert out.exit_code == 0 and "of 2 recordings, 2 speakers" in out.output, out.output
    assert f"4 of 6 utterances of {common[1]} are left out: {table} does not name" in out.output
    found = read_items(tmp_path / "x.item")
    assert dict(zip(found.files, found.speakers, strict=True)) == {"u1": "b", "u3": "d"}
    out = run(*common, "--prefix=fr/", f"--output={tmp_path / 'y.item'}")
    assert out.exit_code == 1 and "speakers of 6 of 6 utterances are not known" in out.output
    assert not (tmp_path / "y.item").exists()


@pytest.mark.parametrize("kind", ["features", "units.jsonl", "units.txt"])
def test_names_with_folders_and_without_are_the_same_recordings(spoken_in_folders, tmp_path, kind):
    rows = []
    for names in ("id", "stem"):
        item, output = tmp_path / f"{names}.item", tmp_path / f"{names}.json"
        speakers = f"--speakers={spoken_in_folders / 'speakers.tsv'}"
        where = [spoken_in_folders / "phones.tsv", speakers, f"--output={item}"]
        out = run("items", *where, *([f"--names={names}"] if names == "id" else []))
        assert out.exit_code == 0 and f"(--names={names})" in out.output, out.output
        assert {"/" in name for name in read_items(item).files} == {names == "id"}
        where = [spoken_in_folders / kind, f"--item={item}", f"--output={output}"]
        out = run("abx", *where, "--context=any")
        assert out.exit_code == 0, out.output
        rows.append(json.loads(output.read_text())["rows"])
    assert rows[0] == rows[1] and len(rows[0]) == 2 and 0 < rows[0][0]["error"] < 1


def test_names_that_folders_tell_apart(spoken_in_folders, tmp_path):
    """They keep their folders by default, even where only one of them is wanted."""
    phones, table = tmp_path / "phones.tsv", tmp_path / "speakers.tsv"
    text = (spoken_in_folders / "phones.tsv").read_text()
    phones.write_text(text + "fr/u1\t0\t0.1\tAA\n")
    common = ["items", phones, f"--speakers={table}", f"--output={tmp_path / 'x.item'}"]
    both = (spoken_in_folders / "speakers.tsv").read_text() + "fr/u1\tz\n"
    for speakers, explicit in ((both, 1), (both.replace("fr/u1\tz\n", ""), 0)):
        table.write_text(speakers)
        out = run(*common)
        assert out.exit_code == 0 and "with folders (--names=id)" in out.output, out.output
        assert "en/u1" in read_items(tmp_path / "x.item").files
        (tmp_path / "x.item").unlink()
        out = run(*common, "--names=stem")
        assert out.exit_code == explicit, out.output
        message = "en/u1 and fr/u1 would both be called u1; expected .* use --names=id"
        assert bool(re.search(message, out.output)) == bool(explicit)
        assert (tmp_path / "x.item").exists() != bool(explicit)


def test_the_rule_says_what_was_done():
    text = scoring.to_rule(Fraction(50), "angular", scoring.Caps(), end="repeat")
    assert "\n" not in text and "at most 10 A" in text and "seed 0" in text and "repeated" in text
    assert "seed" not in scoring.to_rule(Fraction(50), "angular", ALL, end="raise")
