"""Phones of a source folder reach the prepared dataset under the ids of its records."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax.data.batches.labelled import open_labelled
from dinosr_jax.data.phones.alignments import read_alignment
from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.data.prepare.source_phones import carry_phones
from dinosr_jax.data.prepare.sources import SourceError, read_source
from dinosr_jax.recipes import published_recipe

ROOT = Path(__file__).parents[3]
HEADER = "file\tstart_s\tend_s\tphone\n"


def make_source(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(16_000, np.int16), 16_000)
    return folder


def carried(source: Path, folder: Path) -> dict[str, list[str]]:
    """Id of the record -> labels."""
    folder.mkdir(exist_ok=True)
    carry_phones(read_source(source), folder=folder)
    path = folder / "phones.tsv"
    utterances = read_alignment(path, kind="tsv").utterances if path.is_file() else {}
    return {id_: [phone.label for phone in phones] for id_, phones in utterances.items()}


def table(path: Path, **labels: str) -> None:
    rows = (f"{name}\t0.1\t0.25\t{label}\n" for name, label in labels.items())
    path.write_text(HEADER + "".join(rows))


def test_embedded_phones_are_those_of_the_english_prompts_alone(tmp_path):
    found = carried(ROOT / "data/embedded", tmp_path / "data")
    given = read_alignment(ROOT / "data/embedded/phones_en.tsv").utterances
    assert len(found) == len(given) == 549
    assert found == {
        f"asterisk_en/{name}": [phone.label for phone in phones] for name, phones in given.items()
    }
    written = read_alignment(tmp_path / "data/phones.tsv").utterances
    assert written["asterisk_en/activated"] == given["activated"]  # the same times


def test_names_are_ids_paths_or_names_alone(tmp_path):
    source = make_source(tmp_path / "s", "a/1.wav", "a/2.wav", "b/3.wav", "2.wav")
    labels = {"a/1": "AA", "b/3.wav": "BB", "2": "CC", "nobody": "DD"}
    table(source / "phones.tsv", **labels)
    assert carried(source, tmp_path / "d") == {"a/1": ["AA"], "b/3": ["BB"], "2": ["CC"]}
    table(source / "phones.tsv", **{"3": "BB"})
    assert carried(source, tmp_path / "d") == {"b/3": ["BB"]}


def test_a_language_is_that_of_the_folder_or_of_the_table(tmp_path):
    source = make_source(tmp_path / "s", "x_en/hi.wav", "x_es/hi.wav", "es/ho.wav", "yes/hu.wav")
    table(source / "phones_es.tsv", hi="I", ho="O", hu="U")
    assert carried(source, tmp_path / "d") == {"x_es/hi": ["I"], "es/ho": ["O"]}
    rows = "file\tlanguage\nx_en/hi\tES\nx_es/hi\tfr\nes/ho\tes\nyes/hu\t\n"
    (source / "transcripts.tsv").write_text(rows)
    assert carried(source, tmp_path / "d") == {"x_en/hi": ["I"], "es/ho": ["O"]}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"phones.tsv": {"hi": "I"}}, r"phones\.tsv: 'hi' may be en/hi or es/hi.*phones_LANGUAGE"),
        ({"phones.tsv": {"en/hi": "I"}, "phones_en.tsv": {"hi": "A"}}, "en/hi are in another"),
        ({"phones_en.tsv": {"hi": "I\nho"}}, r"phones_en\.tsv.*line 3"),
    ],
)
def test_what_is_unclear_is_refused_by_name(tmp_path, tables, words):
    source = make_source(tmp_path / "s", "en/hi.wav", "es/hi.wav")
    for name, labels in tables.items():
        table(source / name, **labels)
    with pytest.raises(SourceError, match=words):
        carried(source, tmp_path / "d")
    assert not (tmp_path / "d/phones.tsv").exists()


def test_a_source_without_phones_leaves_the_dataset_as_it_is(tmp_path):
    source = make_source(tmp_path / "s", "hi.wav")
    assert carried(source, tmp_path / "d") == {}
    table(source / "phones.tsv", hi="I")
    assert carried(source, tmp_path / "d") == {"hi": ["I"]}
    before = (tmp_path / "d/phones.tsv").stat()
    assert carried(source, tmp_path / "d") == {"hi": ["I"]}
    assert (tmp_path / "d/phones.tsv").stat().st_mtime_ns == before.st_mtime_ns
    (source / "phones.tsv").unlink()
    assert carried(source, tmp_path / "d") == {"hi": ["I"]}


def test_names_with_accents_joined_and_apart_are_the_same(tmp_path):
    """Also when the prepared dataset is read: its records keep the names of the files."""
    one, two = (unicodedata.normalize(form, "é/ö") for form in ("NFC", "NFD"))
    source = make_source(tmp_path / "s", f"{two}.wav")
    wave = np.sin(np.arange(16_000)).astype(np.float32)
    soundfile.write(source / f"{two}.wav", wave, 16_000)
    table(source / "phones.tsv", **{one: "AA"})
    prepare(source, data_dir=tmp_path / "d")
    config = published_recipe().data
    config.update(data_dir=str(tmp_path / "d"), dataset="audio_folder", eval_split="train")
    data = open_labelled(config)
    assert data.manifest.ids.tolist() == [two] and data.phones == ("AA", "SIL")
