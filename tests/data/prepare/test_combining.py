"""One dataset of several folders, and what is left out of it by language or speaker."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli.data import prepare as command
from dinosr_jax.data.manifest import load_manifest
from dinosr_jax.data.prepare.audio_folder import prepare, read_skipped
from dinosr_jax.data.prepare.combining import read_sources
from dinosr_jax.data.prepare.sources import SourceError
from tests.prepared_speech import records_by_id

ROOT = Path(__file__).parents[3]
SPEECH = soundfile.read(ROOT / "data/embedded/asterisk_en.ogg", dtype="int16", frames=640_000)[0]
HEADER = "file\tspeaker\tlanguage\tsplit\ttext\n"


def write(path: Path, start: int, seconds: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = SPEECH[start * 16_000 : int((start + seconds) * 16_000)]
    soundfile.write(path, part, 16_000)


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """One with a table, one with an index.tsv, and one with neither; names of files repeat."""
    first, second, third = (tmp_path / "in" / name for name in ("game", "cut", "letters"))
    write(first / "a.flac", 1)
    write(first / "b.flac", 2)
    rows = "a.flac\thero\ten\ttrain\thello\nb.flac\tvillain\tcs\tdev\tahoj\n"
    (first / "transcripts.tsv").write_text(HEADER + rows)
    write(second / "long.flac", 3, 3)
    (second / "index.tsv").write_text(
        "shard\tfile\tstart_sample\tnum_samples\tspeaker\tlanguage\n"
        "long.flac\ta\t0\t16000\thero\tnl\nlong.flac\tb\t16000\t32000\tother\ten\n"
    )
    (second / "phones.tsv").write_text("file\tstart_s\tend_s\tphone\nb\t0.1\t0.3\tAA\n")
    write(third / "x/a.wav", 8)
    write(third / "x/short.wav", 9, 0.01)
    return [first, second, third]


def utterances(source):
    return {u.id: u for file in source.files for u in file.utterances}


def test_ids_have_the_name_of_their_folder_and_the_rest_is_kept(folders):
    found = utterances(read_sources(folders))
    assert set(found) == {
        "game/a", "game/b", "cut/long/a", "cut/long/b", "letters/x/a", "letters/x/short",
    }  # fmt: skip
    assert found["game/b"][2:] == ("villain", "cs", "ahoj", "dev")
    assert found["cut/long/a"][2:] == ("hero", "nl", "", "train")
    assert found["letters/x/a"].speaker == "x"
    notes = " ".join(read_sources(folders).notes)
    assert "hero (game, cut)" in notes and "game: 2 of 2 utterances have a transcript" in notes
    assert set(utterances(read_sources(folders[:1]))) == {"a", "b"}  # one folder: as ever


def test_records_hold_the_audio_of_their_folder(folders, tmp_path):
    folder = prepare(*folders, data_dir=tmp_path / "out")
    stored = records_by_id(tmp_path / "out", split="train+dev")
    assert set(stored) == {"game/a", "game/b", "cut/long/a", "cut/long/b", "letters/x/a"}
    for id_, start in (("game/a", 1), ("game/b", 2), ("cut/long/a", 3), ("letters/x/a", 8)):
        samples = soundfile.read(io.BytesIO(stored[id_]), dtype="int16")[0]
        np.testing.assert_array_equal(samples, SPEECH[start * 16_000 : (start + 1) * 16_000])
    ((name, reason),) = read_skipped(folder)
    assert name == "letters/x/short.wav" and reason.startswith("too short")
    phones = (folder / "phones.tsv").read_text().splitlines()
    assert phones[1:] == ["cut/long/b\t0.1\t0.3\tAA"]
    origin = json.loads((folder / "source.json").read_text())["folder"]
    assert origin == ", ".join(map(str, folders))


def test_nothing_is_written_again_and_other_folders_are_refused(folders, tmp_path, capsys):
    prepare(*folders, data_dir=tmp_path / "out")
    capsys.readouterr()
    prepare(*folders, data_dir=tmp_path / "out")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SourceError, match="holds a dataset made from") as message:
        prepare(*folders[:2], data_dir=tmp_path / "out")
    assert str(folders[2]) in str(message.value)


def test_what_a_rule_names_is_left_out_and_listed(folders, tmp_path):
    source = read_sources(folders, exclude=["language=en", "speaker=x"])
    assert set(utterances(source)) == {"game/b", "cut/long/a"}
    assert sorted(source.left_out) == [
        ("cut/long/b", "excluded: language=en"),
        ("game/a.flac", "excluded: language=en"),
        ("letters/x/a.wav", "excluded: speaker=x"),
        ("letters/x/short.wav", "excluded: speaker=x"),
    ]
    assert source.fingerprint != read_sources(folders, exclude=["language=en"]).fingerprint
    folder = prepare(*folders, data_dir=tmp_path / "out", exclude=["language=en"])
    assert not (folder / "phones.tsv").exists()
    assert ("game/a.flac", "excluded: language=en") in read_skipped(folder)
    ids = load_manifest(tmp_path / "out", split="train+dev").ids
    assert set(ids) == {"game/b", "cut/long/a", "letters/x/a"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("language=eng", "no utterance has this language; found '' .unknown., cs, en, nl"),
        ("speaker=", "no utterance has this speaker"),
        ("split=dev", "expected language=NAME or speaker=NAME"),
        ("en", "expected language=NAME or speaker=NAME"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(folders, rule, message):
    with pytest.raises(SourceError, match=f"--exclude={rule}: {message}"):
        read_sources(folders, exclude=[rule])


def test_a_rule_that_leaves_nothing_is_refused(folders):
    rules = ["speaker=hero", "speaker=villain"]
    with pytest.raises(SourceError, match="leaves no utterance"):
        read_sources(folders[:1], exclude=rules)


def test_folders_that_hold_the_same_recordings_are_refused(folders):
    with pytest.raises(SourceError, match="is named twice"):
        read_sources([folders[0], folders[1], folders[0] / "."])
    for some in ([folders[0], folders[0].parent], [folders[0].parent, folders[0]]):
        with pytest.raises(SourceError, match="one is in the other"):
            read_sources(some)


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for name in ("one/wav", "two/wav"):
        write(tmp_path / name / "a.wav", 1)
    found = utterances(read_sources([tmp_path / "one/wav", tmp_path / "two/wav"]))
    assert set(found) == {"one/wav/a", "two/wav/a"}


def test_an_index_that_asks_for_too_much_is_named(folders, tmp_path):
    index = folders[1] / "index.tsv"
    index.write_text(index.read_text().replace("32000", "99999"))
    with pytest.raises(SourceError, match=f"{index}, line 3"):
        prepare(*folders, data_dir=tmp_path / "out")


def test_the_command_takes_several_folders_and_rules(folders, tmp_path):
    flags = [f"--source={folder}" for folder in folders] + [f"--data_dir={tmp_path / 'out'}"]
    done = CliRunner().invoke(command, [*flags, "--exclude=language=en"])
    assert done.exit_code == 0, done.output
    assert "3 utterances" in done.output and "excluded: language=en" in done.output
    done = CliRunner().invoke(command, [*flags, "--dataset=librispeech"])
    assert done.exit_code == 2 and "folders of audio" in done.output
    done = CliRunner().invoke(command, [f"--data_dir={tmp_path}"])
    assert done.exit_code == 2 and "--source=FOLDER is missing" in done.output
