"""`embodied bench collect` and `embodied bench kills`: how fast collections are, and what kills leave of them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from embodied.benchmarks.collection_kills import CommittedEpisodes, collect_under_kills
from embodied.benchmarks.collection_rate import Report, collection_rate, rate_row
from embodied.catalog import TASK_EXPERT, task_config
from embodied.collection import collect
from embodied.commands.bench_pages import markdown, run_with_page
from embodied.commands.collect import STORE, task_spec
from embodied.commands.collect import engine as collect_engine
from embodied.commands.collect import settings as collect_settings
from embodied.configuration import check, quote
from embodied.console import Progress, say, table
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json, TaskSpec

RATE_COLUMNS = ("task", "engine", "workers", "episodes/s", "steps/s", "start s", "speed-up\n[range]", "same content")
KILLS_COLUMNS = (
    *("task", "episodes", "workers\nkilled", "committers\nkilled", "starts", "seen\ncommitted"),
    *("lost", "doubled", "torn", "same content"),
)


def run(config: DictConfig) -> Path:
    """Measure what `config.what` names, "collect" or "kills", and write its page.

    Raises:
        UserError: an unknown task or engine, numbers that do not fit, a collection that fails, or a folder for the
            results that cannot be written.
    """
    return run_with_page(config, config.what, {"collect": _rates, "kills": _kills}[config.what])


def _rates(directory: RunDirectory) -> tuple[list[Json], str]:
    config = directory.config
    chosen = config.collect
    crews = _crews(chosen)
    rows = []
    with Progress("bench collect", len(config.tasks) * len(crews) * chosen.rounds, "collections") as progress:
        for name in config.tasks:
            task = task_config(name)
            spec = task_spec(task, TASK_EXPERT)
            rounds: list[list[Json]] = []
            for _ in range(chosen.rounds):
                rounds.append([])
                for crew in crews:
                    collected = functools.partial(_collect, directory.path / "collected.zarr", spec, task, crew)
                    rounds[-1].append(collection_rate(collected, crew.workers, chosen.episodes))
                    progress.advance(1)
            by_crew = list(zip(*rounds, strict=True))
            for crew, results in zip(crews, by_crew, strict=True):
                row = rate_row(results, by_crew[0])
                rows.append({"task": name, "engine": crew.engine, "workers": crew.workers, **row})
    table(RATE_COLUMNS, [_rate_cells(row) for row in rows])
    return rows, _rates_page(rows, config)


def _crews(chosen: DictConfig) -> list[DictConfig]:
    """Configurations of `collect`, by engine and number of workers; the first is what the others are compared with."""
    if not chosen.engines or not chosen.workers or min(chosen.workers) < 1:
        raise UserError(
            expected="at least one engine, and numbers of workers of at least 1",
            found=f"collect.engines={list(chosen.engines)}, collect.workers={list(chosen.workers)}",
            remedy="for example collect.engines=[processes] collect.workers=[1,2]",
        )
    crews = [
        check("collect", [f"episodes={chosen.episodes}", f"engine={quote(engine)}", f"workers={workers}"])
        for engine in chosen.engines
        for workers in chosen.workers
    ]
    for crew in crews:
        collect_settings(crew)  # its mistakes are named before anything is started
    return crews


def _collect(folder: Path, spec: TaskSpec, task: Json, crew: DictConfig, report: Report) -> str:
    """Into a new store at `folder`, which goes away. Returns the hash of its content."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with EpisodeStore.create(folder, spec, expected_episodes=crew.episodes, provenance={}) as store:
            settings, engine = collect_settings(crew), collect_engine(crew)
            collect(store, task, settings, engine, lambda store: report(len(store), store.total_steps))
            return store.content_hash()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kills(directory: RunDirectory) -> tuple[list[Json], str]:
    config = directory.config
    rows = []
    for name in config.tasks:
        task_spec(task_config(name), TASK_EXPERT)  # mistakes are named before anything is started
        root = directory.path / name.replace("/", "-")
        whole, killed = root / "collect" / "whole" / STORE, root / "collect" / "killed" / STORE
        shutil.rmtree(killed.parent, ignore_errors=True)
        root.mkdir(exist_ok=True)
        say(f"{name}: {config.kills.episodes} episodes undisturbed, then under {config.kills.count} kills")
        command = _collect_command(name, config.kills.episodes, root)
        with (root / "log.txt").open("ab") as log:
            finished = subprocess.run([*command, "name=whole"], stdout=log, stderr=subprocess.STDOUT, check=False)
        if finished.returncode:
            raise UserError(
                expected=f"a collection of {name} that succeeds when nobody disturbs it",
                found=f"exit status {finished.returncode}",
                remedy=f"read {root / 'log.txt'}",
            )
        committed = CommittedEpisodes(killed)
        with Progress("bench kills", config.kills.count, "kills") as progress:
            kills = collect_under_kills(
                [*command, "name=killed"],
                committed.grew,
                kills=config.kills.count,
                longest_wait_s=config.kills.longest_wait_s,
                seed=config.seed,
                log=root / "log.txt",
                killed=functools.partial(progress.advance, 1),
            )
        rows.append(
            {"task": name, "episodes": config.kills.episodes, **asdict(kills), **what_is_left(killed, whole, committed)}
        )
    table(KILLS_COLUMNS, [_kills_cells(row) for row in rows])
    return rows, _kills_page(rows, config)


def _collect_command(task: str, episodes: int, root: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "embodied",
        "collect",
        f"task={task}",
        f"run_root={quote(str(root))}",
        f"episodes={episodes}",
    ]


def what_is_left(killed: Path, whole: Path, committed: CommittedEpisodes) -> Json:
    """What of a store is not as in the one that nobody disturbed."""
    store, expected = EpisodeStore.open(killed), EpisodeStore.open(whole)
    committed.grew()
    ids = {row.id for row in store.rows}
    return {
        "seen": len(committed.seen),
        "lost": len(committed.lost | (committed.seen - ids)),
        "doubled": len(committed.doubled) + len(store.rows) - len(ids),
        "torn": sum(not _is_intact(store, index) for index in range(len(store))),
        "same_content": store.content_hash() == expected.content_hash(),
        "content_hash": expected.content_hash(),
    }


def _is_intact(store: EpisodeStore, index: int) -> bool:
    try:
        store.episode(index, verify=True)
    except UserError:
        return False
    return True


def _rate_cells(row: Json) -> list[str]:
    timings = row["timings"]
    speedup = timings["speedup"]
    return [
        *(row["task"], row["engine"], str(row["workers"])),
        *(f"{timings['episodes_per_s']:.2f}", f"{timings['steps_per_s']:.0f}", f"{timings['start_s']:.1f}"),
        f"{speedup['median']:.2f} [{speedup['low']:.2f}, {speedup['high']:.2f}]",
        _yes(row["same_content"]),
    ]


def _kills_cells(row: Json) -> list[str]:
    names = ("episodes", "workers", "committers", "starts", "seen", "lost", "doubled", "torn")
    return [row["task"], *(str(row[name]) for name in names), _yes(row["same_content"])]


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "NO"


def _rates_page(rows: list[Json], config: DictConfig) -> str:
    machine = describe_machine()
    return f"""\
# Collection by engine and number of workers

Successful demonstrations a second of each task's own expert, without cameras, from when every worker has begun; how
long that took is "start s". Speed-up over the first row of the task, round by round: median of
{config.collect.rounds}, and the range. "Same content": the stores' hashes are equal.

- machine: {machine["cpu"]}, {machine["cores"]} cores
- {config.collect.episodes} episodes a collection

{markdown(RATE_COLUMNS, map(_rate_cells, rows))}"""


def _kills_page(rows: list[Json], config: DictConfig) -> str:
    machine = describe_machine()
    return f"""\
# Collections under SIGKILL

Workers and the committing process are killed at random times, up to {config.kills.longest_wait_s:g} s after an episode
was finished, and the collection is started again where its committer died. "Seen committed": episodes that the manifest
held at some time before the end; "lost" of them are missing later, "doubled" are committed twice, "torn" do not match
their checksums. "Same content": the store's hash is that of a collection which nobody disturbed.

- machine: {machine["cpu"]}, {machine["cores"]} cores; seed {config.seed}

{markdown(KILLS_COLUMNS, map(_kills_cells, rows))}"""
