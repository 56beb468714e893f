"""The page of `embodied bench serve`."""

from __future__ import annotations

from embodied.benchmarks.serving_fuzz import OUTCOMES
from embodied.commands.bench_pages import markdown
from embodied.types import Json

ADDED = ("round_trip_ms", "infer_ms", "added_ms", "bare_added_ms", "wake_up_ms")  # the table's columns


def page(rows: list[Json], machine: Json, settings: Json) -> str:
    """Markdown, a section a measurement."""
    by_part = {part: [row for row in rows if row["measurement"] == part] for part in settings["parts"]}
    sections = "\n".join(_SECTIONS[part](found, settings) for part, found in by_part.items() if found)
    policy = ", ".join(f"{name}={value}" for name, value in settings["policy"].items())
    return f"""\
# The policy server

Clients and servers are processes of one machine, over loopback. Compare figures of one table only: other work on the
machine slows all of them.

- machine: {machine["cpu"]}, {machine["cores"]} cores
- policy: {policy}, network {settings["network"]}, engine {settings["engine"]}, random weights

{sections}"""


def _round_trip(rows: list[Json], settings: Json) -> str:
    columns = ("observation", "server ms p50 / p99", "bare loop ms p50 / p99", "ratio p50 / p99", "n of each")
    lines = [
        [
            row["case"],
            _pair(row["timings"]["server_ms"]),
            _pair(row["timings"]["bare_ms"]),
            _ratio(row["timings"]["ratio"]),
            str(row["timings"]["server_ms"]["n"]),
        ]
        for row in rows
    ]
    return f"""\
## A trivial policy beside a bare loop

The bare loop unpacks each frame, answers and checks nothing. The two take turns in blocks of
{settings["block_requests"]} round trips.

{markdown(columns, lines)}"""


def _added(rows: list[Json], settings: Json) -> str:
    columns = (
        "observation",
        "round trip ms p50 / p99",
        "policy's step ms p50 / p99",
        "added ms p50 / p99",
        "added by a bare loop ms p50 / p99",
        "a wake-up ms p50 / p99",
        "n of each",
    )
    lines = [
        [
            row["case"],
            *(_pair(row["timings"][name]) for name in ADDED),
            str(row["timings"]["added_ms"]["n"]),
        ]
        for row in rows
    ]
    return f"""\
## What the server adds to a real policy

Added is the round trip less the policy's own step, request by request. The bare loop calls the same policy, checks
nothing and knows one robot. The two take turns in blocks of {settings["block_requests"]} round trips. A wake-up is the
time until a process that has waited for as long as a step takes goes on, without any server: a request needs two of the
client and the loop's thread, and in the server two more of its inference thread and the connection's.

{markdown(columns, lines)}"""


def _recording(rows: list[Json], settings: Json) -> str:
    columns = (
        "observation",
        "not recorded ms p50 / p99",
        "recorded ms p50 / p99",
        "ratio p50 / p99",
        "n of each",
        "requests written",
        "KB a request",
        "records dropped",
    )
    lines = [
        [
            row["case"],
            _pair(row["timings"]["plain_ms"]),
            _pair(row["timings"]["recorded_ms"]),
            _ratio(row["timings"]["ratio"]),
            str(row["timings"]["plain_ms"]["n"]),
            str(row["figures"]["requests"]),
            f"{row['figures']['bytes'] / max(1, row['figures']['requests']) / 2**10:.1f}",
            str(row["figures"]["dropped"]),
        ]
        for row in rows
    ]
    return f"""\
## With recording

Two servers of the same policy, asked in turn at the task's rate; one of them writes every request with its images.

{markdown(columns, lines)}"""


def _load(rows: list[Json], settings: Json) -> str:
    columns = ("load", "n", "missed", "missed by bare act()", "server ms p50 / p99", "bare act() ms p50 / p99")
    lines = [
        [
            row["case"],
            str(row["timings"]["server_ms"]["n"]),
            *(f"{100 * row['timings']['missed'][name]:.2f} %" for name in ("server", "bare")),
            _pair(row["timings"]["server_ms"]),
            _pair(row["timings"]["bare_ms"]),
        ]
        for row in rows
    ]
    return f"""\
## Sessions at a rate

Each session asks at its rate, with the time of its next request as deadline. Beside it the same requests at the same
times through `Session.act` in one process. Missed: the answer came later, or it is an earlier chunk.

{markdown(columns, lines)}"""


def _soak(rows: list[Json], settings: Json) -> str:
    columns = ("requests", "MB after a tenth", "MB at the end", "growth MB", "requests a second")
    lines = [
        [
            str(row["timings"]["requests"]),
            *(f"{row['timings'][name]:.1f}" for name in ("before_mb", "after_mb", "growth_mb")),
            f"{row['timings']['per_s']:.0f}",
        ]
        for row in rows
    ]
    return f"""\
## Memory over many requests

{markdown(columns, lines)}"""


def _fuzz(rows: list[Json], settings: Json) -> str:
    row = rows[0]
    figures, timings = row["figures"], row["timings"]
    kinds = [
        [kind, *(str(counted.get(outcome, 0)) for outcome in OUTCOMES)] for kind, counted in figures["by_kind"].items()
    ]
    total = ["all", *(str(figures[outcome]) for outcome in OUTCOMES)]
    lived = [[name, "for ever" if s is None else f"{s:.1f}"] for name, s in timings["peers_lived_s"].items()]
    failure = figures["witness_failure"] or "none"
    return f"""\
## Hostile clients

A robot beside them asked for {timings["witness_rounds"]} episodes meanwhile: {figures["witness_differing"]} with other
actions than in a quiet time, failures: {failure}; its slowest answer took {timings["witness_worst_ms"]:.1f} ms.
Refused and closed without a reason: {figures["without_reason"]}. Answered are frames that a mutation left good.

{markdown(("frames", *OUTCOMES), [*kinds, total])}
{markdown(("peer", "s until the server closed it"), lived)}"""


def _ratio(ratio: Json) -> str:
    return f"{ratio['p50']:.2f} / {ratio['p99']:.2f}"


def _pair(summary: Json) -> str:
    return f"{summary['p50']:.3f} / {summary['p99']:.3f}"


_SECTIONS = {
    "round_trip": _round_trip,
    "added": _added,
    "recording": _recording,
    "load": _load,
    "soak": _soak,
    "fuzz": _fuzz,
}
