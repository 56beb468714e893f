"""Exported programs are kept, found again by all that they are made of, and checked like fresh ones."""

import copy
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from embodied.policies.engines import onnx_runtime, program_cache
from embodied.policies.engines.onnx_runtime import OnnxRuntimeEngine
from embodied.policies.engines.program_cache import FOLDER_VARIABLE, keep_program, program_key, read_program

X = (torch.zeros(1, 3),)


class Doubled(nn.Module):
    """A program of one line."""

    def __init__(self, weight=2.0, clip=False):
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight), persistent=False)
        self.clip = clip

    def forward(self, x):
        y = x * self.weight
        return (y.clamp(-1.0, 1.0) if self.clip else y,)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "programs"))
    return tmp_path / "programs"


@pytest.fixture
def exports(monkeypatch):
    """What was exported."""
    made = []
    real = onnx_runtime.export_onnx

    def export(module, inputs, file):
        made.append(module)
        real(module, inputs, file)

    monkeypatch.setattr(onnx_runtime, "export_onnx", export)
    return made


def test_a_key_is_of_weights_settings_types_and_versions():
    same = program_key(Doubled(), X, "torch 1")
    assert program_key(Doubled(), X, "torch 1") == same == program_key(Doubled(), (torch.ones(7, 3),), "torch 1")
    others = [
        program_key(Doubled(3.0), X, "torch 1"),
        program_key(Doubled(clip=True), X, "torch 1"),
        program_key(Doubled(), (torch.zeros(1, 4),), "torch 1"),
        program_key(Doubled(), (torch.zeros(1, 3, dtype=torch.float64),), "torch 1"),
        program_key(Doubled(), X, "torch 2"),
        program_key(nn.Sequential(Doubled()), X, "torch 1"),
    ]
    assert len({same, *others}) == 7


@pytest.mark.parametrize("changed", ["network", "base"])
def test_a_key_is_of_the_files_that_its_classes_and_their_bases_are_written_in(changed, monkeypatch, tmp_path):
    files = {
        "base": "from torch import nn\nclass Base(nn.Module):\n    pass\n",
        "network": "from embodied.written_base import Base\nclass Network(Base):\n    pass\n",
    }

    def key():
        for name, source in files.items():
            (tmp_path / f"{name}.py").write_text(source)
            spec = spec_from_file_location(f"embodied.written_{name}", tmp_path / f"{name}.py")
            module = module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)
            exec(source, vars(module))
        return program_key(module.Network(), X)

    before = key()
    assert key() == before
    files[changed] += "# otherwise\n"
    assert key() != before


def test_what_another_exporter_made_is_not_taken(exports, monkeypatch):
    OnnxRuntimeEngine().compile(Doubled(), X)
    monkeypatch.setattr(onnx_runtime, "inspect", SimpleNamespace(getsource=lambda module: "translates otherwise"))
    OnnxRuntimeEngine().compile(Doubled(), X)
    assert len(exports) == 2


def test_it_is_exported_once_and_then_read(exports, folder):
    module = Doubled()
    for _ in range(2):
        program = OnnxRuntimeEngine().compile(module, X)
        assert torch.equal(program(torch.ones(2, 3))[0], torch.full((2, 3), 2.0))
    assert len(exports) == 1 and len(list(folder.iterdir())) == 1
    OnnxRuntimeEngine().compile(Doubled(5.0), X)
    assert len(exports) == 2


@pytest.mark.parametrize("damage", ["torn", "of another module"])
def test_a_damaged_program_is_exported_again(exports, folder, damage):
    module = Doubled()
    OnnxRuntimeEngine().compile(module, X)
    (path,) = folder.iterdir()
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:40])
    else:
        OnnxRuntimeEngine().compile(Doubled(5.0), X)
        (other,) = set(folder.iterdir()) - {path}
        path.write_bytes(other.read_bytes())
    x = torch.ones(1, 3)
    assert torch.equal(OnnxRuntimeEngine().compile(copy.deepcopy(module), (x,))(x)[0], 2 * x)
    assert exports[-1].weight == 2.0 and len(exports) == (2 if damage == "torn" else 3)


def test_what_was_not_used_for_longest_goes_first(monkeypatch, folder):
    monkeypatch.setattr(program_cache, "MOST_BYTES", 250)
    for age, key in enumerate(("a", "b")):
        keep_program(key, bytes(100))
        os.utime(folder / f"{key}.program", (1000 + age, 1000 + age))
    assert read_program("a") == bytes(100), "and is used now"
    keep_program("c", bytes(100))
    assert sorted(path.stem for path in folder.iterdir()) == ["a", "c"] and read_program("b") is None


def test_nothing_is_kept_where_the_variable_is_empty_or_the_disk_takes_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("", str(tmp_path / "file" / "below")):
        monkeypatch.setenv(FOLDER_VARIABLE, folder)
        keep_program("a", b"1")
        assert read_program("a") is None


def test_a_program_that_the_disk_does_not_take_leaves_nothing(monkeypatch, folder):
    def full(*_):
        raise OSError("no space")

    monkeypatch.setattr(program_cache.os, "replace", full)
    keep_program("a", b"1")
    assert list(folder.iterdir()) == []


def test_a_damaged_program_that_cannot_be_removed_is_exported_again(exports, monkeypatch, folder):
    OnnxRuntimeEngine().compile(Doubled(), X)
    (path,) = folder.iterdir()
    path.write_bytes(b"torn")

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(program_cache.Path, "unlink", refused)
    assert torch.equal(OnnxRuntimeEngine().compile(Doubled(), X)(torch.ones(1, 3))[0], torch.full((1, 3), 2.0))
    assert len(exports) == 2
