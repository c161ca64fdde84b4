"""Phones in time: alignments in the formats of the field, read into one form.

Formats, recognised by content:
- textgrid: Praat's, as the Montreal Forced Aligner writes them; a file or a folder of them;
- fairseq: `id<tab>PH,PH,...`, a label every 10 ms (HuBERT's measure_teacher_quality.py);
- cpc: `id int int ...`, a label every 10 ms (CPC's converted_aligned_phones.txt);
- jsonl: {"name": id, "phones": [...]} a line, a label every 10 ms, or every "step" seconds (spidr);
- discophon: `#file onset offset #phone`, in seconds;
- tsv: a header with file, start_s, end_s, phone (data/embedded/phones_en.tsv).

Silence ("", sil, sp, <eps>, ...) becomes SIL, spoken noise (spn) SPN. The stress digit of ARPAbet's
vowels is taken off by default.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from dinosr_jax import files
from dinosr_jax.data.manifest import dataset_folder
from dinosr_jax.data.phones import tables, textgrid
from dinosr_jax.data.phones.phones import (
    SILENCE,
    Phone,
    Stress,
    clean_label,
    count_frames,
    frame_labels,
    in_order,
)
from dinosr_jax.data.text_files import TextError, nfc, read_text

__all__ = ["Alignment", "Phone", "TextError", "count_frames", "frame_labels", "read_alignment"]
PHONES_NAME = "phones.tsv"  # beside the records of a prepared dataset
Kind = Literal["textgrid", "fairseq", "cpc", "jsonl", "discophon", "tsv"]
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,8}")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Phones of utterances by id: in order, none overlaps the next; gaps are silence."""

    utterances: Mapping[str, tuple[Phone, ...]]
    kind: Kind
    path: str

    def find(self, id_: str) -> tuple[Phone, ...] | None:
        """Phones of an utterance, or None.

        `id_` is its id here, else its name without folders and extension, where that fits one id:
        the folders of one are among those of the other.
        """
        fits = self._fits(id_)
        return self.utterances[fits[0]] if len(fits) == 1 else None

    def match(self, ids: Iterable[str]) -> dict[str, tuple[Phone, ...]]:
        """Phones of several utterances; those that the alignment lacks are left out.

        Raises:
          TextError: A name without its folder fits several utterances, here or among `ids`.
        """
        matched, users = {}, {}
        for id_ in ids:
            fits = self._fits(id_)
            if len(fits) > 1:
                raise TextError(
                    f"{id_} is ambiguous in {self.path}: found {fits[0]} and {fits[1]}, which have "
                    "the same name in other folders; expected a name with the folder of one"
                )
            for target in fits:
                if target in users:
                    raise TextError(
                        f"{users[target]} and {id_} both fit {target} of {self.path}; say which "
                        "folder its utterances are in (--prefix=FOLDER/)"
                    )
                users[target] = id_
                matched[id_] = self.utterances[target]
        return matched

    def with_prefix(self, prefix: str) -> "Alignment":
        """The same alignment with something before every id, such as 'asterisk_en/'."""
        named = {nfc(prefix) + id_: phones for id_, phones in self.utterances.items()}
        return dataclasses.replace(self, utterances=named)

    def _fits(self, id_: str) -> list[str]:
        if id_ in self.utterances:
            return [id_]
        if len(alike := self._alike.get(nfc(id_), [])) == 1:
            return alike
        name, folders = _name_and_folders(id_)
        agree = lambda other: other <= folders or folders <= other
        return [full for full, other in self._by_name.get(name, ()) if agree(other)]

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels, sorted; SIL is always one of them."""
        labels = {phone.label for phones in self.utterances.values() for phone in phones}
        return tuple(sorted(labels | {SILENCE}))

    @functools.cached_property
    def _alike(self) -> dict[str, list[str]]:
        """Ids by what they look like: letters and accents may be joined or apart."""
        alike = collections.defaultdict(list)
        for id_ in self.utterances:
            alike[nfc(id_)].append(id_)
        return alike

    @functools.cached_property
    def _by_name(self) -> dict[str, list[tuple[str, set[str]]]]:
        named = collections.defaultdict(list)
        for id_ in self.utterances:
            name, folders = _name_and_folders(id_)
            named[name].append((id_, folders))
        return named


def _name_and_folders(id_: str) -> tuple[str, set[str]]:
    path = PurePosixPath(nfc(id_))
    name = path.stem if _EXTENSION.fullmatch(path.suffix) else path.name
    return name, set(path.parent.parts) - {"/"}


def read_alignment(
    path: str | Path, *, kind: Kind | None = None, tier: str = "phones", stress: Stress = "strip"
) -> Alignment:
    """Reads the phones of utterances.

    Args:
      path: A file, or for TextGrids a folder of them, nested or not; tables may be gzip. Ids of
        TextGrids are their paths in the folder without the extension.
      kind: The format; None recognises it.
      tier: Of TextGrids.
      stress: 'strip' makes AH of AH0; 'keep'.

    Raises:
      TextError: It cannot be read, is of no known format, or contradicts itself.
    """
    if kind not in (None, *get_args(Kind)):
        raise ValueError(f"kind: found {kind!r}, expected {', '.join(get_args(Kind))}")
    path = Path(path)
    named = functools.partial(clean_label, stress=stress)
    if path.is_dir():
        if kind not in (None, "textgrid"):
            raise TextError(f"{path} is a folder; expected a file of the format {kind}")
        return Alignment(_read_folder(path, tier, named), "textgrid", str(path))
    text = read_text(path)
    kind = kind or _kind_of(text, path)
    if kind == "textgrid":
        utterances = {path.stem: _read_textgrid(text, path, tier, named)}
    else:
        table = tables.Table(path, text.split("\n"), named)
        utterances = tables.read_utterances(table, kind)
    if not utterances:
        raise TextError(f"{path}: found no utterance below the header")
    return Alignment(utterances, kind, str(path))


def _read_folder(
    folder: Path, tier: str, named: Callable[[str], str]
) -> dict[str, tuple[Phone, ...]]:
    def refuse(error: OSError) -> None:
        raise TextError(f"{error.filename}: cannot be listed ({error.strerror})")

    paths: dict[str, Path] = {}
    for path in files.walk(folder, refuse):
        if path.suffix.lower() != ".textgrid" or path.name.startswith("."):
            continue
        id_ = nfc(path.relative_to(folder).with_suffix("").as_posix())
        if id_ in paths:
            raise TextError(f"{path} and {paths[id_]}: found {id_} twice, expected it once")
        paths[id_] = path
    if not paths:
        raise TextError(f"{folder}: found no .TextGrid in the folder; of other formats name a file")
    return {id_: _read_textgrid(read_text(at), at, tier, named) for id_, at in paths.items()}


def _read_textgrid(
    text: str, path: Path, tier: str, named: Callable[[str], str]
) -> tuple[Phone, ...]:
    """The phones of a TextGrid: the tier, or one that ends so (MFA: `speaker - phones`)."""
    tiers = textgrid.interval_tiers(text, path=path)
    end = tier.lower()
    fits = [spans for name, spans in tiers if name.lower() == end]
    fits = fits or [spans for name, spans in tiers if name.lower().endswith(f"- {end}")]
    if len(fits) != 1:
        names = ", ".join(repr(name) for name, _ in tiers) or "none"
        raise TextError(
            f"{path}: expected one interval tier {tier!r}, found {len(fits)}; the file has {names} "
            "(--tier chooses one)"
        )
    if not fits[0]:
        raise TextError(f"{path}: found no interval in the tier {tier!r}")
    return in_order(path.stem, fits[0], path=path, named=named)


def _kind_of(text: str, path: Path) -> Kind:
    """The format, by the first line that is not empty."""
    line = next(line for line in text.split("\n") if line.strip())
    tabs, words = line.split("\t"), line.split()
    if re.match(r'\s*(File type\s*=\s*)?"ooTextFile', line):
        return "textgrid"
    if line.lstrip().startswith("{"):
        return "jsonl"
    if words[0] == "#file":
        return "discophon"
    if "file" in tabs or "phone" in tabs:
        return "tsv"
    if len(tabs) == 2:
        return "fairseq"
    if len(words) > 1 and all(re.fullmatch(r"\d+", word) for word in words[1:]):
        return "cpc"
    raise TextError(
        f"{path}: line 1: found {line[:60]!r}; expected a TextGrid, or a table of fairseq "
        "(id<tab>PH,PH), CPC (id int int), spidr (JSON lines), discophon (#file onset offset "
        "#phone), or with the columns file, start_s, end_s, phone"
    )


def phones_path(data_dir: str | Path, *, dataset: str) -> Path | None:
    """Path of the phones of a prepared dataset, if it has any; None without a dataset."""
    folder = dataset_folder(data_dir, dataset=dataset)
    return None if folder is None else folder / PHONES_NAME
