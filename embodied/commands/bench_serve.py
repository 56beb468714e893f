"""`embodied bench serve`: what the policy server adds, whether it holds rates, what hostile clients do to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from embodied import wire
from embodied.benchmarks.bare_websocket_loop import bare_loop
from embodied.benchmarks.serving_fuzz import OUTCOMES, Witness, fuzz, hostile_sockets
from embodied.benchmarks.serving_load import load, missed_share, percentiles, replayed, round_trips, soak
from embodied.benchmarks.wake_ups import wake_ups
from embodied.catalog import nearest
from embodied.commands.bench_pages import run_with_page
from embodied.commands.serve_page import page
from embodied.commands.served_processes import (
    ACTION_STEPS,
    ServedSpec,
    bare_real,
    real_policy,
    running,
    serve_real,
    serve_recorded,
    serve_trivial,
)
from embodied.console import Progress, say
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.serving.warm_up import made_observation
from embodied.summaries import describe_machine
from embodied.types import Json

WITNESS_REQUESTS = 20
PEERS_TIMEOUT_S = 30.0
USUAL_POLICY: Json = {"name": "sdp", "k": 1, "history": 1}
CONTROL_HZ = 50.0  # of the served specs; deadlines are the requests' own
LOAD: Json = {"sessions": 8, "rate_hz": 50, "seconds": 600}  # what a load says, with the target's values
UNHURRIED: Json = {"deadline_periods": 1000.0}  # nothing is answered before it is computed


def run(config: DictConfig) -> Path:
    """Measure and write the page.

    Raises:
        UserError: an unknown part, a load that says too little, settings that do not fit, or a folder for the results
            that cannot be written.
    """
    for part in config.serve.parts:
        if part not in PARTS:
            raise UserError(expected="the name of a part", found=f"'{part}'", remedy=nearest(str(part), PARTS))
    for wanted in config.serve.loads:
        if set(wanted) != set(LOAD) or any(not isinstance(x, int | float) or x <= 0 for x in wanted.values()):
            raise UserError(
                expected=f"a load of serve.loads as {', '.join(LOAD)}, all above 0",
                found=str(wanted),
                remedy=f"for example {{{', '.join(f'{name}: {value}' for name, value in LOAD.items())}}}",
            )
    return run_with_page(config, "serve", _measured)


def _measured(directory: RunDirectory) -> tuple[list[Json], str]:
    settings: Json = OmegaConf.to_container(directory.config.serve, resolve=True)  # type: ignore[assignment]
    settings["policy"] = settings["policy"] or USUAL_POLICY
    rows: list[Json] = []
    for part in settings["parts"]:
        for row in PARTS[part](settings, directory.config.seed):
            rows.append(row)
            say(f"{row['measurement']}, {row['case']}: {_in_words({**row.get('figures', {}), **row['timings']})}")
    return rows, page(rows, describe_machine(), settings)


def _cases(settings: Json) -> dict[str, ServedSpec]:
    """State alone, and with the cameras."""
    sizes = {"state_size": settings["state_size"], "action_size": settings["action_size"], "control_hz": CONTROL_HZ}
    size, cameras = settings["camera_size"], settings["cameras"]
    return {
        "state": ServedSpec(**sizes, cameras=0, camera_size=size),
        f"state, {cameras} images {size} x {size}": ServedSpec(**sizes, cameras=cameras, camera_size=size),
    }


def _round_trip(settings: Json, seed: int) -> list[Json]:
    """A trivial policy beside the bare loop, which gives an equal answer."""
    rows = []
    for case, spec in _cases(settings).items():
        reply = {"actions": np.zeros((ACTION_STEPS, spec.action_size), np.float32), "server_timing": {"infer_ms": 0.0}}
        with (
            running(functools.partial(serve_trivial, spec, UNHURRIED)) as ours,
            running(functools.partial(bare_loop, reply)) as bare,
        ):
            addresses = {"server": ours.ask("address"), "bare": bare.ask("address")}
            frame = wire.pack(spec.message())
            took, _ = round_trips(addresses, frame, settings["blocks"], settings["block_requests"])
        server, loop = percentiles(took["server"]), percentiles(took["bare"])
        timings = {"server_ms": server, "bare_ms": loop, "ratio": {k: server[k] / loop[k] for k in ("p50", "p99")}}
        rows.append({"measurement": "round_trip", "case": case, "timings": timings})
    return rows


def _added(settings: Json, seed: int) -> list[Json]:
    """The real policy: what a round trip takes beyond the policy's own step, and what it takes in a bare loop."""
    rows, count = [], settings["blocks"] * settings["block_requests"]
    for case, spec in _cases(settings).items():
        real = _policy_settings(settings)
        with (
            running(functools.partial(serve_real, spec, *real, UNHURRIED)) as ours,
            running(functools.partial(bare_real, spec, *real)) as bare,
        ):
            addresses = {"server": ours.ask("address"), "bare": bare.ask("address")}
            frame = wire.pack(spec.message())
            took, infer = round_trips(addresses, frame, settings["blocks"], settings["block_requests"])
        timings = {
            "round_trip_ms": percentiles(took["server"]),
            "infer_ms": percentiles(infer["server"]),
            "added_ms": percentiles(took["server"] - infer["server"]),
            "bare_infer_ms": percentiles(infer["bare"]),
            "bare_added_ms": percentiles(took["bare"] - infer["bare"]),
            "wake_up_ms": percentiles(wake_ups(count, float(np.median(infer["server"])) / 1000)),
        }
        rows.append({"measurement": "added", "case": case, "timings": timings})
    return rows


def _recording(settings: Json, seed: int) -> list[Json]:
    """Two servers of the real policy, one of which writes what it is sent, asked in turn at the control rate."""
    rows = []
    for case, spec in _cases(settings).items():
        real = _policy_settings(settings)
        with (
            TemporaryDirectory() as folder,
            running(functools.partial(serve_real, spec, *real, UNHURRIED)) as plain,
            running(functools.partial(serve_recorded, spec, *real, UNHURRIED, folder)) as recorded,
        ):
            addresses = {"plain": plain.ask("address"), "recorded": recorded.ask("address")}
            sizes = settings["blocks"], settings["block_requests"]
            took, _ = round_trips(addresses, wire.pack(spec.message()), *sizes, period_s=1 / CONTROL_HZ)
            written = recorded.ask("recorded")
        plain_ms, recorded_ms = percentiles(took["plain"]), percentiles(took["recorded"])
        timings = {
            "plain_ms": plain_ms,
            "recorded_ms": recorded_ms,
            "ratio": {k: recorded_ms[k] / plain_ms[k] for k in ("p50", "p99")},
        }
        rows.append({"measurement": "recording", "case": case, "figures": written, "timings": timings})
    return rows


def _load(settings: Json, seed: int) -> list[Json]:
    """Sessions at a rate, then the same requests through bare sessions in this process."""
    spec = _cases(settings)["state"]
    rows = []
    for batch in settings["batches"]:
        for wanted in settings["loads"]:
            sessions, rate_hz, seconds = wanted["sessions"], float(wanted["rate_hz"]), float(wanted["seconds"])
            make = functools.partial(serve_real, spec, *_policy_settings(settings), {"largest_batch": batch})
            with running(make) as server:
                trace = load(server.ask("address"), spec.message(), sessions, rate_hz, seconds)
            policy = real_policy(spec, *_policy_settings(settings), 1)
            bare_ms = replayed(policy, made_observation(policy.spec, {}), trace)
            took_ms, deadline_ms = [request.took_ms for request in trace], 1000 / rate_hz
            missed = float(np.mean([r.stale or r.late or r.took_ms > deadline_ms for r in trace]))
            timings = {
                "server_ms": percentiles(took_ms),
                "bare_ms": percentiles(bare_ms),
                "missed": {"server": missed, "bare": missed_share(bare_ms, deadline_ms)},
                "asked_hz": len(trace) / seconds,
            }
            case = f"{sessions} sessions at {rate_hz:g} Hz, {seconds:g} s, batches of up to {batch}"
            rows.append({"measurement": "load", "case": case, "timings": timings})
    return rows


def _soak(settings: Json, seed: int) -> list[Json]:
    """Resident memory over many requests."""
    spec, requests = _cases(settings)["state"], settings["soak_requests"]
    make = functools.partial(serve_real, spec, *_policy_settings(settings), UNHURRIED)
    with running(make) as server, Progress("bench serve, soak", requests, "requests") as progress:
        frame = wire.pack(spec.message())
        figures = soak(server.ask("address"), frame, requests, lambda: server.ask("memory"), progress.advance)
    return [{"measurement": "soak", "case": f"{requests} requests", "timings": figures}]


def _fuzz(settings: Json, seed: int) -> list[Json]:
    """Hostile frames and peers, with a robot beside them that must not notice."""
    spec, frames = _cases(settings)["state"], settings["fuzz_frames"]
    make = functools.partial(serve_real, spec, *_policy_settings(settings), UNHURRIED)
    with running(make) as server, Progress("bench serve, fuzz", frames, "frames") as progress:
        address, message = server.ask("address"), spec.message()
        with Witness(address, message, WITNESS_REQUESTS) as witness:
            counts = fuzz(address, message, frames, seed, progress.advance)
            lived_s = hostile_sockets(address, message, PEERS_TIMEOUT_S)
        memory_mb = server.ask("memory") / 2**20  # it is still there
    figures = {
        "frames": frames,
        **{outcome: counts.total(outcome) for outcome in OUTCOMES},
        "without_reason": counts.without_reason,
        "by_kind": {kind: dict(counted) for kind, counted in counts.by_kind.items()},
        "peers_that_stayed": [name for name, seconds in lived_s.items() if seconds is None],
        "witness_differing": witness.differing,
        "witness_failure": witness.failure,
    }
    timings = {
        "peers_lived_s": lived_s,
        "witness_rounds": witness.rounds,
        "witness_worst_ms": witness.worst_ms,
        "memory_mb": memory_mb,
    }
    return [{"measurement": "fuzz", "case": f"{frames} frames", "figures": figures, "timings": timings}]


PARTS: dict[str, Callable[[Json, int], list[Json]]] = {
    "round_trip": _round_trip,
    "added": _added,
    "recording": _recording,
    "load": _load,
    "soak": _soak,
    "fuzz": _fuzz,
}


def _policy_settings(settings: Json) -> tuple[str, Json, str]:
    return settings["network"], settings["policy"], settings["engine"]


def _in_words(figures: Json) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_value(value)}" for name, value in figures.items() if name != "by_kind"
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{name} {_value(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
