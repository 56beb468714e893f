"""How long a policy takes an observation, by network, sampler and engine, each in a process of its own."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf

from embodied.benchmarks.answering_process import AnsweringProcess
from embodied.catalog import STATE_ENCODER
from embodied.errors import UserError
from embodied.evaluation.latency import latency_summary, measure_latency, synchronize
from embodied.policies.denoising_policy import DenoisingPolicy
from embodied.policies.engines.program_cache import FOLDER_VARIABLE
from embodied.policies.policy_file import build_policy
from embodied.types import ActionSpec, Json, Observation, StateSpec, TaskSpec

MB = 2**20
STREAM_STEPS = 200
BATCH_WARM_UP, BATCH_OBSERVATIONS = 3, 20  # of a batch of sessions; the first is another program


@dataclass(frozen=True)
class LatencyCell:
    """One row of the table."""

    network: str  # of conf/network
    policy: str  # of conf/policy
    settings: Mapping[str, Any]  # of the policy
    engine: str
    state_size: int  # values an observation
    action_size: int
    observations: int  # timed
    threads: int  # of the engine, pinned to as many cores
    device: str
    sessions: int = 32  # in one batch, timed too


def measure_cell(cell: LatencyCell) -> Json:
    """
    Returns:
        `label` of the policy, `parameters`, and `timings`: see `measure_latency`, beside them `network_share` of the
        whole act, `first_call_s` (what the engine needs until it has given its first chunk) and `memory_mb` (resident,
        more than before the policy was built; on a GPU the most allocated there), and `sessions_ms`, of an observation
        of each of so many sessions as one batch.

    Raises:
        UserError: the engine cannot run here or cannot run this network.
    """
    process = AnsweringProcess(functools.partial(_measuring, asdict(cell)), functools.partial(_failed, cell))
    try:
        answer = process.ask()
    finally:
        process.close()
    if "refused" in answer:
        raise UserError(**answer["refused"])
    return answer


def _failed(cell: LatencyCell, reason: str) -> UserError:
    return UserError(
        expected=f"{cell.network} with {cell.policy} on {cell.engine} to run",
        found=reason,
        remedy="leave it out with latency.engines= or latency.networks=",
    )


def _measuring(cell: Json) -> functools.partial[Json]:
    return functools.partial(_measure, LatencyCell(**cell))


def _measure(cell: LatencyCell) -> Json:
    pinned = sorted(os.sched_getaffinity(0))[: cell.threads]
    os.sched_setaffinity(0, pinned)
    torch.set_num_threads(cell.threads)
    os.environ[FOLDER_VARIABLE] = ""  # a first call that exports nothing would say nothing
    try:
        return _timed(cell)
    except UserError as error:
        return {"refused": {"expected": error.expected, "found": error.found, "remedy": error.remedy}}


def _timed(cell: LatencyCell) -> Json:
    before = psutil.Process().memory_info().rss
    policy = built_policy(cell)
    stream = _stream(policy.spec, STREAM_STEPS)
    begun = time.perf_counter()
    state = policy.initial_state(0)
    for _ in range(2):  # the first observation and a later one take different programs
        _, (state,) = policy.step([stream[: policy.history]], [state], [policy.action_steps])
    first_call_s = time.perf_counter() - begun
    timings = measure_latency(policy, stream, cell.observations, cell.threads)
    memory = _used_bytes(cell, before)
    network_ms = policy.calls_per_observation * timings["network_call_ms"]["p50"]
    return {
        "label": policy.label,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "calls": policy.calls_per_observation,
        "timings": {
            **timings,
            "network_share": network_ms / timings["observation_ms"]["p50"],
            "first_call_s": first_call_s,
            "memory_mb": memory / MB,
            "sessions_ms": _batch_ms(policy, stream, cell.sessions),
        },
    }


def _batch_ms(policy: DenoisingPolicy, stream: list[Observation], sessions: int) -> Json:
    """Of a later observation of each of `sessions` sessions, all at once."""
    histories = [[stream[b + t] for t in range(policy.history)] for b in range(sessions)]
    states = [policy.initial_state(seed) for seed in range(sessions)]
    samples = []
    for _ in range(BATCH_WARM_UP + BATCH_OBSERVATIONS):
        begun = time.perf_counter()
        _, states = policy.step(histories, states, [policy.action_steps] * sessions)
        synchronize(policy.device)
        samples.append(1000 * (time.perf_counter() - begun))
    return latency_summary(samples[BATCH_WARM_UP:])


def _used_bytes(cell: LatencyCell, before: int) -> int:
    """Resident memory above `before`, or the most that a GPU had allocated."""
    if cell.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(cell.device)
    return psutil.Process().memory_info().rss - before


def built_policy(cell: LatencyCell) -> DenoisingPolicy:
    """The cell's policy with random weights, on its engine."""
    settings = {**cell.settings, "name": cell.policy}
    return made_policy(_spec(cell), cell.network, settings, cell.engine, device=cell.device)


def made_policy(
    spec: TaskSpec,
    network: str,
    policy: Mapping[str, Any],
    engine: str,
    *,
    encoder: str = STATE_ENCODER["name"],
    device: str = "cpu",
) -> DenoisingPolicy:
    """A policy with random weights, to be timed.

    Args:
        network, encoder: of conf/network and conf/encoder.
        policy: `name`, of conf/policy, and settings beside those of that file.

    Raises:
        UserError: settings that do not fit, or an engine that cannot run here.
    """
    torch.manual_seed(0)
    settings = {**_conf("policy", policy["name"]), **policy}
    built = build_policy(spec, settings, _conf("network", network), _conf("encoder", encoder))
    with torch.no_grad():
        for parameter in built.parameters():  # the networks begin as the identity, which would hide differences
            parameter.add_(0.02 * torch.randn(parameter.shape))
    built = built.to(device).eval()
    built.configure(engine=engine)
    return built


def _conf(group: str, name: str) -> dict[str, Any]:
    file = resources.files("embodied.conf") / group / f"{name}.yaml"
    return OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")), resolve=True)  # type: ignore[return-value]


def _spec(cell: LatencyCell) -> TaskSpec:
    elements = tuple(f"a{i}" for i in range(cell.action_size))
    state = StateSpec("state", tuple(f"s{i}" for i in range(cell.state_size)), "1")
    size = cell.action_size
    action = ActionSpec(elements, ("1",) * size, (-1.0,) * size, (1.0,) * size, (False,) * size, "delta", "none")
    return TaskSpec("latency", (state,), (), action, control_hz=20.0, horizon=STREAM_STEPS)


def _stream(spec: TaskSpec, steps: int) -> list[Observation]:
    rows = np.random.default_rng(0).uniform(-1, 1, (steps, spec.state_size)).astype(np.float32)
    return [Observation({"state": row}, time_s=t * spec.dt_s) for t, row in enumerate(rows)]
