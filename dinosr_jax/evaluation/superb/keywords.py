"""Keyword spotting on Speech Commands: ten words, any other word, and silence."""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dinosr_jax.data import audio, speech_commands
from dinosr_jax.data.text_files import nfc, read_text
from dinosr_jax.evaluation.probes.examples import Example, Examples, at_path, gather
from dinosr_jax.evaluation.utterances import LabelError
from dinosr_jax.inference.recordings import Recording, printable

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "_unknown_", "_silence_"
NOISE = "_background_noise_"
VALID_NOISE = "running_tap.wav"  # as TFDS has it: the others are learnt from
_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
_TEST_FOLDERS = "*test_set*"


def read_keywords(data: Path, *, test_folder: Path | None = None) -> Examples:
    """Reads Speech Commands: clips with their class, as labels of one answer.

    Noise is cut into clips of 1 s, every half second, which are silence.

    Args:
      data: What TFDS prepared (speech_commands), or the folder of the archive: folders of words
        beside validation_list.txt, testing_list.txt and _background_noise_; or a folder above it.
      test_folder: Folder of the archive of the test set, with folders _silence_ and _unknown_;
        None for one beside or in `data`, with 'test_set' in its name, else testing_list.txt.

    Raises:
      LabelError: There are no words, or lists that name nothing that is there.
      TextError: A list cannot be read.
    """
    if (prepared := speech_commands.prepared_folder(data)) is not None:
        return _prepared(prepared)
    roots = [data, *(sorted(p for p in data.iterdir() if p.is_dir()) if data.is_dir() else ())]
    root = next((path for path in roots if (path / _LISTS["valid"]).is_file()), None)
    if root is None:
        there = sorted(p.name for p in data.iterdir())[:10] if data.is_dir() else "no such folder"
        raise LabelError(
            f"{data}: found {there}, expected Speech Commands: folders of words beside "
            f"{_LISTS['valid']} and {_LISTS['test']}, or what TFDS prepared"
        )
    if test_folder is None:
        near = [*data.glob(_TEST_FOLDERS), *root.parent.glob(_TEST_FOLDERS)]
        test_folder = next((path for path in sorted(near) if path.is_dir()), None)
    return _folders(root, test_folder)


def _prepared(folder: Path) -> Examples:
    """Of TFDS: the samples are held."""
    names = dict(zip(("train", "valid", "test"), speech_commands.SPLITS, strict=True))
    parts = {
        part: [
            _held(clip.id, clip.samples, clip.label)
            for clip in speech_commands.read_clips(folder, split=split)
        ]
        for part, split in names.items()
    }
    return gather(parts, data=f"{folder} (TFDS)")


def _held(id_: str, samples: np.ndarray, label: str) -> Example:
    read = functools.partial(audio.encode_pcm16, samples)
    return Example(Recording(id_, id_, read, len(samples)), (label,))


def _class(folder: str) -> tuple[str]:
    return (folder if folder in (*WORDS, SILENCE) else UNKNOWN,)


def _folders(root: Path, test_folder: Path | None) -> Examples:
    left_out: list[tuple[str, str]] = []
    words = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] not in "_."]
    listed = {part: set(_names(root / name)) for part, name in _LISTS.items()}
    parts: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    there = set()
    for example in _clips(root, words, left_out):
        id_ = nfc(example.recording.id)
        there.add(id_)
        parts[next((part for part in listed if id_ in listed[part]), "train")].append(example)
    for part, names in listed.items():
        missing = sorted(names - there)
        left_out += [(printable(str(root / name)), "no such file") for name in missing]
        if names and len(missing) == len(names):
            raise LabelError(
                f"{root / _LISTS[part]}: found none of its {len(names)} files, such as "
                f"{missing[0]!r}, below {root}; expected lines such as yes/0a7c2a8d_nohash_0.wav"
            )
    for part, examples in _noise(root, left_out).items():
        parts[part] += examples
    text = str(root)
    if test_folder is not None:
        parts["test"] = list(_test(test_folder, left_out))
        text += f", tested on {test_folder}"
    else:
        text += f", tested on {_LISTS['test']}, which has no silence"
    classes = {example.label for example in parts["train"]}
    return gather(parts, data=f"{text}; {len(classes)} classes", left_out=left_out)


def _names(path: Path) -> Iterable[str]:
    """Lines of a list."""
    return filter(None, (line.strip() for line in read_text(path).split("\n")))


def _test(folder: Path, left_out: list[tuple[str, str]]) -> Iterator[Example]:
    """The archive of the test set: a folder is a class."""
    if not folder.is_dir():
        raise LabelError(f"{folder}: no such folder; expected that of the test set's archive")
    words = sorted(path for path in folder.iterdir() if path.is_dir())
    for example in _clips(folder, words, left_out):
        id_ = example.recording.id
        if not id_.startswith(f"{NOISE}/"):
            yield example._replace(recording=example.recording._replace(id=f"test set/{id_}"))


def _clips(root: Path, words: Iterable[Path], left_out: list[tuple[str, str]]) -> Iterator[Example]:
    """The recordings in folders of words."""
    for word in words:
        paths = sorted(word.glob("*.wav"))
        if not paths:
            left_out.append((printable(str(word)), "a word without recordings"))
        for path in paths:
            yield at_path(path, root=root, label=_class(word.name))


def _noise(root: Path, left_out: list[tuple[str, str]]) -> dict[str, list[Example]]:
    """Background noise as clips of silence; one file is for validation where there are several."""
    parts: dict[str, list[Example]] = {"train": [], "valid": []}
    paths = sorted((root / NOISE).glob("*.wav"))
    names = [path.name for path in paths]
    held_out = VALID_NOISE if VALID_NOISE in names else names[-1] if names else ""
    for path in paths:
        part = "valid" if path.name == held_out and len(paths) > 1 else "train"
        try:
            samples = audio.load(path, name=printable(str(path)))
        except audio.AudioError as error:
            left_out.append((printable(str(path)), str(error)))
            continue
        second = audio.SAMPLE_RATE
        for start in range(0, len(samples) - second + 1, second // 2):
            clip = samples[start : start + second]
            parts[part].append(_held(f"{NOISE}/{path.stem}/{start}", clip, SILENCE))
    return parts
