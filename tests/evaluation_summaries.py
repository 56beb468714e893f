"""Summaries of evaluations whose outcomes are known by hand."""

from __future__ import annotations

import hashlib

from embodied.evaluation.statistics import wilson_interval

START = 100000
MACHINE = {
    "cpu": "one",
    "cores": 2,
    "memory_bytes": 8,
    "system": "Linux",
    "python": "3.12",
    "torch": "2.11",
    "gpu": None,
}


METHOD = {"method_hash": "abc123", "seed": 0}


def latency(p50: float) -> dict:
    return {"p50": p50, "p95": 1.2 * p50, "p99": 1.5 * p50, "mean": 1.05 * p50, "n": 200}


def evaluation(outcomes: str, *, setting: str = "sdp k=2", p50: float = 2.0, action_steps: int = 4, **changes) -> dict:
    """The summary of one evaluation; `outcomes` has a letter a start: '1' success, '0' failure, 'e' error."""
    episodes = [
        {
            "start": START + index,
            "policy_seed": 0,
            "success_ever": outcome == "1",
            "success_last": outcome == "1" and index > 0,
            "first_success": 40 if outcome == "1" else None,
            "return": 1.0 if outcome == "1" else 0.0,
            "max_reward": None if outcome == "e" else float(outcome == "1"),
            "length": 0 if outcome == "e" else 100,
            "error": "the simulator died" if outcome == "e" else None,
            "recording": None,
        }
        for index, outcome in enumerate(outcomes)
    ]
    k, n = outcomes.count("1"), len(outcomes) - outcomes.count("e")
    low, high = wilson_interval(k, n)
    rate = {"k": k, "n": n, "rate": k / n, "low": low, "high": high}
    summary = {
        "command": "eval",
        "version": "0.1.0",
        "config_hash": hashlib.sha256(setting.encode()).hexdigest(),
        "created": "2025-01-01T00:00:00+00:00",
        "machine": MACHINE,
        "task": "robosuite/lift",
        "policy": "sdp",
        "network": "transformer",
        "setting": setting,
        "run_time_settings": {"k": 2, "initialization": "denoise"},
        "checkpoint": {"run": "outputs/train/lift-sdp-0-abc", "step": 1500, "config_hash": "def456", **METHOD},
        "parameters": 1200000,
        "horizon": 100,
        "action_steps": action_steps,
        "history": 2,
        "buffer": 16,
        "network_calls_per_observation": 2.0,
        "network_calls_per_action": 2.0 / action_steps,
        "first_observation_calls": 10,
        "episodes": episodes,
        "success": {"ever": rate, "last": rate},
        "mean_return": k / n,
        "mean_max_reward": {"mean": k / n, "n": n, "low": low, "high": high},
        "mean_steps_to_success": 40.0 if k else None,
        "errors": outcomes.count("e"),
        "timings": {
            "wall_s": 12.0,
            "latency": {
                "observation_ms": latency(p50),
                "encode_ms": latency(0.1),
                "denoise_ms": latency(p50 - 0.1),
                "action_ms": {"p50": p50 / action_steps, "p95": 1.2 * p50 / action_steps},
                "first_observation_ms": 5 * p50,
                "network_call_ms": latency(p50 / 2.2),
                "overhead_ratio": 1.1,
                "threads": 1,
            },
        },
    }
    return {**summary, **changes}


def moved(outcomes: str, by: int, **changes) -> dict:
    """An evaluation whose starts begin later."""
    summary = evaluation(outcomes, **changes)
    for episode in summary["episodes"]:
        episode["start"] += by
    return summary


def as_summary(result: dict) -> dict:
    """What the command makes of a result."""
    common = {key: evaluation("1")[key] for key in ("version", "config_hash", "created", "machine")}
    files = {"table": "comparison.md", "figure": "comparison.png"}
    evaluations = ["a"] * len(result["rows"])
    return {**result, "command": "compare", **common, "evaluations": evaluations, "files": files}


# 11 of 20 starts are discordant, 9 of them in favour of A: the golden p of 9 against 2.
A = "1" * 9 + "0" * 2 + "1" * 6 + "0" * 3
B = "0" * 9 + "1" * 2 + "1" * 6 + "0" * 3
