"""`embodied doctor`: what is missing is named with its remedy, and nothing that is missing makes it fail."""

from __future__ import annotations

import importlib
import json
import shutil
import types
from importlib import metadata

import psutil
import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from embodied.commands import doctor
from embodied.summaries import validate_summary

REAL_IMPORT = importlib.import_module
GIB = 2**30


@pytest.fixture
def imports(monkeypatch):
    """What `import_module` returns or raises, by name; anything else is imported."""
    replaced: dict[str, object] = {
        "embodied.sim.opengl": opengl(egl=""),
        "torch": types.SimpleNamespace(
            cuda=types.SimpleNamespace(is_available=lambda: False),
            backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: False)),
        ),
        "cv2": types.ModuleType("cv2"),
    }

    def import_module(name: str):
        found = replaced.get(name)
        if isinstance(found, Exception):
            raise found
        return found or REAL_IMPORT(name)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    return replaced


def opengl(**reasons: str) -> types.SimpleNamespace:
    backends = [
        types.SimpleNamespace(name=name, works=not reason, reason=reason, packages=f"lib{name}")
        for name, reason in reasons.items()
    ]
    return types.SimpleNamespace(available_backends=lambda: backends)


def installed(monkeypatch, versions: dict[str, str]) -> None:
    """Pretend that exactly these distributions are installed."""

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", version)


def checks(tmp_path) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(tmp_path)}


def test_it_prints_a_table_and_writes_the_same_as_a_summary(imports, tmp_path, capsys):
    imports["embodied.sim.opengl"] = opengl(egl="no libEGL", osmesa="no libOSMesa")
    config = OmegaConf.create(
        {"run_root": str(tmp_path), "name": None, "force": False, "resume": None, "workers": None}
    )
    summary = json.loads(doctor.run(config).read_text())
    validate_summary("doctor", summary)
    printed = capsys.readouterr().out
    for check in summary["checks"]:
        assert check["found"] in printed
        assert check["remedy"] is None or f"{check['name']}: {check['remedy']}" in printed
    assert sum(summary["counts"].values()) == len(summary["checks"])
    assert doctor.run(config).is_file()  # a second time over the first


@pytest.mark.parametrize(
    ("wanted", "status"), [("torch>=2.11,<2.12", "ok"), ("torch>=2.12", "warning"), ("jax", "missing")]
)
def test_versions_are_compared_with_their_range(monkeypatch, wanted, status):
    installed(monkeypatch, {"torch": "2.11.0+cu130"})
    check = doctor.check_package(Requirement(wanted))
    assert check.status == status
    assert (check.remedy is None) is (status == "ok")


def test_two_builds_of_opencv_are_a_warning(imports, monkeypatch, tmp_path):
    versions = {"opencv-python-headless": "4.13"}
    installed(monkeypatch, versions)
    assert checks(tmp_path)["OpenCV"].status == "ok"
    versions["opencv-python"] = "4.13"
    check = checks(tmp_path)["OpenCV"]
    assert check.status == "warning"
    assert "opencv-python beside opencv-python-headless" in check.found
    assert check.remedy.startswith("pip uninstall opencv-python &&")


def test_an_opencv_that_misses_libgl_is_a_warning(imports, monkeypatch, tmp_path):
    installed(monkeypatch, {"opencv-python": "4.13"})
    imports["cv2"] = ImportError("libGL.so.1: cannot open shared object file")
    assert checks(tmp_path)["OpenCV"].status == "warning"
    assert "libGL.so.1" in checks(tmp_path)["OpenCV"].found


def test_without_torch_it_still_answers(imports, tmp_path):
    imports["torch"] = ImportError("No module named 'torch'")
    assert checks(tmp_path)["GPU"].status == "missing"


def test_opengl_needs_one_back_end(imports, tmp_path):
    imports["embodied.sim.opengl"] = opengl(egl="", osmesa="no libOSMesa")
    found = checks(tmp_path)
    assert (found["OpenGL egl"].status, found["OpenGL osmesa"].status) == ("ok", "missing")
    assert found["OpenGL osmesa"].remedy is None
    imports["embodied.sim.opengl"] = opengl(egl="no libEGL")
    assert checks(tmp_path)["OpenGL egl"].remedy == "for camera images: apt-get install libegl"
    imports["embodied.sim.opengl"] = ImportError("No module named 'mujoco'")
    assert checks(tmp_path)["OpenGL"].found == "No module named 'mujoco'"


def test_little_space_and_memory_are_warnings_at_a_place_that_does_not_exist_yet(imports, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2 * GIB, total=4 * GIB))
    found = checks(tmp_path / "not" / "yet")
    assert found["disk"].status == found["memory"].status == "warning"
    assert found["disk"].found.startswith("1.0 GiB free")
    assert found["memory"].found == "2.0 of 4.0 GiB free"


def test_the_screen_decides_whether_a_viewer_can_open(imports, monkeypatch, tmp_path):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":7")
    assert checks(tmp_path)["screen"].found == "DISPLAY=:7"
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    assert checks(tmp_path)["screen"].status == "missing"
