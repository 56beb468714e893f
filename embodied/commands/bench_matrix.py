"""`embodied bench experts` and `embodied bench policies`: one run for each cell of a table, and the table.

The cells are those of conf/matrix. Each is a run of `embodied collect` or `embodied train` under run_root, found again
or continued by the same command. What it found is kept as a small JSON file, from which the page is written anew after
every cell: a table that was interrupted goes on where it stood.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.catalog import TASKS, names
from embodied.commands.bench_pages import markdown
from embodied.commands.matrix_cells import (
    CELLS,
    chosen,
    filled,
    given_paths,
    make_cells_folder,
    places,
    read_cell,
    read_matrix_file,
    shared_words,
    slug,
    write_whole,
)
from embodied.configuration import check
from embodied.console import say
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.types import Json

PAGE = "README.md"
OF_BENCH_POLICY = ("plan", "stage", "time_budget_min", "list", "latency_stage")  # which knows them, and these do not


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    task: str
    label: str  # what tells it from the other cells of its task
    overrides: tuple[str, ...]  # of the command

    @property
    def table_column(self) -> str:
        return self.task

    @property
    def name(self) -> str:
        return f"{self.task}, {self.label}"

    @property
    def file(self) -> str:
        return slug(self.name) + ".json"

    @property
    def places(self) -> set[str]:
        """Names of the paths that the overrides leave open."""
        return places(self.overrides)

    def command_line(self, paths: Mapping[str, str]) -> list[str]:
        """The overrides with the user's paths in them."""
        return [f"task={self.task}", *filled(self.overrides, paths)]


def run(config: DictConfig) -> Path:
    """Fill the table that `config.what` names (conf/matrix), as far as `config.only` says.

    Raises:
        UserError: settings of `embodied bench policy`, `only` fits no cell, a folder that cannot be written, or, at the
            end, cells whose runs failed.
    """
    _check_is_meant(config)
    matrix, cells = read_matrix(config.what)
    wanted = chosen(cells, config.only)
    directory = RunDirectory.open("bench", config.what, config, volatile=("results",))
    folder = Path(config.results or directory.path)
    paths = given_paths(config)
    with directory.lock():
        cells_folder = make_cells_folder(folder)
        failed = {}
        for cell in wanted:
            if (cells_folder / cell.file).exists():
                continue
            if missing := sorted(cell.places - paths.keys()):
                say(f"{cell.name}: left out, needs {', '.join(f'paths.{name}=...' for name in missing)}")
                continue
            say(cell.name)
            try:
                summary = _run_cell(matrix, cell.command_line(paths), config)
            except UserError as error:  # of one cell: the others go on
                failed[cell] = error
                say(f"{cell.name}: {error}")
                continue
            write_whole(cells_folder / cell.file, json.dumps(_KINDS[config.what].cell(cell, summary), indent=2) + "\n")
            write_page(config.what, folder)
        rows = write_page(config.what, folder)
        if failed:
            raise UserError(
                expected=f"{len(wanted)} cells without a failure",
                found=f"{len(failed)} failed: " + "; ".join(cell.name for cell in failed),
                remedy="see above why, and give the same command again: it goes on with what is missing",
            )
        say(f"{len(rows)} rows in {folder / PAGE}")
        page = os.path.relpath(folder / PAGE, directory.path)
        return directory.write_summary({"what": config.what, "files": {"table": page}, "rows": rows, "timings": {}})


def _check_is_meant(config: DictConfig) -> None:
    """
    Raises:
        UserError: what was set is another command's, which is called nearly the same.
    """
    unset = check("bench", [f"what={config.what}"])
    if foreign := [f"{key}={config[key]}" for key in OF_BENCH_POLICY if config[key] != unset[key]]:
        raise UserError(
            expected=f"settings of `embodied bench {config.what}`, a table of runs",
            found=", ".join(foreign),
            remedy="leave it out, or give it to `embodied bench policy`: success against latency",
        )


def read_matrix(what: str) -> tuple[str, list[Cell]]:
    """The command of a table, and its cells, "family/*" spelled out: of conf/matrix/<what>.yaml."""
    matrix = read_matrix_file(what)
    cells = []
    for group in matrix["cells"]:
        for pattern in group["tasks"]:
            for task in fnmatch.filter(names(TASKS), pattern) or [pattern]:
                cells.append(Cell(task, group["label"], tuple(group["overrides"])))
    return matrix["command"], cells


def _run_cell(command: str, words: list[str], config: DictConfig) -> Json:
    cell_config = check(command, [*words, *shared_words(config)])
    path: Path = import_module(f"embodied.commands.{command}").run(cell_config)
    return json.loads(path.read_text()) | {"path": str(path), "config": _settings(path)}


def _settings(summary: Path) -> Json:
    return OmegaConf.to_container(OmegaConf.load(summary.parent / "config.yaml"))  # type: ignore[return-value]


def _expert_cell(cell: Cell, summary: Json) -> Json:
    config = summary["config"]
    return {
        "task": cell.task,
        "label": cell.label,
        "expert": summary["expert"]["name"],
        "noise": config["noise"],
        "noise_bound": config["noise_bound"],
        "success": summary["expert_success"],
        "mean_steps_to_success": summary["mean_steps_to_success"],
        "content_hash": summary["content_hash"],
        **_provenance(summary),
        "timings": {
            "wall_s": summary["timings"]["wall_s"],
            "steps_per_s": summary["steps"] / summary["timings"]["wall_s"],
        },
    }


def _policy_cell(cell: Cell, summary: Json) -> Json:
    path = Path(summary["path"]).parent / summary["evaluation"]["path"] / "summary.json"
    evaluation = json.loads(path.read_text())
    training = summary["config"]["training"]
    graded = any(row["return"] != round(row["return"]) for row in evaluation["episodes"])
    return {
        "task": cell.task,
        "label": cell.label,
        "setting": evaluation["setting"],
        "network": summary["config"]["network"]["name"],
        "encoder": summary["config"].get("encoder", {"name": "state"})["name"],
        "parameters": evaluation["parameters"],
        "demonstrations": summary["store"]["episodes"],
        "store_content_hash": summary["store"]["content_hash"],
        "steps": training["steps"],
        "batch_size": training["batch_size"],
        "seed": summary["config"]["seed"],
        "starts": [row["start"] for row in evaluation["episodes"]][:1],
        "success": evaluation["success"],
        "mean_max_reward": evaluation["mean_max_reward"] if graded else None,
        "calls": evaluation["network_calls_per_observation"],
        **_provenance(summary),
        "timings": {
            "train_s": summary["timings"]["train_s"],
            "observation_ms": evaluation["timings"]["latency"]["observation_ms"],
        },
    }


def _provenance(summary: Json) -> Json:
    return {name: summary[name] for name in ("config_hash", "version", "machine")}


def _expert_row(cell: Json) -> list[str]:
    return [
        f"`{cell['task']}`",
        cell["expert"],
        f"{cell['noise']:g}",
        *_rate(cell["success"]),
        f"{cell['mean_steps_to_success']:.0f}",
        f"{cell['timings']['steps_per_s']:.0f}",
    ]


def _policy_row(cell: Json) -> list[str]:
    reward, latency = cell["mean_max_reward"], cell["timings"]["observation_ms"]
    graded = f"{reward['mean']:.3f} [{reward['low']:.3f}, {reward['high']:.3f}]" if reward else ""
    return [
        f"`{cell['task']}`",
        cell["label"],
        str(cell["demonstrations"]),
        f"{cell['steps']} of {cell['batch_size']}",
        f"{cell['timings']['train_s'] / 60:.1f}",
        *_rate(cell["success"]["ever"]),
        f"{cell['success']['last']['rate']:.2f}",
        graded,
        f"{latency['p50']:.2f} ({latency['p95']:.2f})",
    ]


def _rate(success: Json) -> tuple[str, str]:
    return f"{success['k']}/{success['n']}", f"{success['rate']:.3f} [{success['low']:.3f}, {success['high']:.3f}]"


@dataclass(frozen=True)
class _Kind:
    """What is particular about one of the tables."""

    title: str
    text: str
    columns: tuple[str, ...]
    cell: Callable[[Cell, Json], Json]  # what is kept of a run's summary
    row: Callable[[Json], list[str]]


_KINDS = {
    "experts": _Kind(
        "Experts",
        "Successes of attempts from addressed starts, from start 0 on, with Wilson's 95 % interval, until as many "
        "demonstrations were kept as the cell asks for. `task` is the task's own expert, the others are teachers from "
        "files. Noise is that on what is executed, as a share of half the action range. Control steps a second are "
        "those kept, of all processes together, beside whatever else ran.",
        ("task", "expert", "noise", "successes", "rate", "mean steps to success", "steps/s"),
        _expert_cell,
        _expert_row,
    ),
    "policies": _Kind(
        "Trained policies",
        "Each is one `embodied train` with the small network and its last checkpoint, evaluated on starts that no "
        "demonstration began from (100000 on). Success is ever within the task's horizon, with Wilson's 95 % interval; "
        "the share that succeeds at the last step stands beside it. Training steps are of so many windows each. "
        "Latencies are a whole observation's at batch 1 on the CPU, beside whatever else ran.",
        (
            "task",
            "policy",
            "demonstrations",
            "training steps",
            "training min",
            "successes",
            "rate",
            "at the last step",
            "mean maximum reward",
            "p50 (p95) ms",
        ),
        _policy_cell,
        _policy_row,
    ),
}


def write_page(what: str, folder: Path) -> list[Json]:
    """README.md from all cells in the folder.

    Returns:
        The cells, in the order of their rows.

    Raises:
        UserError: a cell that cannot be read, or a folder that cannot be written.
    """
    kind = _KINDS[what]
    cells = [read_cell(path) for path in sorted((folder / CELLS).glob("*.json"))]
    machines = sorted({f"{cell['machine']['cpu']}, {cell['machine']['cores']} cores" for cell in cells})
    page = f"# {kind.title}\n\n{kind.text}\n\nWritten by `embodied bench {what}`"
    page += f" on {'; '.join(machines)}.\n\n" if machines else ".\n\n"
    page += markdown(kind.columns, map(kind.row, cells))
    families: dict[str, list[float]] = {}
    for cell in cells:
        rate = cell["success"].get("ever", cell["success"])["rate"]
        families.setdefault(f"{cell['task'].split('/')[0]}, {cell['label']}", []).append(rate)
    means = ([name, str(len(rates)), f"{sum(rates) / len(rates):.3f}"] for name, rates in families.items())
    page += "\n" + markdown(("family", "tasks", "mean rate"), means)
    write_whole(folder / PAGE, page)
    return cells
