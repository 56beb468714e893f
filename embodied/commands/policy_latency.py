"""The latency stage of `embodied bench policy`: all methods of a column in turn, in one process with one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from omegaconf import OmegaConf

from embodied import __version__
from embodied.catalog import make_task
from embodied.commands.matrix_cells import filled
from embodied.commands.policy_matrix import PolicyCell
from embodied.commands.policy_trainings import Runs
from embodied.configuration import check
from embodied.errors import UserError
from embodied.evaluation.episodes import hold
from embodied.evaluation.latency import measure_in_turn
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.lerobot_diffusion import LeRobotDiffusion
from embodied.policies.policy_file import build_policy, load_policy
from embodied.protocols import TimedPolicy
from embodied.run_directory import SUMMARY
from embodied.summaries import describe_machine
from embodied.training.checkpoint import find_checkpoint
from embodied.types import Json, Observation, TaskSpec

ENGINES = ("eager", "onnxruntime")
STREAM_STEPS = 80
FIRST_START = 100000
SMALL = 0.02  # standard deviation of what fresh weights get, since networks begin as the identity


def measure_column(cells: Sequence[PolicyCell], runs: Runs, observations: int, rounds: int) -> Json:
    """Latency of each method of a column on each engine.

    A method is timed with its checkpoint where that is there, else with fresh weights of the same shape, and says so.

    Args:
        cells: of one column.
        observations: of each method in each round.

    Returns:
        what is kept of the column; of each row `label`, `engine`, `training` (a hash of what it is declared as),
        `weights` ("checkpoint" or "fresh"), `refused` (why the engine cannot run the method, or null) and `timings`
        (as `measure_latency`).

    Raises:
        UserError: the task cannot be made, or a checkpoint cannot be read.
    """
    column = cells[0].column
    load_before = os.getloadavg()[0]
    torch.set_num_threads(1)
    trained = next(cell for cell in cells if cell.training.command == "train")
    spec, stream = _stream(_training_config(trained, runs)["task"])
    rows: list[Json] = []
    policies: dict[int, TimedPolicy] = {}
    for cell in cells:
        for engine in ENGINES:
            declared = runs.matrix.training_declared(column, cell.training)
            row: Json = {
                "label": cell.row.label,
                "engine": engine,
                "training": declared,
                "refused": None,
                "timings": {},
            }
            try:
                policy, row["weights"] = _policy(cell, runs, spec, engine)
                _tried(policy, stream)
                policies[len(rows)] = policy
            except UserError as error:
                row["refused"] = str(error)
            rows.append(row)
    for index, timings in measure_in_turn(policies, stream, observations, rounds).items():
        rows[index]["timings"] = timings
    return {
        "task": column.task,
        "column": column.label,
        "observations": observations * rounds,
        "rounds": rounds,
        "version": __version__,
        "machine": describe_machine(),
        "timings": {"load_average_1min": [load_before, os.getloadavg()[0]]},  # above 1 something else ran beside it
        "rows": rows,
    }


def _tried(policy: TimedPolicy, stream: Sequence[Observation]) -> None:
    """An episode's first chunk and a later one, which take different programs: an engine may refuse either."""
    state = policy.initial_state(0)
    for t in (0, policy.action_steps):
        history = [stream[max(t - past, 0)] for past in reversed(range(policy.history))]
        _, (state,) = policy.step([history], [state], [policy.action_steps])


def _policy(cell: PolicyCell, runs: Runs, spec: TaskSpec, engine: str) -> tuple[TimedPolicy, str]:
    """The method of a cell on an engine, and whether its weights are a checkpoint's or fresh.

    Raises:
        UserError: the engine cannot run it.
    """
    directory = runs.directory(cell.column, cell.training)
    if cell.training.command == "lerobot":
        return _lerobot(cell, runs, spec, engine), "checkpoint"
    settings = check("eval", list(cell.evaluation)).policy
    settings = {name: value for name, value in settings.items() if value is not None}
    if (directory / SUMMARY).is_file():
        policy, weights = load_policy(find_checkpoint(directory))[0], "checkpoint"
    else:
        policy, weights = _fresh(cell, runs, spec), "fresh"
    policy.configure(**(settings | {"engine": engine}))
    return policy, weights


def _lerobot(cell: PolicyCell, runs: Runs, spec: TaskSpec, engine: str) -> LeRobotDiffusion:
    if engine != "eager":
        raise UserError(
            expected="LeRobot's policy as LeRobot runs it",
            found=f"policy.engine={engine}",
            remedy="engines run the policies of this program",
        )
    directory = runs.directory(cell.column, cell.training)
    if not (directory / SUMMARY).is_file():
        raise _not_trained(cell)
    given = check("eval", [*runs.source_words(cell, directory), *cell.evaluation]).lerobot
    return LeRobotDiffusion(spec, given.path, given.observation, given.environment_state)


def _not_trained(cell: PolicyCell) -> UserError:
    return UserError(
        expected=f"a finished training {cell.training.name} to time {cell.row.label}",
        found="none",
        remedy="run stage=success first",
    )


def _fresh(cell: PolicyCell, runs: Runs, spec: TaskSpec) -> DenoisingPolicy:
    """The policy of a cell's training as it would begin."""
    if cell.training.command != "train":
        raise _not_trained(cell)
    config = _training_config(cell, runs)
    policy = build_policy(spec, config["policy"], config["network"], config["encoder"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(SMALL * torch.randn(parameter.shape, generator=generator))
    return policy.eval()


def _training_config(cell: PolicyCell, runs: Runs) -> Json:
    """Of `embodied train`; paths that nobody gave are left out, since nothing is read here."""
    words = runs.matrix.training_words(cell.column, cell.training)
    paths = dict.fromkeys(cell.column.places, "absent") | dict(runs.paths)
    return OmegaConf.to_container(check("train", filled(words, paths)), resolve=True)  # type: ignore[return-value]


def _stream(config: Json) -> tuple[TaskSpec, list[Observation]]:
    """Of a robot that holds still in a task; how long a network takes does not depend on what it sees."""
    task = make_task(config)
    try:
        observation = task.reset(FIRST_START)
        spec: TaskSpec = task.spec
        stream = [observation]
        still = hold(spec.action, np.zeros(spec.action.size, np.float32))
        while len(stream) < min(STREAM_STEPS, spec.horizon):
            stream.append(task.step(still).observation)
        return spec, stream
    finally:
        task.close()
