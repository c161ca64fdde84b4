"""`.pt` files as `torch.save` writes them, without torch: a pickle of plain values and tensors."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def write_torch_file(path: Path, content: Any) -> None:
    """Writes a file that `torch.load(weights_only=True)` reads.

    `content` has dicts, lists, tuples, strings, numbers, booleans, None, float32 and int64 arrays.
    """
    arrays: list[np.ndarray] = []
    pickled = b"\x80\x02" + _opcodes(content, arrays) + b"."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", "3\n")


def _opcodes(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Protocol 2 of pickle for one value; appends its arrays."""
    each = lambda values: b"".join(_opcodes(item, arrays) for item in values)
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + each(value) + b"t"
    if isinstance(value, list):
        return b"](" + each(value) + b"e"
    if isinstance(value, dict):
        return b"}(" + each(part for item in value.items() for part in item) + b"u"
    if not isinstance(value, np.ndarray):
        raise TypeError(f"found {type(value).__name__}, expected plain values and arrays")
    storage = f"ctorch\n{_STORAGES[value.dtype.name]}\n".encode()
    key, strides = str(len(arrays)), tuple(s // value.itemsize for s in value.strides)
    arrays.append(np.ascontiguousarray(value))
    pid = b"(" + each(["storage"]) + storage + each([key, "cpu", value.size]) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + each([0, value.shape, strides, False])
    return call + b"ccollections\nOrderedDict\n)RtR"
