"""Corpora of commands in the layouts in which they are published, of real single words."""

import csv
from pathlib import Path

import numpy as np
import soundfile

EMBEDDED = Path(__file__).parents[1] / "data/embedded"
RATE = 16_000


def prompts(*names):
    """Samples of English prompts by their names."""
    with open(EMBEDDED / "index.tsv", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = {row["file"]: row for row in rows if row["language"] == "en"}
    found = {}
    for name in names:
        start, length = int(rows[name]["start_sample"]), int(rows[name]["num_samples"])
        path = EMBEDDED / rows[name]["shard"]
        found[name] = soundfile.read(path, start=start, frames=length)[0]
    return found


def one_second(samples, rng):
    """A word somewhere in a second of noise, at some level."""
    found = 0.003 * rng.standard_normal(RATE)
    samples = samples[:RATE]
    start = rng.integers(0, RATE - len(samples) + 1)
    found[start : start + len(samples)] += samples
    return rng.uniform(0.3, 1.0) * found


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="PCM_16")


KEYWORDS = {"no": "vm-no", "stop": "digits__star", "seven": "digits__today", "bed": "letters__x"}


def write_keywords(folder, *, each=10, seed=0):
    """Speech Commands: archive and archive of the test set; 3 of `each` word are for validation."""
    rng = np.random.default_rng(seed)
    root, test = folder / "speech_commands_v0.01", folder / "speech_commands_test_set_v0.01"
    spoken = prompts(*KEYWORDS.values())
    valid, tested = [], []
    for word, name in KEYWORDS.items():
        for i in range(each):
            write(root / word / f"{i:02d}_nohash_0.wav", one_second(spoken[name], rng))
        valid += [f"{word}/{i:02d}_nohash_0.wav" for i in range(3)]
        tested += [f"{word}/03_nohash_0.wav"]
        to = word if word in ("no", "stop") else "_unknown_"
        for i in range(4):
            write(test / to / f"{word}_{i}.wav", one_second(spoken[name], rng))
    for name, seconds in (("hum", 3), ("running_tap", 2)):
        write(
            root / "_background_noise_" / f"{name}.wav", 0.1 * rng.standard_normal(seconds * RATE)
        )
    for i in range(4):
        write(test / "_silence_" / f"{i}.wav", 0.1 * rng.standard_normal(RATE))
    (root / "validation_list.txt").write_text("\n".join(valid) + "\n")
    (root / "testing_list.txt").write_text("\n".join(tested) + "\n")
    (root / "README.md").write_text("x")
    return root, test


INTENTS = {
    "digits__2": ("activate", "lights", "kitchen"),
    "hello": ("activate", "music", "none"),
    "vm-Urgent": ("deactivate", "lights", "kitchen"),
    "letters__x": ("deactivate", "music", "none"),
}


def write_intents(folder, *, each=(8, 3, 4), seed=0):
    """Fluent Speech Commands, with so many recordings of each intent in each part."""
    rng = np.random.default_rng(seed)
    spoken = prompts(*INTENTS)
    for part, number in zip(("train", "valid", "test"), each, strict=True):
        lines = [",path,speakerId,transcription,action,object,location"]
        for name, intent in INTENTS.items():
            for i in range(number):
                path = f"wavs/speakers/{part}/{name}_{i}.wav"
                write(folder / path, one_second(spoken[name], rng))
                text = f'"Turn, {name}"'  # a comma inside of quotes
                lines.append(f"{len(lines) - 1},{path},{part},{text},{','.join(intent)}")
        (folder / "data").mkdir(exist_ok=True)
        (folder / "data" / f"{part}_data.csv").write_text("\n".join(lines) + "\n")


def write_transcribed(folder, *, each=(12, 4), seed=0):
    """A folder of audio to prepare: two words in a second, with transcripts."""
    rng = np.random.default_rng(seed)
    words = {"digits__2": "two", "digits__8": "eight", "digits__today": "today"}
    spoken = {name: samples[: RATE // 2] for name, samples in prompts(*words).items()}
    lines = ["file\ttext\tspeaker\tlanguage\tsplit"]
    for split, number in zip(("train", "test"), each, strict=True):
        for i in range(number):
            names = [list(words)[i % 3], list(words)[(i // 3) % 3]]
            pieces = [np.pad(spoken[n], (0, RATE // 2 - len(spoken[n]))) for n in names]
            noise = 0.003 * rng.standard_normal(RATE)
            write(folder / f"{split}_{i:02d}.wav", np.concatenate(pieces) + noise)
            text = " ".join(words[n] for n in names)
            lines.append(f"{split}_{i:02d}.wav\t{text}\tallison\ten\t{split}")
    (folder / "transcripts.tsv").write_text("\n".join(lines) + "\n")


SLOTS = {
    "hello": ("HELLO", "O"),
    "digits__2": ("TWO", "count"),
    "digits__8": ("EIGHT", "count"),
    "digits__today": ("TODAY", "day"),
}


def write_slots(folder, *, each=(12, 3, 4), seed=0):
    """Audio SNIPS: HELLO, and two slots; half of a second of each word."""
    rng = np.random.default_rng(seed)
    spoken = {name: samples[: RATE // 2] for name, samples in prompts(*SLOTS).items()}
    voices = {"train": "Ivy", "valid": "Amy", "test": "Brian"}
    lines = []
    for (part, voice), number in zip(voices.items(), each, strict=True):
        for i in range(number):
            names = ["hello", ["digits__2", "digits__8"][i % 2], "digits__today"]
            names = names[: 2 + (i % 4 < 2)]
            pieces = [np.pad(spoken[n], (0, RATE // 2 - len(spoken[n]))) for n in names]
            samples = np.pad(np.concatenate(pieces), (0, RATE // 2 * (3 - len(names))))
            samples = rng.uniform(0.3, 1) * (samples + 0.003 * rng.standard_normal(len(samples)))
            id_ = f"{voice}-snips-{part}-{i}"
            write(folder / part / f"{id_}.wav", samples)
            words, tags = zip(*(SLOTS[n] for n in names), strict=True)
            lines.append(f"{id_} BOS {' '.join(words)} EOS\tO {' '.join(tags)} SomeIntent")
    (folder / "all.iob.snips.txt").write_text("\n".join(lines) + "\n")
    (folder / "slots.txt").write_text("O\ncount\nday\n")
    return lines
