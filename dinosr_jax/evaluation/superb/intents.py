"""Intent classification on Fluent Speech Commands: an action, an object and a location."""

from collections.abc import Iterator
from pathlib import Path

from dinosr_jax.data.text_files import TextError, on_disk, read_table
from dinosr_jax.evaluation.probes.examples import Example, Examples, gather
from dinosr_jax.inference.recordings import Recording, printable

SLOTS = ("action", "object", "location")
_TABLES = {part: f"data/{part}_data.csv" for part in ("train", "valid", "test")}


def read_intents(data: Path) -> Examples:
    """Reads Fluent Speech Commands: DATA/data/train_data.csv, valid_data.csv and test_data.csv.

    Their column `path` names recordings below it. Rows that cannot be used are left out. Raises
    TextError where a table is missing, or has other columns.
    """
    left_out: list[tuple[str, str]] = []
    parts = {part: list(_rows(data, name, left_out)) for part, name in _TABLES.items()}
    return gather(parts, data=str(data), left_out=left_out)


def _rows(data: Path, name: str, left_out: list[tuple[str, str]]) -> Iterator[Example]:
    table = data / name
    columns, rows = read_table(table)
    if missing := [column for column in ("path", *SLOTS) if column not in columns]:
        raise TextError(
            f"{table}: found the columns {columns}, expected path, action, object, location "
            f"({missing[0]!r} is missing)"
        )
    for number, row in rows:
        where = f"{printable(str(table))}, line {number}"
        intent = tuple((row[slot] or "").strip() for slot in SLOTS)
        if not row["path"] or not all(intent):
            left_out.append((where, "no path, or a slot without a value"))
        elif ".." in Path(row["path"]).parts:
            left_out.append((where, f"{printable(row['path'])!r} leaves the folder"))
        else:
            path = on_disk(data / row["path"])
            yield Example(Recording(row["path"], printable(str(path)), path), intent)
