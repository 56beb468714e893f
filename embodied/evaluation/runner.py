"""Many evaluation episodes over processes or machines, each addressed; results are kept episode by episode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from embodied.catalog import CHUNK_EXECUTOR, make_executor
from embodied.errors import MisfitError, UserError
from embodied.evaluation.episodes import check_delay_fits, check_policy_fits, run_episode
from embodied.evaluation.result_file import BASE, RESULTS, EpisodeAddress, ResultFile
from embodied.evaluation.smoothness import smoothness
from embodied.protocols import Policy, Task
from embodied.types import Json, Rollout

# An evaluation stops when so many episodes in a row end in an error: what they need is gone.
MOST_ERRORS_IN_A_ROW = 10

Recordings = int | Literal["all", "failures"]  # a number: failures first, then successes


class Pool(Protocol):
    """A `ProcessPool` or `RayPool` whose workers are `EpisodeWorker`s."""

    def map(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]: ...

    def map_as_completed(self, items: Iterable[Any]) -> Iterator[tuple[Any, Any]]: ...


MakePool = Callable[[Callable[[], Any]], AbstractContextManager[Pool]]


@dataclass(frozen=True)
class EvaluationPlan:
    """What to run. What worker processes call must be importable there, so picklable."""

    make_task: Callable[[str], Task]  # of a variant; called by workers
    make_policy: Callable[[Task], Policy]  # for that task; called by workers
    draw: Callable[[Task, Rollout], Any]  # what a recording needs of an episode; called by workers
    keep: Callable[[EpisodeAddress, Any], str]  # what was drawn, on disk; says where
    policy_seed: Callable[[int], int]  # of a start id
    starts: Sequence[int]
    recordings: Recordings
    variants: Sequence[str] = (BASE,)
    axes: Sequence[str] = (BASE,)  # of each variant
    delay_steps: int = 0  # that a policy takes to think
    action_noise: float = 0.0  # on what is executed, as a share of half the action range
    executor: Mapping[str, Any] = field(default_factory=lambda: dict(CHUNK_EXECUTOR))  # of conf/executor

    @property
    def addresses(self) -> list[EpisodeAddress]:
        return [EpisodeAddress(variant, start) for variant in self.variants for start in self.starts]

    def axis(self, variant: str) -> str:
        """The axis that a variant is one of."""
        return self.axes[list(self.variants).index(variant)]


@dataclass(frozen=True)
class _Work:
    address: EpisodeAddress
    draw: Literal["never", "failure", "always"] = "never"
    hand_over: bool = False  # the rollout too, and not only its result


@dataclass(frozen=True)
class _Ran:
    row: Json
    drawn: Any = None
    rollout: Rollout | None = None


class EpisodeWorker:
    """What an evaluation process keeps: the task of one variant, the policy, and an executor for it."""

    def __init__(self, plan: EvaluationPlan) -> None:
        self._plan = plan
        self._variant: str | None = None
        self._prepare(plan.variants[0])

    def __call__(self, work: _Work) -> _Ran:
        """One episode. Whatever goes wrong in it is an error of the infrastructure, not a failure of the policy.

        Raises:
            MisfitError: policy and executor do not go together, in whatever episode.
        """
        plan, address = self._plan, work.address
        policy_seed = plan.policy_seed(address.start)
        facts = {
            "variant": address.variant,
            "axis": plan.axis(address.variant),
            "start": address.start,
            "policy_seed": policy_seed,
        }
        self._prepare(address.variant)
        try:
            rollout = run_episode(
                self._task,
                self._policy,
                address.start,
                policy_seed,
                variant=address.variant,
                delay_steps=plan.delay_steps,
                action_noise=plan.action_noise,
                executor=self._executor,
            )
        except MisfitError:
            raise  # of no episode would anything else come
        except UserError as error:
            return _Ran({**facts, **_error_figures(str(error))})
        except Exception as error:
            self._variant = None  # a simulator that broke is not used again
            return _Ran({**facts, **_error_figures(f"{type(error).__name__}: {error}")})
        motion = smoothness(rollout, self._task.spec.action, self._policy.inference_delay, plan.delay_steps)
        row = {**facts, **_figures(rollout), "motion": motion}
        wanted = work.draw == "always" or (work.draw == "failure" and not row["success_ever"])
        return _Ran(row, plan.draw(self._task, rollout) if wanted else None, rollout if work.hand_over else None)

    def _prepare(self, variant: str) -> None:
        """Have the task of this variant, the policy for it, and an executor for that.

        Raises:
            UserError: one cannot be made, or they do not fit each other: no episode could be run.
        """
        if variant == self._variant:
            return
        if self._variant is not None:
            self._task.close()
        self._task = self._plan.make_task(variant)
        self._policy = self._plan.make_policy(self._task)
        check_policy_fits(self._policy, self._task)
        check_delay_fits(self._policy, self._plan.delay_steps)
        self._executor = make_executor(self._plan.executor, self._policy)
        self._variant = variant


def _figures(rollout: Rollout) -> Json:
    episode = rollout.episode
    return {
        "success_ever": episode.success_ever,
        "success_last": episode.success_last,
        "first_success": episode.first_success,
        "stages": {name: bool(reached) for name, reached in rollout.stages.items()},
        "return": float(episode.reward.sum()),
        "max_reward": float(episode.reward.max()),
        "length": episode.length,
        "error": None,
        "recording": None,
    }


def _error_figures(error: str) -> Json:
    return {
        "success_ever": False,
        "success_last": False,
        "first_success": None,
        "stages": {},
        "return": 0.0,
        "max_reward": None,
        "length": 0,
        "error": error,
        "recording": None,
        "motion": None,
    }


def evaluate(
    plan: EvaluationPlan, folder: Path, make_pool: MakePool, report: Callable[[list[Json]], None]
) -> tuple[list[Json], Rollout]:
    """Run every episode that `folder` has no result for yet, and record as many as the plan says.

    Every episode is a function of its address, so one that is recorded afterwards is simply run again.

    Args:
        make_pool: of the workers that the given function makes.
        report: takes all rows so far after each episode.

    Returns:
        One row an episode, in the order of `plan.addresses`, and one rollout.

    Raises:
        UserError: the policy does not fit the task or the executor, processes die, a result is damaged, episodes end in
            errors one after another, or none ran without an error. What ran is kept: the same evaluation goes on from
            there.
    """
    results = ResultFile(folder / RESULTS)
    rows = results.read()
    with make_pool(_Workers(plan)) as pool:
        _run_missing(plan, results, rows, pool, report)
        ordered = [rows[address] for address in plan.addresses]
        chosen = _to_run_again(plan.recordings, ordered)
        keep = isinstance(plan.recordings, int) and plan.recordings > 0
        rollouts = []
        again = [_Work(address, draw="always" if keep else "never", hand_over=not place) for place, address in chosen]
        for work, ran in pool.map(again):
            if ran.rollout is not None:
                rollouts.append(ran.rollout)
            if ran.drawn is not None:
                rows[work.address]["recording"] = plan.keep(work.address, ran.drawn)
    if not rollouts:
        errors = sorted({str(row["error"]) for row in ordered})
        raise UserError(
            expected="at least one episode that runs to its end",
            found=f"errors only ({'; '.join(errors[:3])})",
            remedy="mend what they name, then give the same command again: it tries them again",
        )
    return ordered, rollouts[0]


@dataclass(frozen=True)
class _Workers:
    """Makes a worker, in whatever process."""

    plan: EvaluationPlan

    def __call__(self) -> EpisodeWorker:
        return EpisodeWorker(self.plan)


def _run_missing(
    plan: EvaluationPlan,
    results: ResultFile,
    rows: dict[EpisodeAddress, Json],
    pool: Pool,
    report: Callable[[list[Json]], None],
) -> None:
    """Add the rows that are missing, on disk too, each as its episode ends.

    Raises:
        UserError: episodes end in errors one after another, in the order of their addresses.
    """
    draw: Literal["never", "failure", "always"] = (
        "always" if plan.recordings == "all" else "failure" if plan.recordings == "failures" else "never"
    )
    missing = [_Work(address, draw) for address in plan.addresses if address not in rows]
    to_count, errors = deque(work.address for work in missing), 0
    for work, ran in pool.map_as_completed(missing):
        row = ran.row
        if ran.drawn is not None:
            row["recording"] = plan.keep(work.address, ran.drawn)
        results.append(row)
        rows[work.address] = row
        report(list(rows.values()))
        while to_count and to_count[0] in rows:  # in this order: errors end before what runs beside them
            error = rows[to_count.popleft()]["error"]
            errors = errors + 1 if error else 0
            if errors >= MOST_ERRORS_IN_A_ROW:
                raise UserError(
                    expected="episodes that run to their end",
                    found=f"{errors} errors in a row, the last: {error}",
                    remedy="mend what it names, then give the same command again: it keeps what ran and tries these "
                    "again",
                )


def _to_run_again(recordings: Recordings, rows: Sequence[Json]) -> list[tuple[int, EpisodeAddress]]:
    """Numbered from 0: the episodes to record, and at least one, whose rollout is wanted; errors never.

    Failures come first, then successes, each in the order of their addresses.
    """
    ran = sorted((row for row in rows if row["error"] is None), key=lambda row: row["success_ever"])
    count = max(1, recordings) if isinstance(recordings, int) else 1
    return list(enumerate(EpisodeAddress(row["variant"], row["start"]) for row in ran[:count]))
