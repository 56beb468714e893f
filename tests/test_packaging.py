"""The distribution: every folder is in it, the wheel is whole, `datasets/` shadows nobody, the lock is complete."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Folder in the checkout -> package.
MAPPED = {
    "embodied": "embodied",
    "sim": "embodied.sim",
    "policies": "embodied.policies",
    "datasets": "embodied.datasets",
    "conf": "embodied.conf",
}
PACKAGED = (".py", ".yaml", ".json")


def files_of_the_package() -> dict[str, Path]:
    """Path inside the wheel -> file in the checkout, for every file that has to be in it."""
    return {
        "/".join((*package.split("."), *file.relative_to(ROOT / folder).parts)): file
        for folder, package in MAPPED.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in PACKAGED and "__pycache__" not in file.parts
    }


def python(*words: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_folder_is_in_the_list_of_packages_and_no_other():
    folders = {name.rpartition("/")[0].replace("/", ".") for name in files_of_the_package()}
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(folders)


def test_configuration_folders_are_packages_as_hydra_wants():
    folders = {file.parent for file in (ROOT / "conf").rglob("*.yaml")}
    # A folder that only holds folders needs it too.
    folders |= {parent for folder in folders for parent in folder.parents if parent.is_relative_to(ROOT / "conf")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_nothing_shadows_hugging_faces_datasets():
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("where", [ROOT, ROOT / "tests"])
def test_each_datasets_is_found_under_its_name(where):
    program = (
        "import importlib.util as u; theirs = u.find_spec('datasets'); ours = u.find_spec('embodied.datasets')\n"
        "import sys; sys.stdout.write(theirs.origin + '\\n' + list(ours.submodule_search_locations)[0])"
    )
    theirs, ours = python("-c", program, cwd=where).splitlines()
    assert Path(theirs).parts[-3:] == ("site-packages", "datasets", "__init__.py")
    assert Path(ours).resolve() == ROOT / "datasets"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built offline from a copy of the checkout, so that nothing of an earlier build gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        shutil.copy(ROOT / name, source / name)
    words = ["-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps"]
    python(*words, "--no-index", "--wheel-dir", str(out), str(source), cwd=out)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_configuration_and_schema(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(files_of_the_package())
        for name, file in files_of_the_package().items():
            assert archive.read(name) == file.read_bytes(), name


def test_the_unpacked_wheel_composes_and_validates_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys, embodied, embodied.policies\n"
        "from embodied.configuration import check; from embodied.summaries import schema\n"
        "assert check('train', ['task=robosuite/lift']).task.name == 'robosuite/lift'\n"
        "assert schema('doctor')['title']\n"
        "sys.stdout.write(embodied.__file__ + '\\n' + embodied.policies.__file__)"
    )
    places = python("-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert [Path(place).resolve() for place in places] == [
        (tmp_path / "embodied" / "__init__.py").resolve(),
        (tmp_path / "embodied" / "policies" / "__init__.py").resolve(),
    ]


def test_type_checkers_see_every_module_where_it_is_imported_from(tmp_path):
    spec = importlib.util.spec_from_file_location("typing_links", ROOT / "tools" / "typing_links.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for folder in MAPPED:
        (tmp_path / folder).symlink_to(ROOT / folder)
    tool.make_links(tmp_path)
    package = tool.make_links(tmp_path)  # a second time over the first
    seen = {
        os.path.relpath(os.path.join(folder, name), package.parent)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    }
    assert seen == {name for name in files_of_the_package() if name.endswith(".py")}


def locked() -> dict[str, str]:
    """Package -> version, of the lock's entries for this machine and others."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return dict(m.groups() for line in lines if (m := re.match(r"([A-Za-z0-9._-]+)==([^ ;\\]+)", line)))


def test_the_lock_has_hashes_and_no_addresses():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(--index|--extra-index|--find-links|-i |-f )", text, re.MULTILINE)
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 100
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_lock_holds_one_opencv_and_nothing_that_needs_a_compiler():
    names = set(locked())
    assert "opencv-python-headless" in names
    assert names & {"opencv-python", "opencv-contrib-python", "pynput", "evdev"} == set()


def test_the_lock_satisfies_the_project_and_its_developers():
    versions = locked()
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    brought = ("tasks", "ray", "lerobot", "shards", "serve", "grpc", "umi", "engines")
    for line in [*project["dependencies"], *extras["dev"], *(line for name in brought for line in extras[name])]:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            assert requirement.extras == set(brought), "the developers' extra brings the others"
            continue
        assert requirement.specifier.contains(versions[requirement.name], prereleases=True), line


def test_the_version_is_written_the_same_twice():
    import embodied

    assert embodied.__version__ == PROJECT["project"]["version"]


@pytest.mark.parametrize("required", [True, False])
def test_where_everything_is_required_a_skipped_test_fails(tmp_path, required):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(
        "import pytest\n"
        "@pytest.mark.skip(reason='no screen')\ndef test_a(): pass\n"
        "@pytest.mark.xfail(strict=True)\ndef test_b(): assert False\n"
        "def test_c(): pass\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-n", "1", "-p", "no:cacheprovider", str(tmp_path)]
    variables = {"EMBODIED_REQUIRE_ALL": "1" if required else "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **variables}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if required else 0), done.stdout
    assert ("no screen" in done.stdout) is required
    assert ("could not import 'no_such_package'" in done.stdout) is required
    assert "1 passed" in done.stdout or required
