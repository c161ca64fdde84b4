"""Features in memory and in files: the same numbers; what is kept, and what is removed."""

import tempfile

import numpy as np
import pytest

from dinosr_jax.evaluation.features import store
from dinosr_jax.inference.outputs import OutputError
from dinosr_jax.inference.recordings import Recording

RECORDINGS = [Recording(f"a/{n}", f"a/{n}", np.zeros(n, np.float32), n) for n in (5, 3, 9)]


class Model:
    num_frames = staticmethod(lambda samples: samples)


def system(calls, *, frames=lambda recording: recording.num_samples):
    def compute(recordings, *, progress):
        for recording in recordings:
            calls.append(recording.id)
            random = np.random.default_rng(recording.num_samples)
            yield recording.id, random.standard_normal((2, frames(recording), 4), np.float32)
            progress(recording.num_samples / 16_000)

    return store.System("mfcc", compute, (0, 1), 4, "digest")


def opened(calls=None, **how):
    given = system([] if calls is None else calls)
    return store.open_features(given, RECORDINGS, model=Model, **how)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


NEEDED = 4 * (5 + 3 + 9) * 2 * 4  # bytes


def test_files_give_what_memory_gives(temporary):
    said = []
    with opened(max_bytes=NEEDED, say=said.append) as held:
        assert said == [] and list(temporary.iterdir()) == []
    with opened(max_bytes=NEEDED - 1, say=said.append) as filed:
        (folder,) = temporary.iterdir()
        assert len(list(folder.iterdir())) == 3 and f"kept in {folder}" in said[0]
        assert filed.lengths == held.lengths == {"a/5": 5, "a/3": 3, "a/9": 9}
        assert filed.layers == held.layers and list(filed.arrays) == list(held.arrays)
        ids = ["a/3", "a/9", "a/3"]
        one, other = (features.batch(ids, frames=10) for features in (held, filed))
        np.testing.assert_array_equal(one, other)
        assert one.shape == (3, 10, 2, 4) and one.dtype == other.dtype == np.float32
        assert not one[0, 3:].any() and one[0, :3].all()
    assert list(temporary.iterdir()) == []


def test_the_temporary_folder_goes_where_something_fails(temporary):
    with pytest.raises(KeyboardInterrupt), opened(max_bytes=1):
        assert len(list(temporary.iterdir())) == 1
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


def test_a_cache_is_read_again_and_mended(tmp_path):
    cache, calls, seconds = tmp_path / "cache", [], []
    with opened(calls, cache=cache, max_bytes=1) as first:
        kept = {id_: np.array(array) for id_, array in first.arrays.items()}
    assert len(calls) == 3 and {a.dtype for a in kept.values()} == {np.dtype(np.float16)}
    files = sorted((cache / "mfcc-digest").glob("*.npy"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    with opened(calls, cache=cache, progress=seconds.append) as again:
        assert len(calls) == 4 and sum(seconds) == pytest.approx(17 / 16_000)
        for id_, array in again.arrays.items():
            np.testing.assert_array_equal(array, kept[id_])


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"), opened(cache=tmp_path / "file"):
        pass
