"""Several source folders as one, and what is left out of them on purpose.

In a dataset of several folders the id of an utterance is FOLDER/ID, with the name of its folder.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from dinosr_jax.data.prepare.sources import AudioFile, Source, SourceError, read_source

_FIELDS = ("language", "speaker")


def read_sources(folders: Sequence[str | os.PathLike], *, exclude: Sequence[str] = ()) -> Source:
    """Lists the utterances of one folder of audio, or of several together.

    Of several folders, paths begin at the folder that holds all of them, and `parts` has each by
    its name.

    Args:
      folders: none of them within another.
      exclude: rules 'language=NAME' and 'speaker=NAME'; what fits one is left out, and listed.

    Raises:
      SourceError: as of `read_source`; a folder is named twice or lies within another; a rule is
        malformed, fits nothing, or leaves nothing.
    """
    read = [read_source(folder) for folder in folders]
    joined = read[0] if len(read) == 1 else _joined(_by_name(read))
    return _without(joined, exclude) if exclude else joined


def named(source: Source) -> str:
    """The folder of a source, or those of its parts."""
    return ", ".join(str(part.folder) for part in source.parts.values()) or str(source.folder)


def _by_name(sources: Sequence[Source]) -> dict[str, Source]:
    """Sources by the name of their folder, by more of its path where two have the same name."""
    folders = [source.folder for source in sources]
    for k, folder in enumerate(folders):
        for other in folders[k + 1 :]:
            if folder.is_relative_to(other) or other.is_relative_to(folder):
                both = f"and {other}: one is in the other" if folder != other else "is named twice"
                raise SourceError(f"--source={folder} {both}; its recordings would come twice.")
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        root = os.path.commonpath(folders)
        names = [folder.relative_to(root).as_posix() for folder in folders]
    return dict(zip(names, sources, strict=True))


def _joined(parts: dict[str, Source]) -> Source:
    """All sources as one whose folder is the deepest one that holds them."""
    root = Path(os.path.commonpath([source.folder for source in parts.values()]))
    files: list[AudioFile] = []
    left_out, notes, digest = [], [], hashlib.sha256()
    for name, source in parts.items():
        place = source.folder.relative_to(root)
        digest.update(repr((name, str(source.folder), source.fingerprint)).encode())
        left_out += [((place / path).as_posix(), reason) for path, reason in source.left_out]
        notes += [f"{name}: {note}" for note in source.notes]
        files += [
            file._replace(
                path=(place / file.path).as_posix(),
                utterances=tuple(u._replace(id=f"{name}/{u.id}") for u in file.utterances),
            )
            for file in source.files
        ]
    files.sort(key=lambda file: file.path)
    notes += _shared_speakers(parts)
    return Source(root, tuple(files), tuple(left_out), tuple(notes), digest.hexdigest(), parts)


def _shared_speakers(parts: dict[str, Source]) -> list[str]:
    """A note of the speakers that several folders name."""
    named: dict[str, list[str]] = {}
    for name, source in parts.items():
        for speaker in sorted({u.speaker for file in source.files for u in file.utterances}):
            named.setdefault(speaker, []).append(name)
    shared = [f"{who} ({', '.join(some)})" for who, some in named.items() if len(some) > 1]
    if not shared:
        return []
    end = ", ..." if len(shared) > 3 else ""
    return [f"speakers of one name are taken for one: {', '.join(shared[:3])}{end}."]


def _without(source: Source, exclude: Sequence[str]) -> Source:
    """The source without the utterances that fit a rule."""
    rules = [_rule(text, source) for text in exclude]
    files, left_out = [], list(source.left_out)
    for file in source.files:
        kept = []
        for utterance in file.utterances:
            why = [f"{f}={value}" for f, value in rules if getattr(utterance, f) == value]
            if why:
                name = utterance.id if utterance.segment else file.path
                left_out.append((name, f"excluded: {why[0]}"))
            else:
                kept.append(utterance)
        if kept:
            files.append(file._replace(utterances=tuple(kept)))
    if not files:
        rules = ", ".join(exclude)
        raise SourceError(f"--exclude={rules}: leaves no utterance of {source.folder}.")
    fingerprint = hashlib.sha256(repr((source.fingerprint, sorted(exclude))).encode()).hexdigest()
    return source._replace(files=tuple(files), left_out=tuple(left_out), fingerprint=fingerprint)


def _rule(text: str, source: Source) -> tuple[str, str]:
    """A rule as (field, value), which some utterance has."""
    field, equals, value = text.partition("=")
    if not equals or field not in _FIELDS:
        raise SourceError(f"--exclude={text}: expected language=NAME or speaker=NAME.")
    known = sorted({getattr(u, field) for file in source.files for u in file.utterances})
    if value not in known:
        some = ", ".join(name or "'' (unknown)" for name in known[:20])
        raise SourceError(
            f"--exclude={text}: no utterance has this {field}; found {some}"
            f"{', ...' if len(known) > 20 else ''}. Correct the name, or leave the rule out."
        )
    return field, value
