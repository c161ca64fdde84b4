"""Short English prompts with their transcripts, as a folder of audio to be prepared."""

import csv
from pathlib import Path

import soundfile

EMBEDDED = Path(__file__).parents[1] / "data/embedded"


def write_prompts(folder: Path, *, number: int = 36, max_samples: int = 32_000) -> None:
    """The first prompts of the English voice that are short; every third is held out."""
    with open(EMBEDDED / "index.tsv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["language"] == "en"]
    rows = [row for row in rows if row["text"] and int(row["num_samples"]) <= max_samples][:number]
    assert len(rows) == number
    lines = ["file\ttext\tspeaker\tlanguage\tsplit"]
    for place, row in enumerate(rows):
        start, length = int(row["start_sample"]), int(row["num_samples"])
        audio, rate = soundfile.read(EMBEDDED / row["shard"], start=start, frames=length)
        soundfile.write(folder / f"{place:02d}.flac", audio, rate)
        split = "validation" if place % 3 == 0 else "train"
        lines.append(f"{place:02d}.flac\t{row['text']}\tallison\ten\t{split}")
    (folder / "transcripts.tsv").write_text("\n".join(lines) + "\n")
