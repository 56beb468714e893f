"""Episodes of a policy in a world, for benchmarks that compare worlds: nothing is recorded, and what ran stays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from embodied.catalog import make_task
from embodied.commands.evaluated_policy import EvaluatedPolicy
from embodied.evaluation.result_file import BASE
from embodied.evaluation.runner import EvaluationPlan, evaluate
from embodied.policies.seeded_noise import mixed_seed
from embodied.process_pool import pool_of
from embodied.protocols import Task
from embodied.types import Json, Rollout


def episodes(
    policy: EvaluatedPolicy,
    task: Json,
    folder: Path,
    starts: Sequence[int],
    *,
    seed: int,
    workers: int | None,
    delay_steps: int = 0,
) -> list[Json]:
    """A row an episode, as an evaluation keeps it; episodes that `folder` has are not run again.

    Args:
        task: settings of the world.
        seed: of the policy's noise; each start derives its own from it.
        delay_steps: control steps that the policy takes to think.

    Raises:
        UserError: the policy does not fit the task or the delay, or no episode ran to its end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = EvaluationPlan(
        make_task=functools.partial(_make, task),
        make_policy=policy.make_policy,
        draw=_nothing,
        keep=_nowhere,
        policy_seed=functools.partial(mixed_seed, seed),
        starts=starts,
        recordings=0,
        delay_steps=delay_steps,
    )
    rows, _ = evaluate(plan, folder, functools.partial(pool_of, workers=workers), lambda rows: None)
    return rows


def _make(task: Json, variant: str) -> Task:
    assert variant == BASE
    return make_task(task)


def _nothing(task: Task, rollout: Rollout) -> None:
    return None


def _nowhere(address: object, drawn: None) -> str:
    raise AssertionError("nothing is recorded")
