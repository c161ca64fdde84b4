"""Prepares LibriSpeech through TFDS' own builder, as records that can be read in any order.

    python -m dinosr_jax prepare --dataset=librispeech --data_dir=DIR [--archives=FOLDER]

writes the TFDS dataset `DIR/librispeech/lazy_decode/2.1.2` in array_record. Each split is unpacked,
decoded to find what is damaged, and written in a working folder of its own. The finished ones are
added to the dataset together. A killed run loses the split under way.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dinosr_jax.data.manifest import quiet_tfds
from dinosr_jax.data.prepare.archives import Archive, find_archives, unpack
from dinosr_jax.data.prepare.audio_folder import (
    SOURCE_NAME,
    Encoding,
    build_quietly,
    disk_errors,
    locked,
    read_skipped,
    summary,
    write_skipped,
)
from dinosr_jax.data.prepare.librispeech_builder import RECORDED, URLS, Librispeech, Origin
from dinosr_jax.data.prepare.sources import SourceError

DATASET = "librispeech/lazy_decode"
SPLITS = tuple(URLS)
_SPACE_FACTOR = {"original": 3, "pcm16": 5}  # unpacked, TFDS' shuffled copy, records


def prepare_librispeech(
    data_dir: str | os.PathLike,
    *,
    splits: Sequence[str] = (),
    archives: str | os.PathLike | None = None,
    source: str | os.PathLike | None = None,
    encoding: Encoding = "original",
    num_workers: int | None = None,
) -> Path:
    """Prepares LibriSpeech for training. Adds splits to those that are there already.

    Args:
      data_dir: where to write; made if missing.
      splits: TFDS' names (`SPLITS`); none for all (of `source`: all that it has).
      archives: folder of OpenSLR's archives; None downloads them.
      source: folder of a TFDS librispeech dataset prepared earlier, to be converted instead.
      encoding: as of `audio_folder.prepare`.
      num_workers: threads that decode; None for one a core.

    Returns:
      The folder of the dataset.

    Raises:
      SourceError: a split is unknown, an archive is missing or damaged, `data_dir` cannot be
        written, holds other data, or is in use by another run.
    """
    earlier = None if source is None else _open_earlier(Path(source))
    known = tuple(earlier.info.splits) if earlier else SPLITS
    if unknown := ", ".join(split for split in splits if split not in known):
        expected = f"expected some of {', '.join(known)}."
        raise SourceError(f"--split={','.join(splits)}: {unknown} unknown, {expected}")
    data_dir = Path(data_dir).expanduser().resolve()
    work_dir = data_dir / "preparation" / "librispeech"
    with quiet_tfds(), locked(data_dir / "preparation"), disk_errors(data_dir):
        folder = data_dir / DATASET / str(Librispeech.VERSION)
        present = _present_splits(folder, encoding=encoding)
        builder = Librispeech(encoding=encoding, data_dir=data_dir)
        missing = [split for split in splits or known if split not in present]
        if earlier:
            sizes = {split: int(earlier.info.splits[split].num_bytes) for split in missing}
            name = f"{earlier.data_dir}"
            origins = (Origin(split, name, sizes[split], earlier=earlier) for split in missing)
        else:
            where = {"data_dir": data_dir, "work_dir": work_dir}
            origins = _unpacked(missing, archives, encoding=encoding, **where)
        options = {"encoding": encoding, "num_workers": num_workers}
        built = [_build(origin, work_dir=work_dir, options=options) for origin in origins]
        if built:
            _add(built, builder=builder, present=present, work_dir=work_dir)
            shutil.rmtree(work_dir)
        else:
            print(f"{folder} has {', '.join(splits or known)}: nothing to do.")
        print(summary(folder, data_dir=data_dir, dataset=DATASET))
    return folder


def _open_earlier(folder: Path) -> tfds.core.DatasetBuilder:
    """Opens a dataset that TFDS prepared, as --source gives it."""
    try:
        earlier = tfds.builder_from_directory(folder.expanduser().resolve())
        features = {"speech", "text", "speaker_id", "chapter_id", "id"}
        if missing := features - set(earlier.info.features):
            raise ValueError(f"it has no feature {', '.join(sorted(missing))}")
    except Exception as error:  # TFDS raises many kinds
        raise SourceError(
            f"--source={folder}: not a librispeech dataset of TFDS ({error}). Expected the folder "
            "of a version, such as DIR/librispeech/lazy_decode/2.1.2."
        ) from None
    return earlier


def _present_splits(folder: Path, *, encoding: Encoding) -> dict[str, tfds.core.SplitInfo]:
    """The splits that are prepared.

    Raises:
      SourceError: they are stored in another way, to which none can be added.
    """
    if not folder.exists():
        return {}
    info = tfds.builder_from_directory(folder).info
    file_format = info.file_format.value
    if file_format != "array_record":
        raise SourceError(
            f"{folder}: its records are {file_format} files. Convert them into another folder: "
            f"python -m dinosr_jax prepare --dataset=librispeech --source={folder} "
            "--data_dir=OTHER_FOLDER"
        )
    origin = _read_origin(folder)
    if origin["encoding"] != encoding:
        raise SourceError(
            f"{folder}: was prepared with --encoding={origin['encoding']}, not {encoding}. Convert "
            "it into another folder: python -m dinosr_jax prepare --dataset=librispeech "
            f"--source={folder} --encoding={encoding} --data_dir=OTHER_FOLDER"
        )
    return dict(info.splits)


def _read_origin(folder: Path) -> dict:
    """The stored origin of the splits; of a dataset that TFDS prepared there is none."""
    path = folder / SOURCE_NAME
    if not path.exists():
        return {"encoding": "original", "splits": {}}
    return json.loads(path.read_text())


def _unpacked(
    splits: Sequence[str],
    archives: str | os.PathLike | None,
    *,
    data_dir: Path,
    work_dir: Path,
    encoding: Encoding,
) -> Iterator[Origin]:
    """Unpacks the archives one after another, each when its turn comes."""
    names = [URLS[split].rsplit("/", 1)[-1] for split in splits]
    paths = [None] * len(names)  # to be downloaded
    if archives is not None:
        paths = find_archives(Path(archives), names=names)
    for split, name, path in zip(splits, names, paths, strict=True):
        url = URLS[split]
        path = path or _download(url, data_dir=data_dir)
        info, subset = RECORDED[url], name.removesuffix(".tar.gz")
        archive = Archive(path, subset, url, int(info.size), info.checksum)
        stat = path.stat()
        origin = Origin(split, str(path), stat.st_size)
        folder = work_dir / f"{split}-{stat.st_size}-{stat.st_mtime_ns}"
        needed = _SPACE_FACTOR[encoding] * stat.st_size
        if not folder.exists() and (free := shutil.disk_usage(data_dir).free) < needed:
            raise SourceError(
                f"--data_dir={data_dir}: {split} needs about {needed / 1e9:.1f} GB while it is "
                f"prepared, {free / 1e9:.1f} GB are free. Free some, or choose another disk."
            )
        if not _built_folder(origin, work_dir=work_dir, encoding=encoding).exists():
            origin = origin._replace(folder=folder, left_out=unpack(archive, to=folder))
        yield origin


def _download(url: str, *, data_dir: Path) -> Path:
    """Downloads an archive through TFDS, which verifies it and keeps it in `downloads`."""
    if sys.stderr.isatty():
        tfds.enable_progress_bar()
    else:  # where its bar would be one line of megabytes
        print(f"downloading {url} ({int(RECORDED[url].size) / 1e9:.1f} GB) ...", flush=True)
    manager = tfds.download.DownloadManager(
        download_dir=data_dir / "downloads", url_infos=RECORDED, dataset_name="librispeech"
    )
    try:
        return Path(manager.download(url))
    except Exception as error:  # requests, urllib3 and TFDS raise many kinds
        raise SourceError(
            f"{url}: could not be downloaded ({type(error).__name__}: {error}). Run the same "
            "command again, or download it yourself and give its folder: --archives=FOLDER."
        ) from None


def _built_folder(origin: Origin, *, work_dir: Path, encoding: Encoding) -> Path:
    """Where the dataset of one split is until it is added; the name changes with its source."""
    root = work_dir / f"{origin.split}-{origin.num_bytes}-{encoding}"
    return Path(Librispeech(data_dir=root).data_dir)


def _build(origin: Origin, *, work_dir: Path, options: Mapping[str, Any]) -> Origin:
    """Writes the dataset of one split, unless an earlier run did."""
    folder = _built_folder(origin, work_dir=work_dir, encoding=options["encoding"])
    if folder.exists():
        print(f"{origin.split} was written before: going on.")
    else:
        root = folder.parents[2]
        shutil.rmtree(root, ignore_errors=True)  # what a killed run left
        build_quietly(Librispeech(origin=origin, data_dir=root, **options))
    if origin.folder:
        shutil.rmtree(origin.folder)
    return origin


def _add(
    built: Sequence[Origin],
    *,
    builder: Librispeech,
    present: Mapping[str, tfds.core.SplitInfo],
    work_dir: Path,
) -> None:
    """Adds finished splits to the dataset: their records first, then the file that names them."""
    folder, encoding = Path(builder.data_dir), builder._encoding
    target = folder if folder.exists() else work_dir / "assembled"
    target.mkdir(parents=True, exist_ok=True)
    source = _read_origin(folder) | {"encoding": encoding}
    skipped = read_skipped(folder)
    infos = dict(present)
    for origin in built:
        part = _built_folder(origin, work_dir=work_dir, encoding=encoding)
        info = tfds.builder_from_directory(part).info
        skipped += read_skipped(part)
        infos[origin.split] = info.splits[origin.split].replace(filename_template=None)
        builder.info.metadata.update(info.metadata or {})
        source["splits"][origin.split] = {"from": origin.name, "num_bytes": origin.num_bytes}
        for path in part.glob("*.array_record-*"):  # some are gone if a run was killed here
            path.rename(target / path.name)
    description = work_dir / "description"
    shutil.rmtree(description, ignore_errors=True)
    description.mkdir()
    builder.info.set_splits(tfds.core.splits.SplitDict(infos.values()))
    builder.info.write_to_directory(description)
    write_skipped(description, skipped)
    (description / SOURCE_NAME).write_text(json.dumps(source, indent=1))
    last = "dataset_info.json"
    for path in sorted(description.iterdir(), key=lambda path: path.name == last):
        path.rename(target / path.name)
    if target != folder:
        folder.parent.mkdir(parents=True, exist_ok=True)
        target.rename(folder)
