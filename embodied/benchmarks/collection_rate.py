"""How many episodes a second a collection makes, by engine and number of workers, and whether they are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from embodied.errors import UserError
from embodied.types import Json

WARM_UP_EPISODES = 2  # a worker: until all of them have begun

Report = Callable[[int, int], None]  # episodes and steps so far


def collection_rate(collect: Callable[[Report], str], workers: int, episodes: int) -> Json:
    """Time one collection from nothing.

    Args:
        collect: collects, reports after every episode, and returns the hash of what it collected.
        workers: that share the work.
        episodes: in all; the first `WARM_UP_EPISODES` of each worker do not count.

    Returns:
        "start_s", until those are there; "episodes_per_s" and "steps_per_s" from then on; "content_hash".

    Raises:
        UserError: too few episodes to time any.
    """
    first = WARM_UP_EPISODES * workers
    if episodes <= first:
        raise UserError(
            expected=f"more than {first} episodes: {workers} workers begin with so many, which are not timed",
            found=str(episodes),
            remedy="raise collect.episodes",
        )
    seen: list[tuple[float, int, int]] = []
    begun_s = time.perf_counter()
    content_hash = collect(lambda episodes, steps: seen.append((time.perf_counter() - begun_s, episodes, steps)))
    start_s, first_episodes, first_steps = next(moment for moment in seen if moment[1] >= first)
    end_s, all_episodes, all_steps = seen[-1]
    return {
        "start_s": start_s,
        "episodes_per_s": (all_episodes - first_episodes) / (end_s - start_s),
        "steps_per_s": (all_steps - first_steps) / (end_s - start_s),
        "content_hash": content_hash,
    }


def rate_row(rounds: Sequence[Json], alone: Sequence[Json]) -> Json:
    """Medians over the rounds of one engine and number of workers, and how much faster than `alone` they were, round
    by round; "same_content": whether all collected the same."""
    speedups = [ours["episodes_per_s"] / base["episodes_per_s"] for ours, base in zip(rounds, alone, strict=True)]
    timings = {
        name: float(np.median([result[name] for result in rounds]))
        for name in ("start_s", "episodes_per_s", "steps_per_s")
    }
    return {
        "same_content": len({result["content_hash"] for result in (*rounds, *alone)}) == 1,
        "timings": {
            **timings,
            "speedup": {"median": float(np.median(speedups)), "low": min(speedups), "high": max(speedups)},
        },
    }
