"""Sorts the recorded speech of an unpacked Debian package into a folder that `prepare` reads.

python data/more_speech.py PACKAGE UNPACKED OUTPUT    # called by data/more_speech.sh
python data/more_speech.py summary FOLDER             # hours of each folder in FOLDER
"""

import csv
import hashlib
import os
import re
import shutil
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import soundfile

TABLE = "transcripts.tsv"
# Files of drascula-spanish that hold the recordings of the English package.
ENGLISH_IN_SPANISH = frozenset(
    "20 25 26 39 40 45 47 49 51 52 53 62 63 64 99 255 256 257 258 259 462 "
    "D40 D79 D80 D81 F1 F2 F3".split()
)
AUDIO = {".ogg", ".opus", ".wav", ".gsm"}


class Recording(NamedTuple):
    """A recording: its name in the output, how it is written there, who speaks, what language."""

    name: str
    write: Callable[[Path], None]
    speaker: str
    language: str


def _copied(path: Path, name: str, speaker: str, language: str) -> Recording:
    """A file that libsndfile reads; raw GSM is decoded."""
    if path.suffix != ".gsm":
        return Recording(name, lambda target: _copy(path, target), speaker, language)
    raw = {"format": "RAW", "subtype": "GSM610", "samplerate": 8000, "channels": 1}

    def decode(target: Path) -> None:
        samples, rate = soundfile.read(path, dtype="int16", **raw)
        soundfile.write(target, samples, rate)

    return Recording(f"{os.path.splitext(name)[0]}.wav", decode, speaker, language)


def _copy(path: Path, target: Path) -> None:
    shutil.copyfile(path, target)


def _raw(samples: bytes, name: str, speaker: str, language: str) -> Recording:
    """Unsigned 8-bit samples, 11,025 a second, as old games hold them."""

    def write(target: Path) -> None:
        with wave.open(str(target), "wb") as file:
            file.setparams((1, 1, 11025, 0, "NONE", None))
            file.writeframes(samples)

    return Recording(name, write, speaker, language)


def _audio_under(root: Path, pattern: str = "**/*") -> Iterator[tuple[Path, str]]:
    """Audio files below the root, sorted, with their path below it."""
    for path in sorted(root.glob(pattern)):
        if path.suffix in AUDIO and path.is_file():
            yield path, path.relative_to(root).as_posix()


def _prompts(language: str) -> Callable[[Path], Iterator[Recording]]:
    """Prompts of a telephone exchange, one voice."""

    def read(root: Path) -> Iterator[Recording]:
        for path, name in _audio_under(root / "usr/share/asterisk/sounds"):
            yield _copied(path, name, f"asterisk-{language}", language[:2])

    return read


def _by_language(place: str, *, name: str) -> Callable[[Path], Iterator[Recording]]:
    """A folder a language, whose voice is taken for one speaker."""

    def read(root: Path) -> Iterator[Recording]:
        for path, file in _audio_under(root / place, "*/**/*"):
            code = file.split("/")[0]
            yield _copied(path, file, f"{name}-{code}", re.split("[_@]", code)[0])

    return read


def _fillets(language: str) -> Callable[[Path], Iterator[Recording]]:
    """Acted dialogues; the second part of a file's name says who speaks: v and m are the fish."""

    def read(root: Path) -> Iterator[Recording]:
        for path, name in _audio_under(root / "usr/share/games/fillets-ng/sound"):
            role = re.match(r"[^-]+-([a-z]+)-", path.name)
            level = Path(name).parts[-3]
            speaker = role.group(1) if role else level
            yield _copied(path, name, f"fillets-{language}-{speaker}", language)

    return read


def _drascula(language: str) -> Callable[[Path], Iterator[Recording]]:
    """Acted dialogues; the letters of a file's name say who speaks, S are sound effects."""

    def read(root: Path) -> Iterator[Recording]:
        for path in sorted((root / "usr/share/scummvm/drascula" / language).glob("*.ALS")):
            role = re.sub("[0-9].*", "", path.stem) or "hero"
            english = path.is_symlink() or path.stem in ENGLISH_IN_SPANISH
            if role != "S" and not (language == "es" and english):
                speaker = f"drascula-{language}-{role}"
                # The ends of some hold parts of a RIFF header.
                samples = path.read_bytes()[32:-32]
                yield _raw(samples, f"{path.stem}.wav", speaker, language)

    return read


def _tuxpaint(root: Path) -> Iterator[Recording]:
    """Spoken names of pictures, NAME_desc_LANGUAGE.ogg; without a language they are English."""
    for path, name in _audio_under(root / "usr/share/tuxpaint/stamps", "**/*_desc*.ogg"):
        found = re.search(r"_desc(?:_([a-z]{2}))?", path.name)
        language = (found and found.group(1)) or "en"
        yield _copied(path, name, f"tuxpaint-{language}", language)


def _mandarin(root: Path) -> Iterator[Recording]:
    """Mandarin syllables; a folder a syllable, a file a speaker."""
    for path, name in _audio_under(root / "usr/share/gcin-voice/ogg"):
        yield _copied(path, name, f"gcin-{path.stem}", "zh")


READERS: dict[str, Callable[[Path], Iterator[Recording]]] = {
    "asterisk-prompt-es-co": _prompts("es-co"),
    "asterisk-prompt-fr-armelle": _prompts("fr-armelle"),
    "asterisk-prompt-it-menardi-wav": _prompts("it-menardi"),
    "drascula": _drascula("en"),
    "drascula-spanish": _drascula("es"),
    "fillets-ng-data-cs": _fillets("cs"),
    "fillets-ng-data-nl": _fillets("nl"),
    "gcin-voice": _mandarin,
    "klettres-data": _by_language("usr/share/klettres", name="klettres"),
    "ktuberling-data": _by_language("usr/share/ktuberling/sounds", name="ktuberling"),
    "tuxpaint-stamps-default": _tuxpaint,
}


def collect(package: str, unpacked: Path, output: Path) -> None:
    """Writes the recordings of a package, those with the same bytes once, and their table.

    Args:
      package: a name of READERS.
      unpacked: what `dpkg-deb -x` wrote.
      output: folder to make; it appears when all is written.
    """
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows, seen = [], set()
    for recording in READERS[package](unpacked):
        target = partial / recording.name
        target.parent.mkdir(parents=True, exist_ok=True)
        recording.write(target)
        digest = hashlib.sha256(target.read_bytes()).digest()
        if digest in seen:
            target.unlink()
            continue
        seen.add(digest)
        rows.append((recording.name, recording.speaker, recording.language))
    if not rows:
        sys.exit(f"error: {package}: no recordings where they are expected; is it another version?")
    shutil.copyfile(unpacked / "usr/share/doc" / package / "copyright", partial / "copyright")
    with open(partial / TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n")
        writer.writerows([("file", "speaker", "language"), *rows])
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def summarise(folder: Path) -> None:
    """Prints hours, files, speakers and languages of each folder, and its copyright file."""
    total = 0.0
    for table in sorted(folder.glob(f"*/{TABLE}")):
        with open(table, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        seconds, unread = 0.0, 0
        for row in rows:
            try:
                seconds += soundfile.info(table.parent / row["file"]).duration
            except soundfile.LibsndfileError:
                unread += 1
        total += seconds
        speakers = len({row["speaker"] for row in rows})
        languages = " ".join(sorted({row["language"] for row in rows}))
        end = f"; {unread} cannot be read" if unread else ""
        print(
            f"{table.parent.name}: {seconds / 3600:.2f} h, {len(rows)} files, {speakers} speakers, "
            f"{languages}{end}; licence: {table.parent / 'copyright'}"
        )
    print(f"{total / 3600:.1f} hours in {folder}")


if __name__ == "__main__":
    if sys.argv[1] == "summary":
        summarise(Path(sys.argv[2]))
    else:
        collect(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
