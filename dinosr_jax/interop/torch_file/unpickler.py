"""Pickles read as data: every class and every call in them becomes an inert stand-in.

Names that no checkpoint needs are refused, and so is a pickle of more work than a checkpoint is.
"""

import _compat_pickle
import io
import mmap
import pickle
import pickletools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinosr_jax.errors import UserError

TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2")
PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_KNOWN = {
    "builtins": "bool bytes complex dict float frozenset int list object set str tuple",
    "collections": "OrderedDict defaultdict Counter",
    "argparse": "Namespace",
    "torch": "device float16 float32 float64 bfloat16 int8 int16 int32 int64 uint8 bool strided",
    "torch._utils": " ".join(TENSORS + PARAMETERS),
    "torch.serialization": "_get_layout",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "_codecs": "encode",
}
_STANDARD_CLASSES = ("typing", "enum", "pathlib")
MAX_BYTES = 64 * 2**20  # of a pickle without its tensors; that of a base model has 1 MB
_MAX_OPCODES = 2_000_000


class TorchFileError(UserError, ValueError):
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

    def extend(self, _: Any) -> None:
        """As `append`."""

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


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


class Member(Inert):
    """Stands for a member of an enumeration, which Python 3.11 saves as a call of getattr."""

    def __new__(cls, *args: Any, **_: Any) -> "Member":
        """Remembers class and name; refuses every other use of getattr."""
        a_class = len(args) == 2 and isinstance(args[0], type) and issubclass(args[0], Inert)
        a_class = a_class and args[0].name.split(".")[-1].lstrip("_")[:1].isupper()
        if not (a_class and isinstance(args[1], str) and not args[1].startswith("__")):
            raise TorchFileError(_refusal("builtins.getattr"))
        cls.calls += 1
        return super().__new__(cls, *args)

    calls = 0


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

    def load(self) -> Any:
        value = super().load()
        member = self._classes.get(("builtins", "getattr"))
        if member is not None and not member.calls:
            raise TorchFileError(_refusal("builtins.getattr"))
        return value

    def find_class(self, module: str, name: str) -> Any:
        # protocol 2, that of torch, has Python 2's names: subprocess is `commands` in it
        here = (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), here)
        root, last = module.split(".")[0], name.split(".")[-1].lstrip("_")
        if name in _KNOWN.get(module, "").split():
            allowed = True
        elif root in sys.stdlib_module_names:
            allowed = module in _STANDARD_CLASSES and last[:1].isupper()
        else:
            allowed = last[:1].isupper() and root.isidentifier()
        member = (module, name) == ("builtins", "getattr")
        if not (allowed or member):
            raise TorchFileError(_refusal(f"{module}.{name}"))
        if (module, name) not in self._classes:
            base = InertDict if module == "collections" else Member if member else Inert
            self._classes[module, name] = type(
                last or "Inert", (base,), {"module": module, "name": name}
            )
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return ("storage", pid)


def _with_checked_keys(method: Any, keys: Any) -> Any:
    def checked(self: _Unpickler) -> None:
        _check_keys(keys(self.stack))
        method(self)

    return checked


_ALL, _EVEN, _LAST = (lambda s: s), (lambda s: s[::2]), (lambda s: s[-2:-1])
for _opcode, _keys in (
    (pickle.SETITEM, _LAST),
    (pickle.SETITEMS, _EVEN),
    (pickle.DICT, _EVEN),
    (pickle.ADDITEMS, _ALL),
    (pickle.FROZENSET, _ALL),
):
    _method = _Unpickler.dispatch[_opcode[0]]
    _Unpickler.dispatch[_opcode[0]] = _with_checked_keys(_method, _keys)


def load(data: bytes | mmap.mmap, path: Path, start: int = 0) -> tuple[Any, int]:
    """Unpickles without running anything.

    Args:
      data: Of a file, or a part of one.
      path: Its name, for messages.
      start: Where the pickle begins.

    Returns:
      The value, with stand-ins in it, and where the pickle ends.

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
    try:
        return _Unpickler(io.BytesIO(data[start:end])).load(), end
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
