"""`embodied bench agreement`: does a simulation rank policies as a stand-in for reality does, and does identifying its
dynamics help? Simulation against simulation: no robot is involved.

The stand-in is the same task with other dynamics and another look. Its logs are all that identification sees of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from embodied.catalog import IDENTIFICATION, lookup, make_expert, make_task
from embodied.commands.bench_episodes import episodes
from embodied.commands.bench_pages import markdown, run_with_page
from embodied.commands.evaluated_policy import EvaluatedPolicy, evaluated_policy
from embodied.configuration import check, quote
from embodied.console import Progress, say, table
from embodied.errors import UserError
from embodied.evaluation.breakdown import success
from embodied.evaluation.rank_agreement import FEWEST_POLICIES, Agreement, rank_agreement
from embodied.protocols import Task
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json

STAND_IN, SIMULATION, IDENTIFIED = "stand-in", "simulation", "identified simulation"
IDENTIFICATION_FILE = "identification.json"
POLICY_COLUMNS = ("policy", STAND_IN, SIMULATION, IDENTIFIED)
AGREEMENT_COLUMNS = ("simulation", "policies", "MMRV [95%]", "Pearson r [95%]", "mean gap")


def run(config: DictConfig) -> Path:
    """Evaluate every policy in all three worlds, and write the page.

    Raises:
        UserError: too few policies, policies of different tasks, a task whose dynamics cannot be identified, or an
            evaluation that fails.
    """
    return run_with_page(config, "agreement", _measured)


@dataclass(frozen=True)
class _World:
    """A task's settings, under a name."""

    name: str
    task: Json


def _measured(directory: RunDirectory) -> tuple[list[Json], str]:
    config = directory.config
    policies = _policies(config)
    task = policies[0].task
    stand_in = _World(STAND_IN, {**task, **_plain(config.agreement.stand_in)})
    identified, fit = _identified(directory, task, stand_in.task)
    worlds = [stand_in, _World(SIMULATION, task), _World(IDENTIFIED, identified)]
    rows = []
    chosen = config.agreement
    starts = range(chosen.first_evaluation_start, chosen.first_evaluation_start + chosen.episodes)
    with Progress("bench agreement", len(worlds) * len(policies) * config.agreement.episodes, "episodes") as progress:
        for number, policy in enumerate(policies):
            row: Json = {"policy": policy.facts["checkpoint"]["run"], "label": _label(policy), "success": {}}
            for world in worlds:
                folder = directory.path / "worlds" / world.name.replace(" ", "-") / str(number)
                ran = episodes(policy, world.task, folder, starts, seed=config.seed, workers=config.workers)
                row["success"][world.name] = success(ran)["ever"]
                progress.advance(config.agreement.episodes)
            rows.append(row)
    agreements = {name: _agreement(rows, name) for name in (SIMULATION, IDENTIFIED)}
    table(POLICY_COLUMNS, [_policy_cells(row) for row in rows])
    table(AGREEMENT_COLUMNS, [_agreement_cells(name, agreements[name], rows) for name in agreements])
    page = _page(config, policies[0], fit, rows, agreements)
    return [{"task": task["name"], "fit": fit, "policies": rows, "agreement": _json(agreements)}], page


def _plain(config: DictConfig) -> Json:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _policies(config: DictConfig) -> list[EvaluatedPolicy]:
    named = [str(path) for path in config.agreement.policies]
    if len(named) < FEWEST_POLICIES:
        raise UserError(
            expected=f"at least {FEWEST_POLICIES} policies, since fewer have hardly a ranking",
            found=f"{len(named)} in agreement.policies",
            remedy="name checkpoints of graded quality, for example those of one training, as it went on",
        )
    shared = f"run_root={quote(str(config.run_root))}"
    policies = [evaluated_policy(check("eval", [f"run={quote(path)}", shared])) for path in named]
    tasks = {json.dumps(policy.task, sort_keys=True) for policy in policies}
    if len(tasks) > 1:
        found = sorted({policy.facts["task"] for policy in policies})
        raise UserError(
            expected="policies of one task with the same settings",
            found=", ".join(found) + (" with several" if len(found) == 1 else ""),
            remedy="name policies that were trained for the same task",
        )
    return policies


def _label(policy: EvaluatedPolicy) -> str:
    return f"{policy.label}, {policy.facts['checkpoint']['step']} steps"


def _identified(directory: RunDirectory, task: Json, stand_in: Json) -> tuple[Json, Json]:
    """The task with identified dynamics, and what the identification found; kept, since it takes minutes.

    Raises:
        UserError: the task's family has no identification.
    """
    file = directory.path / IDENTIFICATION_FILE
    if not file.exists():
        identify = lookup(
            "family of tasks whose dynamics can be identified", IDENTIFICATION, task["name"].split("/")[0]
        )
        fit = _fit(identify, directory.config, task, stand_in)
        file.write_text(json.dumps(fit, indent=2) + "\n", encoding="utf-8")
    fit = json.loads(file.read_text(encoding="utf-8"))
    return {**task, "dynamics": fit["dynamics"]}, fit


def _fit(identify: type, config: DictConfig, task: Json, stand_in: Json) -> Json:
    """Log the expert in the stand-in, and fit the simulation's dynamics to where it went."""
    chosen = config.agreement
    worlds = make_task(stand_in), make_task(task)
    try:
        with Progress("identify", chosen.logs, "episodes logged") as progress:
            logs = []
            for start in range(chosen.first_start, chosen.first_start + chosen.logs):
                actions = _expert_actions(worlds[0], start, chosen.log_steps)
                logs.append(identify.log(worlds[0], start, actions))
                progress.advance(1)
        say(f"fitting dynamics to {chosen.logs} episodes of {chosen.log_steps} steps")
        found = identify.fit(worlds[1], logs)
    finally:
        for world in worlds:
            world.close()
    return dataclasses.asdict(found)


def _expert_actions(task: Task, start: int, steps: int) -> np.ndarray:
    """What the task's expert does there, with everything that it sees of it: [T A]."""
    expert, actions = make_expert(task), []
    task.reset(start)
    memory = expert.infer_memory()
    for _ in range(min(steps, task.spec.horizon)):
        action, memory = expert.act(memory)
        actions.append(action)
        task.step(action)
    return np.array(actions)


def _agreement(rows: Sequence[Json], world: str) -> Agreement:
    real, sim = ([row["success"][name] for row in rows] for name in (STAND_IN, world))
    return rank_agreement(
        [one["rate"] for one in real],
        [one["rate"] for one in sim],
        real_episodes=[one["n"] for one in real],
        sim_episodes=[one["n"] for one in sim],
    )


def _gap(rows: Sequence[Json], world: str) -> float:
    """Mean over policies of how far their rate is from that in the stand-in."""
    return float(np.mean([abs(row["success"][world]["rate"] - row["success"][STAND_IN]["rate"]) for row in rows]))


def _json(agreements: dict[str, Agreement]) -> Json:
    return {name: dataclasses.asdict(agreement) for name, agreement in agreements.items()}


def _policy_cells(row: Json) -> list[str]:
    def cell(name: str) -> str:
        return "{k}/{n} [{low:.2f}, {high:.2f}]".format(**row["success"][name])

    return [row["label"], *map(cell, (STAND_IN, SIMULATION, IDENTIFIED))]


def _agreement_cells(name: str, found: Agreement, rows: Sequence[Json]) -> list[str]:
    low, high = found.mmrv_interval
    r = "none: one side is all equal"
    if found.pearson is not None and found.pearson_interval is not None:
        r = f"{found.pearson:.3f} [{found.pearson_interval[0]:.2f}, {found.pearson_interval[1]:.2f}]"
    return [name, str(len(rows)), f"{found.mmrv:.3f} [{low:.2f}, {high:.2f}]", r, f"{_gap(rows, name):.3f}"]


def _page(
    config: DictConfig, policy: EvaluatedPolicy, fit: Json, rows: list[Json], agreements: dict[str, Agreement]
) -> str:
    machine, chosen = describe_machine(), config.agreement
    stand_in = ", ".join(f"{key} {_in_words(value)}" for key, value in _plain(chosen.stand_in).items())
    warnings = sorted({warning for agreement in agreements.values() for warning in agreement.warnings})
    beware = "".join(f"- {warning}\n" for warning in warnings)
    starts = f"{chosen.episodes} starts from {chosen.first_evaluation_start} on"
    return f"""\
# Does the simulation rank policies as a stand-in for reality does?

**Simulation against simulation: no robot was involved.** The stand-in is the task `{policy.facts["task"]}` with
{stand_in}. The simulation is the task as it is. The identified simulation has the look of the task as it is and the
dynamics that were fitted to {chosen.logs} episodes of {chosen.log_steps} steps logged in the stand-in: where the end
effector went along the expert's actions.

- machine: {machine["cpu"]}, {machine["cores"]} cores
- each rate: success ever over {starts}, the same in all worlds, with Wilson's interval

{markdown(POLICY_COLUMNS, map(_policy_cells, rows))}
MMRV (0 is best) and Pearson's r with the stand-in, with bootstrap intervals over policies and episodes; the mean gap is
that of the rates.

{markdown(AGREEMENT_COLUMNS, [_agreement_cells(name, agreements[name], rows) for name in agreements])}
{beware}
{_fit_in_words(fit)}
"""


def _fit_in_words(fit: Json) -> str:
    def error(of: Json) -> str:
        return f"{1000 * of['position_m']:.2f} mm and {math.degrees(of['rotation_rad']):.2f} degrees"

    return (
        f"Identification, {fit['replays']} replays of all logs: the end effector's error along them fell from "
        f"{error(fit['before'])} to {error(fit['after'])}, with {_in_words(fit['dynamics'])}. Stiffness and damping of "
        "a servo show in its response as their ratio above all, so that several pairs follow the same logs alike."
    )


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " and ".join(map(_in_words, value))
    return f"{value:.3g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)
