"""Reading features and units for items, and what is said where they do not fit."""

import json
import unicodedata
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from dinosr_jax.evaluation.abx import item_features as ff
from dinosr_jax.evaluation.abx.items import Items


def items_of(*rows):
    """Items of (recording, onset, offset)."""
    return Items(
        *([row[0] for row in rows], *([Decimal(row[i]) for row in rows] for i in (1, 2))),
        *([letter] * len(rows) for letter in "pqrs"),
    )


@pytest.fixture
def folder(tmp_path):
    """Two recordings of 10 and 6 frames of 3 numbers; the first of a recording is 10, 20."""
    for name, first, frames in (("a/one", 10, 10), ("two.x", 20, 6)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        x = np.full((frames, 3), 1, np.float16)
        x[:, 0] = first + np.arange(frames)
        np.save(tmp_path / f"{name}.npy", x)
    return tmp_path


def gather(path, items, *, distance="euclidean", **settings):
    (source,) = ff.open_features(path)
    return ff.gather(source, items, distance=distance, **settings)


def first_numbers(found):
    slices = zip(found.items.starts, found.items.lengths, strict=True)
    return [found.frames.values[at : at + n, 0].tolist() for at, n in slices]


def test_slices_of_recordings(folder):
    items = items_of(("two.x", "0.03", "0.07"), ("a/one", "0", "0.2"), ("two.x", "0.05", "0.12"))
    found = gather(folder, items)
    assert first_numbers(found) == [[21, 22, 23], list(range(10, 20)), [22, 23, 24, 25]]
    assert found.kept.tolist() == [0, 1, 2] and found.frames.values.dtype == np.float32
    assert len(found.frames.values) == 16  # every recording once


def test_names_without_folders(folder):
    assert first_numbers(gather(folder, items_of(("one", "0", "0.02")))) == [[10]]
    assert first_numbers(gather(folder, items_of(("x/y/one", "0", "0.02")))) == [[10]]
    with pytest.raises(ff.FeatureError, match="one and a/one of the item file would both be a/one"):
        gather(folder, items_of(("one", "0", "0.1"), ("a/one", "0", "0.1")))
    (folder / "b").mkdir()
    np.save(folder / "b" / "one.npy", np.ones((5, 3)))
    with pytest.raises(ff.FeatureError, match="one: found a/one and b/one in .*, expected one"):
        gather(folder, items_of(("one", "0", "0.1")))
    with pytest.raises(ff.FeatureError, match="2 of 3 recordings .* the first is three; found 3"):
        gather(folder, items_of(("three", "0", "1"), ("a/one", "0", "0.1"), ("4", "0", "1")))


def test_a_recording_that_ends_before_its_item(folder):
    items = items_of(("two.x", "0", "0.12"), ("two.x", "0.06", "0.13"))
    message = r"two.x from 0.06 to 0.13 s \(q-p-r\): needs frames 3 to 6, found 6 frames at 50"
    with pytest.raises(ff.FeatureError, match=message):
        gather(folder, items)
    assert first_numbers(gather(folder, items, end="repeat"))[1] == [23, 24, 25, 25]
    found = gather(folder, items_of(("two.x", "0.12", "0.15")), end="repeat")
    assert first_numbers(found) == [[25, 25]]
    with pytest.raises(ff.FeatureError, match="needs frames 3 to 8, found 6"):
        gather(folder, items_of(("two.x", "0.06", "0.17")), end="repeat")


def test_items_without_a_frame(folder):
    items = items_of(("a/one", "0.011", "0.029"), ("a/one", "0.01", "0.029"))
    with pytest.raises(ff.FeatureError, match="1 of 2 items have no frame at 50 .* 0.011 to 0.029"):
        gather(folder, items)
    found = gather(folder, items, short="skip")
    assert found.kept.tolist() == [1] and first_numbers(found) == [[10]]
    with pytest.raises(ff.FeatureError, match="none of the 1 items has a frame"):
        gather(folder, items.take([0]), short="skip")
    long = items_of(("a/one", "0", "400"))
    with pytest.raises(ff.FeatureError, match="found 20000 frames, expected 16384 at most"):
        gather(folder, long)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((10, 3), np.nan), "one.npy: 10 of 10 frames are not finite, the first is 0"),
        (
            np.full((10, 3), 1e39),
            "one.npy: found a number of 1e\\+39, expected squares that float32 can hold",
        ),
        (np.ones((10, 4)), "one.npy: found 4 numbers a frame, expected 3"),
        (np.ones(10), r"one.npy: found the shape \[10\], expected \[T, D\]"),
        (np.ones((10, 3), complex), r"found complex128\[10, 3\], expected \[T, D\] numbers"),
        (np.ones((1, 10, 3)), r"found float64\[1, 10, 3\]"),
        (np.ones((0, 3)), r"the shape \[0, 3\]"),
        (np.array([{}], object), "cannot be read as .npy"),
    ],
)
def test_arrays_that_cannot_be_used(folder, array, message):
    np.save(folder / "a" / "one.npy", array)
    with pytest.raises(ff.FeatureError, match=message):
        gather(folder, items_of(("two.x", "0", "0.1"), ("a/one", "0", "0.1")))


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x93NUMPY\x01\x00"])
def test_damaged_files(folder, data):
    (folder / "two.x.npy").write_bytes(data)
    with pytest.raises(ff.FeatureError, match="two.x.npy: cannot be read as .npy"):
        gather(folder, items_of(("two.x", "0", "0.1")))
    (folder / "a" / "one.npy").write_bytes((folder / "a" / "one.npy").read_bytes()[:-8])
    with pytest.raises(ff.FeatureError, match="one.npy: cannot be read as .npy"):
        gather(folder, items_of(("one", "0", "0.1")))


def test_layers_and_what_is_written_beside(folder):
    said = {"layers": [5], "frame_rate": 62.5, "step": 7, "checkpoint": "run"}
    (folder / "features.json").write_text(json.dumps(said))
    (source,) = ff.open_features(folder, layer=5)
    assert (source.layer, source.frame_rate) == (5, Fraction(125, 2))
    assert source.about["step"] == 7 and source.kind == "features"
    with pytest.raises(ff.FeatureError, match="found no features of layer 4"):
        ff.open_features(folder, layer=4)
    (source,) = ff.open_features(folder, frame_rate=Fraction(100))
    assert source.frame_rate == 100
    for hop in (160, 240, 320, 640, 700, 9_999):  # as `extract` writes it
        (folder / "features.json").write_text(json.dumps({"frame_rate": 16_000 / hop}))
        (source,) = ff.open_features(folder)
        assert source.frame_rate == Fraction(16_000, hop)
    for broken in ("{", "[]", '{"frame_rate": "x"}', '{"frame_rate": 0}'):
        (folder / "features.json").write_text(broken)
        with pytest.raises(ff.FeatureError, match="features.json"):
            ff.open_features(folder)


def test_folders_of_layers(tmp_path):
    for layer in (3, 12):
        (tmp_path / f"layer_{layer:02}" / "a").mkdir(parents=True)
        x = np.full((5, 2), layer, np.float32)
        np.save(tmp_path / f"layer_{layer:02}" / "a" / "b.npy", x)
    (tmp_path / "features.json").write_text(json.dumps({"layers": [3, 12], "frame_rate": 50.0}))
    items = items_of(("a/b", "0", "0.02"))
    found = ff.open_features(tmp_path)
    assert [source.layer for source in found] == [3, 12]
    assert first_numbers(ff.gather(found[1], items, distance="euclidean")) == [[12]]
    (source,) = ff.open_features(tmp_path, layer=12)
    assert source.layer == 12
    with pytest.raises(ff.FeatureError, match="layer 4"):
        ff.open_features(tmp_path, layer=4)


def test_shards_of_fairseq(tmp_path):
    lengths, x = [4, 0, 3, 5, 2], np.arange(28, dtype=np.float32).reshape(14, 2)
    for part, (lines, rows) in enumerate(((slice(0, 2), slice(0, 4)), (slice(2, 5), slice(4, 14)))):
        np.save(tmp_path / f"dev_{part}_2.npy", x[rows])
        (tmp_path / f"dev_{part}_2.len").write_text("\n".join(map(str, lengths[lines])))
    tsv = tmp_path / "dev.tsv"
    tsv.write_text("/audio\n" + "".join(f"d/{name}.flac\t9\n" for name in "abcde"))
    with pytest.raises(ff.FeatureError, match="dev_0_2.npy: .* give --manifest=FILE.tsv"):
        ff.open_features(tmp_path)
    (source,) = ff.open_features(tmp_path, manifest=tsv)
    items = items_of(("d/a", "0", "0.08"), ("d/e", "0", "0.04"), ("d/c", "0", "0.06"))
    found = ff.gather(source, items, distance="euclidean")
    assert first_numbers(found) == [[0, 2, 4, 6], [24, 26], [8, 10, 12]]
    with pytest.raises(ff.FeatureError, match="1 of 1 recordings .* the first is d/b"):
        ff.gather(source, items_of(("d/b", "0", "0.08")), distance="euclidean")
    tsv.write_bytes("\ufeff/audio\r\n\r\n".encode() + tsv.read_bytes()[7:].replace(b"\n", b"\r\n"))
    (found,) = ff.open_features(tmp_path, manifest=tsv)
    assert found.entries.keys() == source.entries.keys()
    tsv.write_text("/audio\na.flac\t1.0\n")
    with pytest.raises(ff.FeatureError, match="line 2: found 'a.flac.t1.0'; expected a list"):
        ff.open_features(tmp_path, manifest=tsv)
    tsv.write_text("/audio\na.flac\t1\n")
    with pytest.raises(ff.FeatureError, match="lengths, expected"):
        ff.open_features(tmp_path, manifest=tsv)


def test_units(tmp_path):
    path = tmp_path / "units-layer05.jsonl"
    lines = [
        {"file": "a/b", "units": [4, 4, 7]},
        {"file": "c", "units": [1, 2], "durations": [3, 1]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    (source,) = ff.open_features(path)
    assert (source.kind, source.layer, source.frame_rate) == ("units", 5, 50)
    items = items_of(("c", "0", "0.08"), ("b", "0.02", "0.06"))
    found = ff.gather(source, items, distance="identical")
    slices = zip(found.items.starts, found.items.lengths, strict=True)
    assert [found.frames.ids[at : at + n].tolist() for at, n in slices] == [[1, 1, 1, 2], [4, 7]]
    with pytest.raises(ff.FeatureError, match="units have no angular distance"):
        ff.gather(source, items, distance="angular")
    with pytest.raises(ff.FeatureError, match="c from 0 to 0.1 s .*found 4 frames"):
        ff.gather(source, items_of(("c", "0", "0.1")), distance="identical")


def test_units_in_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[3.0], [5.0]], np.float32))
    items = items_of(("a", "0", "0.04"))
    assert gather(tmp_path, items, distance="identical").frames.ids.tolist() == [3, 5]
    np.save(tmp_path / "a.npy", np.array([3, 5], np.int64))
    assert gather(tmp_path, items, distance="identical").frames.ids.tolist() == [3, 5]
    for wrong in (np.array([[0.5], [1]]), np.ones((2, 2)), np.array([2**40, 1])):
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(ff.FeatureError, match="whole numbers for 'identical'"):
            gather(tmp_path, items, distance="identical")


def test_probabilities(folder):
    with pytest.raises(ff.FeatureError, match="one.npy: expected probabilities"):
        gather(folder, items_of(("a/one", "0", "0.1")), distance="kl_symmetric")


def test_nothing_there(tmp_path):
    for path, message in (
        (tmp_path, "found no .npy"),
        (tmp_path / "no", "found nothing, expected a folder"),
        (tmp_path / "x.npy", "expected a folder"),
    ):
        with pytest.raises(ff.FeatureError, match=message):
            ff.open_features(path)


def test_names_with_accents_joined_and_apart_are_the_same(folder):
    apart = unicodedata.normalize("NFD", "é/ö")
    (folder / apart).parent.mkdir()
    np.save(folder / f"{apart}.npy", np.full((5, 3), 7.0))
    for name in ("é/ö", apart, "ö"):
        assert first_numbers(gather(folder, items_of((name, "0", "0.02")))) == [[7]]
