"""PyTorch's files are read as data; hostile ones are refused and run nothing."""

import enum
import pickle
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.interop.torch_file.reader import Tensor, TorchFile, plain
from dinosr_jax.interop.torch_file.unpickler import Inert, TorchFileError

GOLDEN = Path(__file__).parents[2] / "golden"
TOUCH = b"X\x05\x00\x00\x00touch"
HOSTILE = {
    "GLOBAL": b"\x80\x02cos\nsystem\n(" + TOUCH + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TOUCH + b"\x85R.",
    "INST": b"(" + TOUCH + b"ios\nsystem\n.",
    "OBJ": b"(csubprocess\nPopen\n" + TOUCH + b"o.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + TOUCH + b"\x85}\x92.",
    "Popen of Python 2": b"\x80\x02ccommands\nPopen\n(" + TOUCH + b"tR.",
    "renamed in Python 3": b"\x80\x02curllib2\nRequest\n(" + TOUCH + b"tR.",
    "eval": b"\x80\x02cbuiltins\neval\n(" + TOUCH + b"tR.",
    "getattr of a module": b"\x80\x02c__builtin__\ngetattr\n(X\x02\x00\x00\x00os" + TOUCH + b"tR.",
    "getattr of a function": b"\x80\x02cbuiltins\ngetattr\n(ctorch._utils\n_rebuild_tensor\n"
    + TOUCH
    + b"tR.",
    "getattr of a member": b"\x80\x02cbuiltins\ngetattr\nq\x00(h\x00(cfairseq\nA\n"
    + TOUCH
    + b"tR"
    + TOUCH
    + b"tR.",
    "getattr of a dunder": b"\x80\x02cbuiltins\ngetattr\n(cfairseq\nA\nX\x07\x00\x00\x00__new__tR.",
    "nested in task_state": b"\x80\x02}X\x0a\x00\x00\x00task_state](cos\nsystem\n"
    + TOUCH
    + b"\x85Res.",
    "memo": b"\x80\x02cos\nsystem\nq\x000h\x00(" + TOUCH + b"tR.",
    "third party function": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(tR.",
    "dotted": b"\x80\x04\x8c\x07pathlib\x8c\x0bPath.unlink\x93.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD": b"\x80\x02ccollections\nOrderedDict\ncos\nsystem\nb.",
}
BROKEN = {
    "calls a tuple": b"\x80\x02)" + TOUCH + b"\x85R.",
    "state for a class": b"\x80\x02cfairseq.x\nModel\n}b.",
    "no end": b"\x80\x02}",
    "calls a member": b"\x80\x02cbuiltins\ngetattr\n(cfairseq\nA\n" + TOUCH + b"tR)R.",
    "deep": b"\x80\x02N" + b"\x85" * 20_000 + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 50_000 + b"Ns.",
    "doubled key": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "doubled keys": b"\x80\x02}()" + b"2\x86" * 60 + b"Nu.",
    "doubled key of a call": b"\x80\x02ccollections\nOrderedDict\n(])"
    + b"2\x86" * 60
    + b"N\x86atR.",
    "doubled item": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
}


def written(path, content, storages=None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "bad.pt", HOSTILE[name])
    with pytest.raises(TorchFileError, match=r"bad\.pt: refused: it asks for"):
        TorchFile(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pt"]


def short(text):
    return b"\x8c" + bytes([len(text)]) + text


def calls(function):
    """Pickles that call what `function` puts on the stack, by every opcode that calls, by name."""
    return {
        "alone": function + b".",
        "REDUCE": function + b"(" + TOUCH + b"tR.",
        "OBJ": b"(" + function + TOUCH + b"o.",
        "NEWOBJ": function + b"(" + TOUCH + b"t\x81.",
        "NEWOBJ_EX": function + b"(" + TOUCH + b"t}\x92.",
        "BUILD": function + b")R}" + TOUCH + function + b"sb.",
        "BUILD with slots": function + b")RN}" + TOUCH + function + b"s\x86b.",
        "SETITEMS": function + b")R(" + TOUCH + function + b"u.",
        "APPENDS": function + b")R(" + TOUCH + function + b")Re.",
        "key": b"}" + function + b")R" + TOUCH + b"s.",
        "nested": b"]" + (function + b"(") * 9 + TOUCH + b"tR" * 9 + b"a.",
    }


NAMES = {"GLOBAL": b"cplanted.inner\ntouch\n", "STACK_GLOBAL": b"Vplanted.inner\nVtouch\n\x93"}
PICKLES = {f"{a}, {b}": text for a, named in NAMES.items() for b, text in calls(named).items()}
PICKLES["INST"] = b"(" + TOUCH + b"iplanted.inner\ntouch\n."
PICKLES["dotted"] = short(b"planted.inner") + short(b"inner.touch") + b"\x93)R."


@pytest.mark.parametrize("protocol", range(6))
def test_a_name_that_is_not_refused_runs_nothing(protocol, tmp_path, monkeypatch):
    """Neither its module is imported, nor is it called, whatever opcode asks for it."""
    (tmp_path / "planted").mkdir()
    planted = 'open("ran", "w").close()\ndef touch(*_):\n    return "planted"\n'
    for name in ("__init__", "inner"):
        (tmp_path / "planted" / f"{name}.py").write_text(planted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    start = b"\x80" + bytes([protocol]) if protocol > 1 else b""
    for name, text in PICKLES.items():
        with TorchFile(written(tmp_path / "x.pt", start + text)) as file:
            assert "planted.inner" not in str(plain({"a": file.content})), name
    assert not (tmp_path / "ran").exists() and not sys.modules.keys() & {"planted"}
    pickle.loads(start + PICKLES["GLOBAL, REDUCE"])  # Python's own does run it
    assert (tmp_path / "ran").exists()
    for name in ("planted", "planted.inner"):
        del sys.modules[name]


def test_getattr_alone_is_a_stand_in(tmp_path):
    with TorchFile(written(tmp_path / "x.pt", b"\x80\x02c__builtin__\ngetattr\n.")) as file:
        assert issubclass(file.content, Inert)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles_are_errors(name, tmp_path):
    with pytest.raises(TorchFileError, match="damaged"):
        TorchFile(written(tmp_path / "bad.pt", BROKEN[name]))


@pytest.mark.parametrize("place", ["storage", "list of storages"])
def test_keys_of_storages_are_not_hashed_before_they_are_checked(place, tmp_path):
    """A tuple as deep would end the process; in the format of before torch 1.6."""
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    head += pickle.dumps({"little_endian": True}, protocol=2)
    deep, key = b")" + b"\x85" * 300_000, b"X\x01\x00\x00\x000"
    first, second = (deep, b"") if place == "storage" else (key, deep + b"a")
    storage = b"\x80\x02(" + TOUCH + b"ctorch\nFloatStorage\n" + first + TOUCH + b"K\x01tQ."
    (tmp_path / "x.pt").write_bytes(head + storage + b"\x80\x02]" + second + b"." + bytes(12))
    with pytest.raises(TorchFileError, match=r"x\.pt: damaged"):
        TorchFile(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"hello\n", "text"),
        ((GOLDEN / "tiny_spidr.pt").read_bytes()[:100_000], "damaged"),
        (pickle.dumps({"a": 1}), "not a file that torch.save wrote"),
    ],
)
def test_other_files_are_named(content, message, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(TorchFileError, match=message):
        TorchFile(tmp_path / "x.pt")


def test_work_without_bounds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("dinosr_jax.interop.torch_file.unpickler._MAX_OPCODES", 20_000)
    with pytest.raises(TorchFileError, match=r"bad\.pt: refused: .* 20,000 instructions or 64 MB"):
        TorchFile(written(tmp_path / "bad.pt", b"\x80\x02" + b"N0" * 10_001 + b"N."))
    monkeypatch.setattr("dinosr_jax.interop.torch_file.reader.MAX_BYTES", 2**20)
    with pytest.raises(TorchFileError, match="its pickle has 3 MB, more than 1"):
        TorchFile(written(tmp_path / "bad.pt", b" " * 3 * 2**20))


def test_what_is_shared_is_made_plain_once(tmp_path):
    doubled = b"\x80\x02]q\x00" + b"".join(
        b"](h%ch%ceq%c" % (k, k, k + 1) for k in range(60)
    )  # 2^60 lists where they are not shared
    with TorchFile(written(tmp_path / "x.pt", doubled + b".")) as file:
        found = plain(file.content)
    assert len(found) == 2 and found[0] is found[1]
    own = b"\x80\x02]q\x00h\x00a."  # a list in itself
    with TorchFile(written(tmp_path / "x.pt", own)) as file:
        assert plain(file.content) == [None]


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize("form", ["3.11", "3.12"])
def test_members_of_enumerations(form, tmp_path):
    call = b"\x80\x02cfairseq.choices\nColour\n(X\x03\x00\x00\x00redtR."
    if form == "3.11":
        call = b"\x80\x02c__builtin__\ngetattr\n(cfairseq.choices\nColour\nX\x03\x00\x00\x00REDtR."
    with TorchFile(written(tmp_path / "x.pt", call)) as file:
        assert isinstance(file.content, Inert) and plain({"a": file.content}) == {"a": None}
    own = pickle.dumps([Colour.RED, Colour.RED], protocol=2)  # of the Python that runs this
    with TorchFile(written(tmp_path / "x.pt", own)) as file:
        assert all(isinstance(member, Inert) for member in file.content)


def test_keys_that_are_tuples(tmp_path):
    content = pickle.dumps({("a", 1): 2, "b": {(1, (2, 3)): 4}}, protocol=2)
    with TorchFile(written(tmp_path / "x.pt", content)) as file:
        assert file.content == {("a", 1): 2, "b": {(1, (2, 3)): 4}}
        assert plain(file.content) == {"b": {}}


@pytest.mark.parametrize("zipped", [True, False])
def test_big_endian_is_refused(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    if zipped:
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02}.")
            file.writestr("archive/byteorder", "big")
    else:
        torch.save({}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        data = (tmp_path / "x.pt").read_bytes()
        little = b"little_endianq\x02\x88"
        assert data.count(little) == 1
        (tmp_path / "x.pt").write_bytes(data.replace(little, little[:-1] + b"\x89"))
    with pytest.raises(TorchFileError, match="big-endian"):
        TorchFile(tmp_path / "x.pt")


def tensor_pickle(shape, strides, numel):
    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + n.to_bytes(8, "little", signed=True) for n in values)

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += numbers([numel])[1:] + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00"
    return b"\x80\x02" + call + numbers(shape) + b"t" + numbers(strides) + b"t\x89}tR."


@pytest.mark.parametrize(
    ("shape", "strides", "numel"),
    [
        ((3,), (1,), 2),
        ((2,), (9,), 2),
        ((2**40,), (0,), 2),
        ((2**40,), (1,), 2**40),
        ((2,), (1,), 9),
    ],
)
def test_tensors_larger_than_their_storage(shape, strides, numel, tmp_path):
    data = {"0": np.ones(2, np.float32).tobytes()}
    path = written(tmp_path / "x.pt", tensor_pickle(shape, strides, numel), data)
    with TorchFile(path) as file, pytest.raises(TorchFileError, match="does not fit its storage"):
        file.array(file.content)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24).reshape(4, 6)
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64]
    saved = {str(kind): base.to(kind).t()[1:, ::2] for kind in kinds}
    saved |= {"bool": base > 3, "parameter": torch.nn.Parameter(base.float()), "scalar": base[1, 2]}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with TorchFile(tmp_path / "x.pt") as file:
        for name, value in saved.items():
            assert isinstance(file.content[name], Tensor)
            found = file.array(file.content[name])
            expected = value.detach().double().numpy()
            np.testing.assert_array_equal(found.astype(np.float64), expected)


def test_of_an_old_file_only_what_is_asked_for_is_in_memory(tmp_path):
    """Its numbers stay on disk, whatever else it holds."""
    torch = pytest.importorskip("torch")
    saved = {"large": torch.zeros(8_000_000), "small": torch.arange(1_000.0)}
    torch.save(saved, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert (tmp_path / "x.pt").stat().st_size > 32_000_000
    tracemalloc.start()
    try:
        with TorchFile(tmp_path / "x.pt") as file:
            small = file.array(file.content["small"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(small, np.arange(1_000))
    assert peak < 1_000_000
