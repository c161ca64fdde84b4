"""PyTorch's files (`torch.save`) read as data: without torch, and without running anything in them.

A `.pt` file is a pickle beside raw numbers. In the pickle every name becomes an inert stand-in that
remembers its arguments. Tensors are built from the stand-ins afterwards, every size checked.
"""

import math
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dinosr_jax.interop.torch_file.unpickler import (
    MAX_BYTES,
    PARAMETERS,
    TENSORS,
    Inert,
    TorchFileError,
    load,
)

_DTYPES = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Double": np.dtype("<f8"),
    "Char": np.dtype("i1"),
    "Short": np.dtype("<i2"),
    "Int": np.dtype("<i4"),
    "Long": np.dtype("<i8"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files written before torch 1.6


class Tensor(NamedTuple):
    """A tensor of a file, not yet read."""

    dtype: np.dtype
    key: str
    numel: int  # of its storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchFile:
    """An open file: `content` is what was saved, with `Tensor` and `Inert` in it."""

    def __init__(self, path: str | Path):
        """Opens a file of the zip format or the one before it, and reads all but its numbers.

        Raises:
          TorchFileError: It is no such file, is damaged, or is refused.
        """
        self.path = Path(path)
        self._storages: dict[str, np.ndarray] = {}
        self._zip: zipfile.ZipFile | None = None
        self._data: mmap.mmap | None = None
        self._legacy: dict[str, tuple[int, int]] = {}
        try:
            with self.path.open("rb") as file:
                head = file.read(256)
            if head.startswith(b"PK"):
                self._zip = zipfile.ZipFile(self.path)
                raw = self._read_zip()
            elif head.startswith(_MAGIC):
                raw = self._read_legacy()
            else:
                raise TorchFileError(f"{self.path}: {_what(head)}")
            self.content = _resolve(raw, self.path, {})
        except BaseException as error:
            self.close()
            raise self._plain(error) from None

    def _plain(self, error: BaseException) -> BaseException:
        kinds = (OSError, TorchFileError, KeyboardInterrupt, SystemExit)
        if isinstance(error, kinds):
            return error
        text = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, RecursionError):
            text = "its objects are nested too deeply"
        return TorchFileError(f"{self.path}: damaged, or not written by torch.save: {text}")

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; `array` cannot be called any more."""
        for opened in (self._zip, self._data):
            if opened is not None:
                opened.close()

    def _read_zip(self) -> Any:
        names = self._zip.namelist()
        pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise TorchFileError(f"{self.path}: a zip file, but not one that torch.save wrote")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "constants.pkl" in names:
            raise TorchFileError(f"{self.path}: a TorchScript program; expected a state_dict")
        if self._root + "byteorder" in names and self._entry("byteorder") != b"little":
            raise TorchFileError(f"{self.path}: written on a big-endian machine; not supported")
        size = self._zip.getinfo(self._root + "data.pkl").file_size
        if size > MAX_BYTES:
            raise TorchFileError(
                f"{self.path}: refused: its pickle has {size >> 20:,} MB, more than "
                f"{MAX_BYTES >> 20}, which no checkpoint of DinoSR has"
            )
        return load(self._entry("data.pkl"), self.path)[0]

    def _entry(self, name: str) -> bytes:
        info = self._zip.getinfo(self._root + name)
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError(f"{self.path}: {name} is compressed, which torch.save never does")
        return self._zip.read(info)

    def _read_legacy(self) -> Any:
        with self.path.open("rb") as file:
            self._data = data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        position, values, storages = 0, [], {}
        for _ in range(5):  # magic number, protocol, system, content, keys of the storages
            value, position, named = load(data, self.path, position)
            values.append(value)
            storages |= named
        _, _, system, content, keys = values
        if not (isinstance(system, dict) and system.get("little_endian") is True):
            raise TorchFileError(f"{self.path}: written on a big-endian machine; not supported")
        for key in map(str, keys):
            (numel,) = struct.unpack_from("<q", data, position)
            size = numel * _dtype(storages[key]).itemsize
            if not 0 <= size <= len(data) - position - 8:
                raise TorchFileError(f"{self.path}: truncated: storage {key} is cut off")
            self._legacy[key] = (position + 8, size)
            position += 8 + size
        return content

    def _bytes(self, key: str) -> bytes:
        if self._zip is not None:
            return self._entry(f"data/{key}")
        start, size = self._legacy[key]
        return self._data[start : start + size]

    def array(self, tensor: Tensor) -> np.ndarray:
        """Reads a tensor of `content`, read-only; storages that tensors share are read once.

        Raises:
          TorchFileError: Its numbers are missing, damaged, or too few.
        """
        try:
            if tensor.key not in self._storages:
                self._storages[tensor.key] = np.frombuffer(self._bytes(tensor.key), np.uint8)
        except Exception as error:
            raise self._plain(error) from None
        item = tensor.dtype.itemsize
        held = len(self._storages[tensor.key]) // item
        values = self._storages[tensor.key][: held * item].view(tensor.dtype)
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
        count = math.prod(tensor.shape)
        if tensor.numel > held or count > held or (count and tensor.offset + last >= held):
            raise TorchFileError(
                f"{self.path}: a tensor of shape {list(tensor.shape)}, strides "
                f"{list(tensor.strides)}, offset {tensor.offset} does not fit its storage "
                f"{tensor.key} of {held} numbers"
            )
        if not count:
            return np.zeros(tensor.shape, tensor.dtype)
        strides = [s * item for s in tensor.strides]
        part = values[tensor.offset :]
        return np.lib.stride_tricks.as_strided(part, tensor.shape, strides, writeable=False)


def _what(head: bytes) -> str:
    """What a file is that torch did not write, from its first bytes."""
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint; the download failed"
    if not head:
        return "empty"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "text, not a checkpoint"
    return "not a file that torch.save wrote"


def _is(value: Any, module: str, *names: str) -> bool:
    return isinstance(value, Inert) and value.module == module and value.name in names


def _resolve(value: Any, path: Path, memo: dict[int, Any]) -> Any:
    """`value` with a `Tensor` for every call that makes one; what is shared stays shared."""
    if id(value) in memo:
        return memo[id(value)][1]
    result = value
    if _is(value, "torch._utils", *TENSORS):
        result = _tensor(value.args, path)
    elif _is(value, "torch._utils", *PARAMETERS):
        result = _resolve(value.args[0], path, memo)
    elif isinstance(value, dict):
        memo[id(value)] = (value, result := {})
        for key, item in value.items():
            result[key] = _resolve(item, path, memo)
    elif isinstance(value, list):
        memo[id(value)] = (value, result := [])
        result.extend(_resolve(item, path, memo) for item in value)
    elif isinstance(value, tuple):
        result = tuple(_resolve(item, path, memo) for item in value)
    elif isinstance(value, Inert):
        memo[id(value)] = (value, value)
        value.__dict__["state"] = _resolve(value.state, path, memo)
    memo[id(value)] = (value, result)  # holds the value, so that its id is not given again
    return result


def _dtype(storage: Any) -> np.dtype:
    """The type of the numbers of a storage, by its class."""
    return _DTYPES[storage.name.removesuffix("Storage")]


def _tensor(args: tuple, path: Path) -> Tensor:
    try:
        (mark, pid), offset, shape, strides = args[:4]
        _, kind, key, _, numel = pid[:5]
        if mark != "storage" or (len(pid) > 5 and pid[5] is not None):
            raise ValueError("a view of a storage")
        dtype = _dtype(kind)
        numbers = [offset, numel, *shape, *strides]
        if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("sizes that are not numbers from 0")
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise TorchFileError(f"{path}: damaged: a tensor has {error}") from None
    return Tensor(dtype, str(key), numel, offset, tuple(shape), tuple(strides))


def plain(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A saved configuration as nested dicts: of a Namespace, OmegaConf's nodes, dataclasses, dicts.

    Other objects are None, and so are those inside themselves; `memo` has the results by id.
    """
    memo = {} if memo is None else memo
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Tensor) or not isinstance(value, Inert | dict | list | tuple):
        return None
    if id(value) in memo:
        return memo[id(value)]
    memo[id(value)] = result = None
    if isinstance(value, Inert):
        state = value.state
        if isinstance(state, tuple) and state and isinstance(state[0], dict):
            state = state[0]
        if isinstance(state, dict):
            inner = next((state[key] for key in ("_content", "_val") if key in state), state)
            result = plain(inner, memo)
    elif isinstance(value, dict):
        names = [k for k in value if isinstance(k, str | int | float | bool | None)]
        result = {name: plain(value[name], memo) for name in names}
    else:
        result = [plain(item, memo) for item in value]
    memo[id(value)] = result
    return result
