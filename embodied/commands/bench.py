"""`embodied bench`: measure, side by side with peers. `bench sim` is here, the others in files of their own."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.benchmarks.simulation import BareProcess, SimulationBenchmark, measure
from embodied.catalog import BARE_ENVIRONMENTS, lookup, make_task, nearest, task_config
from embodied.commands import (
    bench_agreement,
    bench_collection,
    bench_data,
    bench_delay,
    bench_latency,
    bench_matrix,
    bench_policy,
    bench_serve,
)
from embodied.commands.bench_pages import markdown, results_folder
from embodied.commands.policy_matrix import TABLES
from embodied.console import Progress, say, table
from embodied.errors import UserError
from embodied.run_directory import SUMMARY, RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json

COLLECTIONS = ("collect", "kills")
BENCHMARKS = ("sim", *COLLECTIONS, "data", "latency", "serve", "agreement", "delay", "policy", *TABLES)
PAGE, ROWS = "sim.md", "sim.json"
COLUMNS = ("task", "cameras", "steps/s", "bare\nsteps/s", "ratio\n[quartiles]", "reset ms", "bare\nreset ms")


def run(config: DictConfig) -> Path | None:
    """Run the benchmark that `config.what` names (conf/bench.yaml).

    Raises:
        UserError: an unknown benchmark or task, an environment that cannot be measured, or a folder for the results
            that cannot be written.
    """
    if config.what not in BENCHMARKS:
        raise UserError(
            expected="the name of a benchmark", found=f"'{config.what}'", remedy=nearest(str(config.what), BENCHMARKS)
        )
    if config.what == bench_policy.WHAT:
        return bench_policy.run(config)
    if config.what in TABLES:
        return bench_matrix.run(config)
    if config.what in COLLECTIONS:
        return bench_collection.run(config)
    if config.what == "data":
        return bench_data.run(config)
    if config.what == "latency":
        return bench_latency.run(config)
    if config.what == "serve":
        return bench_serve.run(config)
    if config.what == "agreement":
        return bench_agreement.run(config)
    if config.what == "delay":
        return bench_delay.run(config)
    directory = RunDirectory.open("bench", str(config.what), config, volatile=("results",))
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is finished already (force=true makes a new one beside it)")
        else:
            _bench_sim(directory)
        if config.results is not None:
            say(f"results: {_write_results(directory, Path(config.results))}")
        return directory.path / SUMMARY


def _bench_sim(directory: RunDirectory) -> None:
    config: Json = OmegaConf.to_container(directory.config, resolve=True)  # type: ignore[assignment]
    settings = SimulationBenchmark(config["blocks"], config["block_steps"], config["seed"])
    jobs = _jobs(config)
    with Progress("bench sim", len(jobs) * (settings.blocks + 1), "pairs of blocks") as progress:
        rows = [_measured(job, settings, lambda: progress.advance(1)) for job in jobs]
    table(COLUMNS, [_cells(row) for row in rows])
    (directory.path / PAGE).write_text(_page(rows, describe_machine(), config), encoding="utf-8")
    directory.write_summary({"what": "sim", "files": {"table": PAGE}, "timings": {"rows": rows}})


def _jobs(config: Json) -> list[Json]:
    """The settings of every task to measure: as they are, then with the cameras of its family."""
    jobs = []
    for name in config["tasks"]:
        plain = _settings(name, config["gymnasium"])
        family = name.split("/")[0]
        lookup("task family with a bare environment", BARE_ENVIRONMENTS, family)
        jobs.append(plain)
        cameras = config["camera_names"].get(family)
        if config["cameras"] and cameras and not plain.get("cameras"):
            jobs.append({**plain, "cameras": cameras, "camera_size": config["camera_size"]})
    return jobs


def _settings(name: str, gymnasium: Json) -> Json:
    """Those of conf/task, or of a Gymnasium environment that is named like a task, as "gymnasium/Pendulum-v1"."""
    family, _, id = name.partition("/")
    if family == "gymnasium":
        if not id:
            raise UserError(
                expected="the id of a Gymnasium environment, as in gymnasium/Pendulum-v1",
                found=f"'{name}'",
                remedy="name it in tasks=",
            )
        return {"arguments": None, **gymnasium, "name": name, "id": id}
    return task_config(name)


def _page(rows: list[Json], machine: Json, config: Json) -> str:
    """The table in Markdown, under what it is a measurement of."""
    return f"""\
# Tasks beside their bare environments

Control steps a second of one process with random actions: of each task, and of the environment that it is made of as
that environment's own users run it. The tabletop world is made of no other environment: beside it stands robosuite's
Lift, with a Panda at the same control rate and as many cameras of the same size. The two take turns, block by block;
the ratio, ours over the bare one's, is that of the blocks side by side. Medians over the blocks; a first one of each
does not count, and resets are timed apart.

- machine: {machine["cpu"]}, {machine["cores"]} cores for this process
- blocks: {config["blocks"]} of {config["block_steps"]} control steps, seed {config["seed"]}

{markdown(COLUMNS, map(_cells, rows))}"""


def _write_results(directory: RunDirectory, folder: Path) -> Path:
    """The page and its rows of a finished run, into a folder beside other results. Returns the page's path."""
    summary, config = directory.summary(), directory.config
    rows, machine = summary["timings"]["rows"], summary["machine"]
    settings = {name: config[name] for name in ("blocks", "block_steps", "seed")}
    data = {"machine": {name: machine[name] for name in ("cpu", "cores")}, **settings, "rows": rows}
    with results_folder(folder):
        (folder / PAGE).write_text(_page(rows, machine, settings), encoding="utf-8")
        (folder / ROWS).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return folder / PAGE


def _measured(job: Json, settings: SimulationBenchmark, report: Callable[[], None]) -> Json:
    bare_class = lookup("task family", BARE_ENVIRONMENTS, job["name"].split("/")[0])
    task = make_task(job)  # first: its mistakes are named, and leave no process behind
    bare = BareProcess(functools.partial(bare_class, job))
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
        *(_milliseconds(1e3 * row[name]) for name in ("reset_s", "bare_reset_s")),
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
