"""`embodied doctor`: what this machine can do, and one line on how to add what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from omegaconf import DictConfig
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from embodied.console import say, table
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine

DISTRIBUTION = "embodied-policies"
LOW_MEMORY_BYTES = 4 * 2**30
LOW_DISK_BYTES = 5 * 2**30
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Literal["ok", "warning", "missing"]  # missing: optional and absent; warning: something will go wrong
    found: str
    remedy: str | None = None  # None: nothing to do


def run(config: DictConfig) -> Path:
    """Print what this machine can do and write it down; looks anew at every call.

    Raises:
        UserError: the run directory cannot be written.
    """
    checks = list(examine(Path(config.run_root)))
    table(("check", "", "found"), [(check.name, check.status, check.found) for check in checks])
    remedies = [check for check in checks if check.remedy]
    if remedies:
        say("\nTo mend:")
        for check in remedies:
            say(f"  {check.name}: {check.remedy}")
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warning", "missing")}
    say(f"\n{counts['ok']} ok, {counts['warning']} warnings, {counts['missing']} missing")
    directory = RunDirectory.open("doctor", "doctor", config)
    with directory.lock():
        return directory.write_summary({"checks": [asdict(check) for check in checks], "counts": counts})


def examine(run_root: Path) -> Iterator[Check]:
    """Every check, in the order of the report."""
    yield _python()
    yield from _packages()
    yield _opencv()
    yield from _opengl()
    yield _gpu()
    yield from _capacity(run_root)
    yield _screen()
    yield _viewer()


def _requirements() -> list[str]:
    try:
        return metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []


def _python() -> Check:
    version = platform.python_version()
    try:
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return Check("python", "warning", f"{version}; {DISTRIBUTION} is not installed", "pip install -e .")
    if SpecifierSet(wanted).contains(version):
        return Check("python", "ok", version)
    return Check("python", "warning", f"{version}, wanted {wanted}", f"use a Python {wanted}")


def _packages() -> Iterator[Check]:
    """The distribution's own requirements, extras aside."""
    for line in _requirements():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check_package(requirement)


def check_package(requirement: Requirement) -> Check:
    """Whether the installed version of one package is in the range that this program was made for."""
    wanted = str(requirement.specifier)
    remedy = f'pip install "{requirement.name}{wanted}", or install requirements.lock anew'
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "missing", f"not installed, wanted {wanted or 'any'}", remedy)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    return Check(requirement.name, "warning", f"{version}, wanted {wanted}", remedy)


def _opencv() -> Check:
    """Two builds of OpenCV install into the same folder, and the last one wins."""
    names = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    installed = [name for name in names if _installed(name)]
    alone = "pip uninstall {} && pip install --force-reinstall --no-deps opencv-python-headless"
    if not installed:
        return Check("OpenCV", "missing", "none", "pip install opencv-python-headless")
    if len(installed) > 1:
        others = " ".join(name for name in installed if name != "opencv-python-headless")
        return Check("OpenCV", "warning", f"{' beside '.join(installed)}, both in cv2/", alone.format(others))
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        return Check("OpenCV", "warning", f"{installed[0]} fails: {_line(error)}", alone.format(installed[0]))
    return Check("OpenCV", "ok", f"{installed[0]} {metadata.version(installed[0])}")


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _opengl() -> Iterator[Check]:
    """Cameras need one working back end; state observations and recordings need none."""
    try:
        backends = importlib.import_module("embodied.sim.opengl").available_backends()
    except Exception as error:  # whatever a half installed simulator raises is a finding here
        yield Check("OpenGL", "missing", _line(error), "install requirements.lock, or leave cameras out")
        return
    works = any(backend.works for backend in backends)
    for backend in backends:
        name = f"OpenGL {backend.name}"
        if backend.works:
            yield Check(name, "ok", "draws")
        else:
            # One is enough, so that beside one that works there is nothing to do.
            remedy = None if works else f"for camera images: apt-get install {backend.packages}"
            yield Check(name, "missing", _line(backend.reason), remedy)


def _gpu() -> Check:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return Check("GPU", "missing", f"torch cannot be imported: {_line(error)}", "install requirements.lock")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Check("GPU", "ok", f"{', '.join(names)} (CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        return Check("GPU", "ok", "Apple GPU")
    return Check("GPU", "missing", "torch sees none; the defaults are made for the CPU", "for a GPU: its driver first")


def _capacity(run_root: Path) -> Iterator[Check]:
    machine = describe_machine()
    yield Check("CPU", "ok", f"{machine['cpu']}, {machine['cores']} cores for this process")
    memory = psutil.virtual_memory()
    low = memory.available < LOW_MEMORY_BYTES
    yield Check(
        "memory",
        "warning" if low else "ok",
        f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
        "use fewer processes (workers=1) or close other programs" if low else None,
    )
    place = next(folder for folder in (run_root.absolute(), *run_root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    low = free < LOW_DISK_BYTES
    found = f"{free / _GIB:.1f} GiB free at {run_root}"
    remedy = "make space, or choose another place with run_root="
    yield Check("disk", "warning" if low else "ok", found, remedy if low else None)


def _screen() -> Check:
    for variable in ("WAYLAND_DISPLAY", "DISPLAY"):
        if os.environ.get(variable):
            return Check("screen", "ok", f"{variable}={os.environ[variable]}")
    if sys.platform == "darwin":
        return Check("screen", "ok", "macOS desktop")
    remedy = "none needed: `embodied replay` saves the recording, to be opened elsewhere"
    return Check("screen", "missing", "neither WAYLAND_DISPLAY nor DISPLAY is set", remedy)


def _viewer() -> Check:
    beside_python = Path(sys.executable).parent / "rerun"
    found = shutil.which("rerun") or (str(beside_python) if beside_python.is_file() else None)
    if found is None:
        return Check("Rerun viewer", "missing", "no `rerun` program", "pip install rerun-sdk")
    return Check("Rerun viewer", "ok", found)


def _line(error: object) -> str:
    """An error's message as one line that is not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else f"{text[:117]}..."
