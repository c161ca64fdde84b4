import numpy as np
import soundfile

from dinosr_jax.data.prepare.librilight import NINE_HOURS, TEN_HOURS, TEN_MINUTES, limited_splits
from dinosr_jax.data.prepare.sources import read_source


def test_the_folders_are_the_splits(tmp_path):
    """As librispeech_finetuning.tgz unpacks: 1h/0 to 1h/5, 9h; clean and other; .trans.txt."""
    places = [*(f"1h/{k}/clean" for k in range(6)), "1h/0/other", "9h/other"]
    for number, place in enumerate(places):
        chapter = tmp_path / place / str(100 + number) / "7"
        chapter.mkdir(parents=True)
        name = f"{100 + number}-7-0001"
        soundfile.write(chapter / f"{name}.flac", np.ones(800) * 0.1, 16_000)
        (chapter / f"{100 + number}-7.trans.txt").write_text(f"{name} WORD {number}\n")
    (tmp_path / "phones").mkdir()
    source = read_source(tmp_path)
    found = {u.speaker: (u.split, u.text) for file in source.files for u in file.utterances}
    assert found["100"] == (TEN_MINUTES[0], "WORD 0") and found["106"][0] == TEN_MINUTES[0]
    assert found["105"][0] == TEN_MINUTES[5] and found["107"] == (NINE_HOURS, "WORD 7")
    assert any("limited_9h" in note for note in source.notes)
    assert set(TEN_HOURS.split("+")) == {*TEN_MINUTES, NINE_HOURS}


def test_other_folders_are_left_alone():
    assert limited_splits(["1h/0/clean/1/2/a.flac", "other/b.flac"]) is None
    assert limited_splits(["1h/6/clean/1/2/a.flac"]) is None
    assert limited_splits(["1h/0/clean/1/a.flac"]) is None
    inside = limited_splits(["librispeech_finetuning/9h/clean/1/2/a.flac"])
    assert inside == {"librispeech_finetuning/9h/clean/1/2/a.flac": NINE_HOURS}
