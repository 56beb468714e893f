"""Many evaluation episodes over processes; results are appended episode by episode, so a killed run goes on."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embodied.errors import UserError
from embodied.evaluation.episodes import check_policy_fits, run_episode
from embodied.process_pool import ProcessPool
from embodied.protocols import Policy, Task
from embodied.types import Json, Rollout

RESULTS = "episodes.jsonl"


@dataclass(frozen=True)
class EvaluationPlan:
    """What to run. The three callables are imported by the worker processes, so they must be picklable."""

    make_task: Callable[[], Task]
    make_policy: Callable[[], Policy]
    record: Callable[[Task, Rollout], str]  # keeps a rollout for replay and says where
    policy_seed: Callable[[int], int]  # of a start id
    starts: Sequence[int]
    recordings: int


@dataclass(frozen=True)
class _Work:
    start: int
    record: bool = False
    hand_over: bool = False  # the rollout too, and not only its result


class _EpisodeWorker:
    """What an evaluation process keeps: its task and its policy."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        self._task = plan.make_task()
        self._policy = plan.make_policy()
        check_policy_fits(self._policy, self._task)

    def __call__(self, work: _Work) -> tuple[Json, Rollout | None]:
        """The result row, and the rollout where it is asked for."""
        policy_seed = self._plan.policy_seed(work.start)
        try:
            rollout = run_episode(self._task, self._policy, work.start, policy_seed)
        except UserError:
            raise
        except Exception as error:  # the simulator broke: an error of the infrastructure, not a failure of the policy
            return _error_row(work.start, policy_seed, error), None
        row = _row(rollout, policy_seed)
        if work.record:
            row |= {"recording": self._plan.record(self._task, rollout)}
        return row, rollout if work.hand_over else None


def _row(rollout: Rollout, policy_seed: int) -> Json:
    episode = rollout.episode
    return {
        "start": episode.seed,
        "policy_seed": policy_seed,
        "success_ever": episode.success_ever,
        "success_last": episode.success_last,
        "first_success": episode.first_success,
        "return": float(episode.reward.sum()),
        "max_reward": float(episode.reward.max()),
        "length": episode.length,
        "error": None,
        "recording": None,
    }


def _error_row(start: int, policy_seed: int, error: Exception) -> Json:
    return {
        "start": start,
        "policy_seed": policy_seed,
        "success_ever": False,
        "success_last": False,
        "first_success": None,
        "return": 0.0,
        "max_reward": None,
        "length": 0,
        "error": f"{type(error).__name__}: {error}",
        "recording": None,
    }


class ResultFile:
    """One JSON line an episode, on the disk before the next one counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, Json]:
        """Rows by start id. A last line that a crash tore is cut off, and its episode runs again.

        So does one that an earlier version wrote, before there was a maximum reward.

        Raises:
            UserError: another line is damaged.
        """
        if not self._path.exists():
            return {}
        *lines, torn = self._path.read_bytes().split(b"\n")
        if torn:
            self._path.write_bytes(b"".join(line + b"\n" for line in lines))
        rows = dict(self._row(number, line) for number, line in enumerate(lines, 1))
        return {start: row for start, row in rows.items() if "max_reward" in row}

    def _row(self, number: int, line: bytes) -> tuple[int, Json]:
        try:
            row = json.loads(line)
            return int(row["start"]), row
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                expected=f"the result of an episode in line {number} of {self._path}",
                found=f"something unreadable ({type(error).__name__}: {error})",
                remedy="delete that line, then give the same command again: its episode runs again",
            ) from error

    def append(self, row: Json) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def evaluate(
    plan: EvaluationPlan, folder: Path, workers: int | None, report: Callable[[list[Json]], None]
) -> tuple[list[Json], Rollout]:
    """Run every start that `folder` has no result for yet, then record some: failures first.

    Every episode is a function of its start and policy seed, so a recorded one is simply run again.

    Returns:
        One row a start, in the order of `plan.starts`, and one recorded rollout.

    Raises:
        UserError: the policy does not fit the task, a process died, a result is damaged, or no episode ran without an
            error.
    """
    results = ResultFile(folder / RESULTS)
    rows = results.read()
    with ProcessPool(functools.partial(_EpisodeWorker, plan), workers) as pool:
        missing = [_Work(start) for start in plan.starts if start not in rows]
        for work, (row, _) in pool.map(missing):
            results.append(row)
            rows[work.start] = row
            report(list(rows.values()))
        chosen = starts_to_record([rows[start] for start in plan.starts], max(1, plan.recordings))
        keep = plan.recordings > 0  # without recordings one rollout is still run again, for its observations
        rollouts = []
        for work, (row, rollout) in pool.map(_Work(start, record=keep, hand_over=True) for start in chosen):
            if rollout is not None:
                rows[work.start] = row
                rollouts.append(rollout)
    if not rollouts:
        errors = sorted({str(row["error"]) for row in rows.values()})
        raise UserError(
            expected="at least one episode that runs to its end",
            found=f"errors only ({'; '.join(errors[:3])})",
            remedy="mend what they name, then evaluate again with force=true",
        )
    return [rows[start] for start in plan.starts], rollouts[0]


def starts_to_record(rows: Sequence[Json], count: int) -> list[int]:
    """Failures first, then successes, each in the order of their starts; episodes with errors never."""
    ran = [row for row in rows if row["error"] is None]
    return [row["start"] for row in sorted(ran, key=lambda row: row["success_ever"])][:count]
