"""Dependencies point downward only. Imports inside functions and under TYPE_CHECKING count too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "embodied": "embodied",
    "sim": "embodied.sim",
    "policies": "embodied.policies",
    "datasets": "embodied.datasets",
}

# From the top down. A unit imports only units of the rows below its own, and itself; never one of its own row.
ROWS = (
    ("__main__",),
    ("cli",),
    ("completion",),
    ("commands",),
    ("run_directory", "configuration"),
    ("value_types",),
    ("training", "evaluation", "serving", "replay", "collection", "benchmarks", "conversion"),
    ("policies", "sim", "datasets"),
    ("robot",),
    ("ray_pool", "client", "session_files"),
    (
        *("normalize", "executors", "session", "wire", "fingerprint"),
        *("process_pool", "hang_watchdog", "episode_recorder", "console", "summaries", "schemas", "conf"),
        "pusht_board",
        "action_representation",
        "action_noise",
    ),
    ("action_groups",),
    ("rotations",),
    ("catalog",),
    ("protocols",),
    ("types",),
    ("errors",),
    ("version",),  # embodied/__init__.py
)
# Further arrows that may not exist: these know tasks, and evaluation policies too, only by their protocols.
FORBIDDEN = {
    ("training", "sim"),
    ("evaluation", "sim"),
    ("serving", "sim"),
    ("replay", "sim"),
    ("collection", "sim"),
    ("benchmarks", "sim"),
    ("evaluation", "policies"),
}
SIMULATORS = {"mujoco", "robosuite", "gymnasium", "metaworld", "gym_pusht", "gymnasium_robotics"}
MAY_SIMULATE = {"sim"}
# A machine that only runs policies (torch, einops, hydra, safetensors, numpy) has none of these.
ABSENT_ON_A_ROBOT = ("mujoco", "robosuite", "gymnasium", "zarr", "lerobot", "diffusers", "accelerate", "rerun")


def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


MODULES = modules()


def unit(module: str) -> str:
    """The unit of the table that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "version"


def row(name: str) -> int:
    for index, units in enumerate(ROWS):
        if name in units:
            return index
    raise AssertionError(f"'{name}' has no place yet: put it into ROWS of this test")


def imports(module: str, file: Path) -> Iterator[str]:
    """What a module imports, `from a import b` as `a.b` where that is a module; import_module("...") too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide what is imported; write embodied...."
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                known = inner in MODULES or any(name.startswith(f"{inner}.") for name in MODULES)
                yield inner if known else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


IMPORTS = {module: set(imports(module, file)) for module, file in MODULES.items()}


def test_the_reader_of_imports_sees_functions_submodules_and_strings(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        "import os.path\n"
        "from embodied import catalog, __version__\n"
        "def f():\n    from embodied.errors import UserError\n    importlib.import_module('embodied.sim.lift')\n"
    )
    assert set(imports("example", file)) == {
        "os.path",
        "embodied.catalog",
        "embodied",
        "embodied.errors",
        "embodied.sim.lift",
    }


def test_every_unit_has_one_place():
    units = [name for units in ROWS for name in units]
    assert len(units) == len(set(units))
    for module in MODULES:
        row(unit(module))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_below_it(module):
    mine = unit(module)
    for imported in IMPORTS[module]:
        if imported.split(".")[0] != "embodied" or unit(imported) == mine:
            continue
        assert row(unit(imported)) > row(mine), f"{module} imports {imported}, which does not stand below it"
        assert (mine, unit(imported)) not in FORBIDDEN, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_only_sim_imports_a_simulator(module):
    found = {imported.split(".")[0] for imported in IMPORTS[module]} & SIMULATORS
    assert not found or unit(module) in MAY_SIMULATE, f"{module} imports {', '.join(sorted(found))}"


def test_no_bare_import_of_a_mapped_folder():
    for module, imported in IMPORTS.items():
        assert {name.split(".")[0] for name in imported} & {"sim", "policies", "conf"} == set(), module


def test_policies_and_sessions_import_on_a_machine_without_simulators_and_stores():
    robots = ("policies", "serving", "session", "executors", "normalize")
    wanted = [name for name in MODULES if unit(name) in robots]
    program = (
        "import importlib, sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {ABSENT_ON_A_ROBOT!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked by the test', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_robots_side_runs_on_numpy_msgpack_and_websockets_alone():
    """Everything else that is installed is blocked, whatever imports it and wherever."""
    wanted = [name for name in MODULES if unit(name) in ("robot", "client", "executors", "session", "wire")]
    program = (
        "import importlib, sys\n"
        "allowed = {'numpy', 'msgpack', 'websockets', 'embodied', *sys.stdlib_module_names}\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] not in allowed:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked by the test', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {wanted!r}: importlib.import_module(name)\n"
        "from embodied.client import PolicyClient\n"
        "try: PolicyClient('ws://127.0.0.1:1', connect_timeout_s=0.1)\n"
        "except Exception as error: assert type(error).__name__ == 'PolicyServerError', error\n"
        "foreign = {name.split('.')[0] for name in sys.modules} - allowed - {'__main__'}\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'rich', 'zarr', 'scipy', 'mujoco', 'lerobot', 'grpc'}\n"
        "assert not heavy & foreign, foreign\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
