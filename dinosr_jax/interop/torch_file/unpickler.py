"""Pickles read as data: every class and every call in them becomes an inert stand-in.

Nothing in a pickle can run. A pickle that asks for what would run something is refused by name, and
so is one of more work than a checkpoint is.
"""

import io
import mmap
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinosr_jax.errors import UserError

TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
MAX_BYTES = 64 * 2**20  # of a pickle without its tensors; that of a base model has 1 MB
_MAX_OPCODES = 2_000_000
_DICTS = ("OrderedDict", "defaultdict", "Counter")
# No checkpoint needs these modules (also by their names of Python 2) and functions of any module.
_RUNNING_MODULES = {"os", "posix", "nt", "pty", "sys", "subprocess", "commands", "popen2", "shutil"}
_RUNNING_MODULES |= {"importlib", "runpy", "code", "ctypes", "socket", "urllib", "urllib2"}
_RUNNING_NAMES = {"__import__", "eval", "exec", "execfile", "compile", "open", "system", "popen"}
_RUNNING_NAMES |= {"runstring", "unlink"}


class TorchFileError(UserError):
    """A file is not one of PyTorch's, is damaged, or asks for what a checkpoint never needs."""


class Inert:
    """Stands for an object of some class, or for the result of some call; does nothing."""

    module = name = ""
    args: tuple = ()
    state: Any = None

    def __new__(cls, *args: Any, **_: Any) -> "Inert":
        """Remembers the arguments."""
        self = super().__new__(cls)
        self.__dict__["args"] = args
        return self

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state

    def append(self, _: Any) -> None:
        """List items of a list's subclass; not needed."""

    extend = append

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


class _Member(Inert):
    """Stands for a member of an enumeration, which Python 3.11 saves as a call of getattr."""

    def __new__(cls, *args: Any, **_: Any) -> "Inert":
        """Remembers class and name; refuses every other use of getattr."""
        owner, name = args if len(args) == 2 else (None, None)
        is_class = isinstance(owner, type) and owner.name.lstrip("_")[:1].isupper()
        if not (is_class and isinstance(name, str) and not name.startswith("__")):
            raise TorchFileError(_refusal("builtins.getattr"))
        return super().__new__(cls, *args)


class InertDict(dict):
    """Stands for a subclass of dict, with its items."""

    module = name = ""

    def __init__(self, *args: Any, **_: Any):
        pairs = args[0] if args and isinstance(args[0], list | tuple) else ()
        pairs = [p for p in pairs if isinstance(p, list | tuple) and len(p) == 2]
        _check_keys(key for key, _ in pairs)
        super().__init__(pairs)

    def __setstate__(self, _: Any) -> None:
        pass


def _refusal(name: str) -> str:
    return (
        f"refused: it asks for {name}, which no checkpoint needs and which could run a program; "
        "nothing in it was run. Get it from a source that you trust"
    )


def _check_keys(keys: Iterable[Any], depth: int = 2) -> None:
    """Refuses what would take long, or a deep stack, to hash."""
    for key in keys:
        if isinstance(key, tuple):
            if not depth or len(key) > 16:
                raise TorchFileError("damaged: a key of a mapping is nested too deeply")
            _check_keys(key, depth - 1)


class _Unpickler(pickle._Unpickler):
    """Runs nothing: every class and function is a stand-in, made for this file alone.

    The one in Python, since that in C hashes keys of any depth.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")
        self._classes: dict[tuple[str, str], Any] = {}
        self.storages: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in _RUNNING_MODULES or name.split(".")[-1] in _RUNNING_NAMES:
            raise TorchFileError(_refusal(f"{module}.{name}"))
        base = InertDict if module == "collections" and name in _DICTS else Inert
        base = _Member if name == "getattr" else base
        names = {"module": module, "name": name}
        return self._classes.setdefault((module, name), type("Inert", (base,), names))

    def persistent_load(self, pid: Any) -> Any:
        key = pid[2]
        if not isinstance(key, str):  # any other may be too deep to hash
            raise TorchFileError("damaged: the key of a storage is no text")
        self.storages[key] = pid[1]
        return ("storage", pid)


def _with_checked_keys(method: Any, keys: slice) -> Any:
    def checked(self: _Unpickler) -> None:
        _check_keys(self.stack[keys])
        method(self)

    return checked


for _opcode, _keys in (
    (pickle.SETITEM, slice(-2, -1)),
    (pickle.SETITEMS, slice(None, None, 2)),
    (pickle.DICT, slice(None, None, 2)),
    (pickle.ADDITEMS, slice(None)),
    (pickle.FROZENSET, slice(None)),
):
    _method = _Unpickler.dispatch[_opcode[0]]
    _Unpickler.dispatch[_opcode[0]] = _with_checked_keys(_method, _keys)


def load(data: bytes | mmap.mmap, path: Path, start: int = 0) -> tuple[Any, int, dict[str, Any]]:
    """Unpickles data, from `start` on, without running anything.

    Returns:
      The value, with stand-ins in it; where the pickle ends; the class of each storage, by key.

    Raises:
      TorchFileError: It is refused, or larger than a checkpoint's.
      Exception: Whatever unpickling damaged data may raise.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    stream.seek(start)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name.startswith("EXT"):
            raise TorchFileError(f"{path}: refused: it asks for a copyreg extension ({argument})")
        if number >= _MAX_OPCODES or stream.tell() - start > MAX_BYTES:
            raise TorchFileError(
                f"{path}: refused: its pickle has more than {_MAX_OPCODES:,} instructions or "
                f"{MAX_BYTES >> 20} MB, which no checkpoint of DinoSR has"
            )
    end = stream.tell()
    unpickler = _Unpickler(io.BytesIO(data[start:end]))
    try:
        return unpickler.load(), end, unpickler.storages
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
