"""`embodied bench`: measure, side by side with peers. `bench sim` is here, `experts` and `policies` in bench_matrix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.benchmarks.simulation import BareProcess, SimulationBenchmark, measure
from embodied.catalog import BARE_ENVIRONMENTS, lookup, make_task, nearest, task_config
from embodied.commands import bench_matrix
from embodied.console import Progress, say, table
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.types import Json

MATRICES = ("experts", "policies")
BENCHMARKS = ("sim", *MATRICES)
PAGE = "sim.md"


def run(config: DictConfig) -> Path:
    """Run the benchmark that `config.what` names (conf/bench.yaml).

    Raises:
        UserError: an unknown benchmark or task, or an environment that cannot be measured.
    """
    if config.what not in BENCHMARKS:
        raise UserError(
            expected="the name of a benchmark", found=f"'{config.what}'", remedy=nearest(str(config.what), BENCHMARKS)
        )
    if config.what in MATRICES:
        return bench_matrix.run(config)
    directory = RunDirectory.open("bench", str(config.what), config)
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
            return directory.path / "summary.json"
        return _bench_sim(directory)


def _bench_sim(directory: RunDirectory) -> Path:
    config = directory.config
    settings = SimulationBenchmark(config.blocks, config.block_steps, config.seed)
    jobs = _jobs(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    with Progress("bench sim", len(jobs) * (settings.blocks + 1), "pairs of blocks") as progress:
        rows = [_measured(job, settings, lambda: progress.advance(1)) for job in jobs]
    columns = ("task", "cameras", "steps/s", "bare\nsteps/s", "ratio\n[quartiles]", "reset s")
    cells = [_cells(row) for row in rows]
    table(columns, cells)
    lines = [[column.replace("\n", " ") for column in columns], ["---"] * len(columns), *cells]
    page = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (directory.path / PAGE).write_text(page + "\n", encoding="utf-8")
    return directory.write_summary({"what": "sim", "files": {"table": PAGE}, "timings": {"rows": rows}})


def _jobs(config: Json) -> list[Json]:
    """The settings of every task to measure: without cameras, then with those of its family."""
    jobs = []
    for name in config["tasks"]:
        plain = task_config(name)
        lookup("task family with a bare environment", BARE_ENVIRONMENTS, name.split("/")[0])
        jobs.append(plain)
        cameras = config["camera_names"].get(name.split("/")[0])
        if config["cameras"] and cameras:
            jobs.append({**plain, "cameras": cameras, "camera_size": config["camera_size"]})
    return jobs


def _measured(job: Json, settings: SimulationBenchmark, report: Callable[[], None]) -> Json:
    bare_class = lookup("task family", BARE_ENVIRONMENTS, job["name"].split("/")[0])
    bare = BareProcess(functools.partial(bare_class, job))
    task = make_task(job)
    try:
        return measure(task, bare, settings, report)
    finally:
        task.close()
        bare.close()


def _cells(row: Json) -> list[str]:
    ratio = row["ratio"]
    return [
        row["task"],
        ", ".join(row["cameras"]) or "none",
        f"{row['steps_per_s']['median']:.0f}",
        f"{row['bare_steps_per_s']['median']:.0f}",
        f"{ratio['median']:.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]",
        f"{row['reset_s']:.2f}",
    ]
