"""PyTorch's files are read as data; hostile ones are refused and run nothing."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.interop.torch_files import Tensor, TorchFile, TorchFileError

GOLDEN = Path(__file__).parent / "golden"
TOUCH = b"X\x05\x00\x00\x00touch"
HOSTILE = {
    "GLOBAL": b"\x80\x02cos\nsystem\n(" + TOUCH + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + TOUCH + b"\x85R.",
    "INST": b"(" + TOUCH + b"ios\nsystem\n.",
    "OBJ": b"(csubprocess\nPopen\n" + TOUCH + b"o.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n" + TOUCH + b"\x85}\x92.",
    "eval": b"\x80\x02cbuiltins\neval\n(" + TOUCH + b"tR.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\n.",
    "memo": b"\x80\x02cos\nsystem\nq\x000h\x00(" + TOUCH + b"tR.",
    "third party function": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(tR.",
    "dotted": b"\x80\x04\x8c\x07pathlib\x8c\x0bPath.unlink\x93.",
    "EXT1": b"\x80\x02\x82\x01.",
    "BUILD": b"\x80\x02ccollections\nOrderedDict\ncos\nsystem\nb.",
}
BROKEN = {
    "calls a tuple": b"\x80\x02)" + TOUCH + b"\x85R.",
    "state for a class": b"\x80\x02cfairseq.x\nModel\n}b.",
    "huge memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "no end": b"\x80\x02}",
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


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles_are_errors(name, tmp_path):
    with pytest.raises(TorchFileError, match="damaged"):
        TorchFile(written(tmp_path / "bad.pt", BROKEN[name]))


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
