"""`embodied bench delay`: what a delay between robot and policy costs, by the way in which chunks are executed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from embodied.catalog import make_task
from embodied.commands.bench_episodes import episodes
from embodied.commands.bench_pages import markdown, results_folder, run_with_page
from embodied.commands.evaluated_policy import EvaluatedPolicy, evaluated_policy
from embodied.configuration import check, quote
from embodied.console import Progress, table
from embodied.errors import UserError
from embodied.evaluation.breakdown import mean_steps_to_success, success, success_within
from embodied.evaluation.delay_plot import DelayPanel, delay_figure
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json

PICTURE = "delay.png"
IN_TIME = 1.5  # times the mean steps to success of the same mode at the first delay
SETTINGS = ("name", "run", "overlapped", "policy")


@dataclass(frozen=True)
class Mode:
    """One way of execution: a checkpoint, whether it plans for the delay, and its run-time settings."""

    name: str
    run: str
    overlapped: bool
    policy: Json

    def at(self, delay_steps: int, run_root: str) -> EvaluatedPolicy:
        """The policy as it acts under this delay.

        Raises:
            UserError: no such checkpoint, or one that cannot plan for the delay.
        """
        settings = {**self.policy, **({"inference_delay": delay_steps} if self.overlapped else {})}
        words = [
            f"policy.{name}={quote(value) if isinstance(value, str) else value}" for name, value in settings.items()
        ]
        return evaluated_policy(check("eval", [f"run={quote(self.run)}", f"run_root={quote(run_root)}", *words]))


def run(config: DictConfig) -> Path:
    """Evaluate every mode at every delay, and write the page and the curve.

    Raises:
        UserError: no modes or delays, a mode that is none, policies of different tasks, or an evaluation that fails.
    """
    summary = run_with_page(config, "delay", _measured)
    if config.results is not None:
        with results_folder(config.results) as folder:
            (folder / PICTURE).write_bytes((summary.parent / PICTURE).read_bytes())
    return summary


def _measured(directory: RunDirectory) -> tuple[list[Json], str]:
    config = directory.config
    modes, delays_ms = _modes(config), _delays(config)
    first = modes[0].at(0, config.run_root)
    control_hz = _control_hz(first)
    steps = [delay_steps(ms, control_hz) for ms in delays_ms]
    chosen = config.delay
    starts = range(chosen.first_start, chosen.first_start + chosen.episodes)
    rows: list[Json] = []
    with Progress("bench delay", len(modes) * len(steps) * chosen.episodes, "episodes") as progress:
        for number, mode in enumerate(modes):
            row: Json = {"mode": mode.name, "overlapped": mode.overlapped, "success": []}
            ran = []
            for delay in steps:
                policy = mode.at(delay, config.run_root)
                if policy.task != first.task:
                    raise _other_task(mode, first.facts["task"], policy.facts["task"])
                folder = directory.path / "episodes" / f"{number}-{delay}"
                ran.append(
                    episodes(
                        *(policy, policy.task, folder, starts),
                        seed=config.seed,
                        workers=config.workers,
                        delay_steps=delay,
                    )
                )
                row["success"].append({"delay_steps": delay, "label": policy.label, **success(ran[-1])["ever"]})
                progress.advance(chosen.episodes)
            row["largest_fall"] = _largest_fall(row["success"])
            rows.append(row | _in_time(ran))
    columns = _columns(delays_ms, steps)
    table(columns, [_cells(row) for row in rows])
    panels = [
        DelayPanel(title, {row["mode"]: dict(zip(delays_ms, row[kind], strict=True)) for row in rows if row[kind]})
        for kind, title in (("success", "ever"), ("in_time", f"within {IN_TIME:g} times the steps at the first delay"))
    ]
    delay_figure(panels, "ms").savefig(directory.path / PICTURE)
    return rows, _page(config, first.facts["task"], control_hz, columns, rows)


def _in_time(ran: Sequence[Sequence[Json]]) -> Json:
    """Of one mode, delay by delay: how long successes take, and how many come in time."""
    times = [mean_steps_to_success(rows) for rows in ran]
    if times[0] is None:
        return {"mean_steps_to_success": times, "in_time": [], "largest_fall_in_time": None}
    in_time = [success_within(rows, IN_TIME * times[0]) for rows in ran]
    return {
        "mean_steps_to_success": times,
        "in_time": in_time,
        "largest_fall_in_time": _largest_fall(in_time),
    }


def _largest_fall(rates: Sequence[Json]) -> float:
    return rates[0]["rate"] - min(one["rate"] for one in rates)


def delay_steps(delay_ms: float, control_hz: float) -> int:
    """Control steps until actions are there that take so long: those that come within a step are for the next one."""
    return math.ceil(delay_ms / 1000 * control_hz - 1e-9)


def _modes(config: DictConfig) -> list[Mode]:
    given = OmegaConf.to_container(config.delay.modes, resolve=True)
    modes = []
    for settings in given if isinstance(given, list) else []:
        wrong = sorted(set(settings) - set(SETTINGS)) if isinstance(settings, dict) else ["no map"]
        if wrong or not {"name", "run"} <= set(settings):
            raise UserError(
                expected=f"delay.modes with name and run, and if need be {', '.join(SETTINGS[2:])}",
                found=", ".join(wrong) or json.dumps(settings),
                remedy="for example {name: prefix, run: outputs/train/<run>, overlapped: true}",
            )
        modes.append(
            Mode(
                str(settings["name"]),
                str(settings["run"]),
                bool(settings.get("overlapped", False)),
                settings.get("policy") or {},
            )
        )
    if not modes:
        raise UserError(
            expected="ways of execution in delay.modes",
            found="none",
            remedy="name some: delay.modes=[{name: synchronous, run: RUN}, {name: prefix, run: RUN, overlapped: true}]",
        )
    return modes


def _delays(config: DictConfig) -> list[float]:
    delays = list(config.delay.delays_ms)
    if not delays or any(not isinstance(ms, int | float) or ms < 0 for ms in delays) or delays != sorted(set(delays)):
        raise UserError(
            expected="delay.delays_ms as rising numbers of at least 0, in ms",
            found=str(delays),
            remedy="for example [0, 100, 200, 300]",
        )
    return delays


def _control_hz(policy: EvaluatedPolicy) -> float:
    task = make_task(policy.task)
    try:
        return task.spec.control_hz
    finally:
        task.close()


def _other_task(mode: Mode, wanted: str, found: str) -> UserError:
    return UserError(
        expected=f"policies of one task with the same settings, {wanted}",
        found=f"{found} in mode '{mode.name}'" + (" with other settings" if found == wanted else ""),
        remedy="name policies that were trained for the same task",
    )


def _columns(delays_ms: list[float], steps: list[int]) -> list[str]:
    delays = [f"{ms:g} ms\n({step} steps)" for ms, step in zip(delays_ms, steps, strict=True)]
    return ["mode", *delays, "largest fall"]


def _cells(row: Json) -> list[str]:
    return [row["mode"], *map(_rate, row["success"]), f"{row['largest_fall']:.3f}"]


def _cells_in_time(row: Json) -> list[str]:
    return [row["mode"], *map(_rate, row["in_time"]), f"{row['largest_fall_in_time']:.3f}"]


def _rate(rate: Json) -> str:
    return "{k}/{n} [{low:.2f}, {high:.2f}]".format(**rate)


def _times(row: Json) -> list[str]:
    return [row["mode"], *("" if steps is None else f"{steps:.1f}" for steps in row["mean_steps_to_success"])]


def _page(config: DictConfig, task: str, control_hz: float, columns: list[str], rows: list[Json]) -> str:
    machine, chosen = describe_machine(), config.delay
    labels = "".join(f"- {row['mode']}: {row['success'][0]['label']}; at the last delay {_last(row)}\n" for row in rows)
    return f"""\
# Success over the delay between robot and policy

Task `{task}`, {control_hz:g} control steps a second. The world goes on while the policy thinks: so much time lies
between an observation and the actions that were computed from it. A synchronous robot holds meanwhile; an overlapped
one executes what was planned before, and its policy plans for the delay (`policy.inference_delay`). The first chunk of
an episode is there as it begins. The robot's side executes the same actions as this evaluation, bit by bit
(`tests/test_robot_and_server.py`).

- machine: {machine["cpu"]}, {machine["cores"]} cores
- each rate: success ever over {chosen.episodes} starts from {chosen.first_start} on, the same in every cell, with
  Wilson's interval; the largest fall is that below the mode's own rate at the first delay
{labels}
{markdown(columns, map(_cells, rows))}
Who waits takes longer. Success within {IN_TIME:g} times the mean steps that the mode itself takes at the first delay:

{markdown(columns, [_cells_in_time(row) for row in rows if row["in_time"]])}
Control steps until the first success, the mean of the episodes that had one:

{markdown(columns[:-1], map(_times, rows))}
![success over delay]({PICTURE})
"""


def _last(row: Json) -> str:
    return row["success"][-1]["label"]
