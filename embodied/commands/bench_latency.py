"""`embodied bench latency`: what an observation costs, by network, sampler and engine."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from embodied.catalog import ENGINES, lookup, nearest
from embodied.commands.bench_pages import markdown, run_with_page
from embodied.commands.latency_cells import LatencyCell, measure_cell
from embodied.configuration import group_options
from embodied.console import Progress, say, table
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json

COLUMNS = (
    *("network", "policy", "engine", "calls", "observation ms\np50 / p95 / p99", "first of an\nepisode ms"),
    *("network\ncall ms", "share in\nnetwork", "act /\nbare calls", "first call s", "memory MB"),
    *("eager / this\nobservation", "eager / this\ncall", "batch of\nsessions ms"),
)
RATIOS = ("observation_ms", "network_call_ms")  # that are compared with eager PyTorch


def run(config: DictConfig) -> Path:
    """Measure and write the page.

    Raises:
        UserError: an unknown network, policy or engine, more threads than cores, or a folder for the results that
            cannot be written.
    """
    return run_with_page(config, "latency", _latency)


def _latency(directory: RunDirectory) -> tuple[list[Json], str]:
    cells = _cells(directory.config)
    rows: list[Json] = []
    with Progress("bench latency", len(cells), "cells") as progress:
        for cell in cells:
            row: Json = {"network": cell.network, "policy": cell.policy, "engine": cell.engine}
            try:
                rows.append({**row, "settings": dict(cell.settings), "refused": None, **measure_cell(cell)})
            except UserError as error:
                say(f"{cell.network}, {cell.policy}, {cell.engine}: {error}")
                rows.append({**row, "settings": dict(cell.settings), "refused": str(error), "timings": {}})
            progress.advance(1)
    lines = [_line(row, rows) for row in rows]
    table(COLUMNS, lines)
    return rows, _page(lines, rows, directory.config)


def _cells(config: DictConfig) -> list[LatencyCell]:
    chosen = OmegaConf.to_container(config.latency, resolve=True)
    assert isinstance(chosen, dict)
    for engine in chosen["engines"]:
        lookup("engine", ENGINES, engine)
    for group, names in (("network", chosen["networks"]), ("policy", [p["name"] for p in chosen["policies"]])):
        for name in names:
            if name not in group_options(group):
                raise UserError(
                    expected=f"the name of a file of conf/{group}",
                    found=f"'{name}'",
                    remedy=nearest(name, group_options(group)),
                )
    cores = describe_machine()["cores"]
    if not 1 <= chosen["threads"] <= cores:
        raise UserError(
            expected=f"latency.threads between 1 and the {cores} cores of this machine",
            found=str(chosen["threads"]),
            remedy="change latency.threads",
        )
    return [
        LatencyCell(
            network,
            policy["name"],
            {key: value for key, value in policy.items() if key != "name"},
            engine,
            *(chosen[name] for name in ("state_size", "action_size", "observations", "threads", "device", "sessions")),
        )
        for network in chosen["networks"]
        for policy in chosen["policies"]
        for engine in chosen["engines"]
    ]


def _line(row: Json, rows: list[Json]) -> list[str]:
    if row["refused"]:
        return [row["network"], row["policy"], row["engine"], *["-"] * (len(COLUMNS) - 3)]
    t = row["timings"]
    observation = t["observation_ms"]
    eager = next((r for r in rows if _same(r, row) and r["engine"] == "eager" and not r["refused"]), None)
    ratios = [eager["timings"][name]["p50"] / t[name]["p50"] for name in RATIOS] if eager else []
    return [
        *(row["network"], row["label"].partition(" on ")[0], row["engine"], str(row["calls"])),
        " / ".join(f"{observation[name]:.2f}" for name in ("p50", "p95", "p99")),
        *(f"{t['first_observation_ms']:.2f}", f"{t['network_call_ms']['p50']:.2f}"),
        *(f"{t['network_share']:.0%}", f"{t['overhead_ratio']:.2f}", f"{t['first_call_s']:.1f}"),
        f"{t['memory_mb']:.0f}",
        *([f"{ratio:.2f}" for ratio in ratios] or ["-"] * len(RATIOS)),
        f"{t['sessions_ms']['p50']:.2f}",
    ]


def _same(one: Json, other: Json) -> bool:
    return all(one[name] == other[name] for name in ("network", "policy", "settings"))


def _page(lines: list[list[str]], rows: list[Json], config: DictConfig) -> str:
    machine, chosen = describe_machine(), config.latency
    refused = [
        f"- {row['network']}, {row['policy']}, {row['engine']}: {row['refused']}" for row in rows if row["refused"]
    ]
    return f"""\
# Latency by network, sampler and engine

One session at batch 1 with fresh weights, {chosen.observations} observations after a warm-up, garbage collection off,
the device synchronised; each row in a process of its own, pinned to as many cores as it has threads. "Network call" is
one bare call on the same engine, timed in turn with blocks of observations; "act / bare calls" is the whole act over
the calls that it makes; "eager / this" compares whole observations and bare calls. A bare call embeds its noise levels,
which are constants of the program that an observation runs. "First call" is from the first observation until the engine
has made its programs and given two chunks. Memory is resident, more than before the policy was built; on a GPU the most
that was allocated there. The last column is one observation of each of {chosen.sessions} sessions in one batch, p50.
What an engine gives is compared with eager PyTorch first, and refused above 1e-4.

- machine: {machine["cpu"]}, {machine["cores"]} cores; device {chosen.device}, {chosen.threads} thread
- torch {torch.__version__}; {chosen.state_size} values of state, {chosen.action_size} of action

{markdown(COLUMNS, lines)}{chr(10).join(["", "Refused:", "", *refused, ""]) if refused else ""}"""
