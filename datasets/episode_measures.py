"""What is measured of each episode of a store, and of its actions, in one pass that holds one episode.

T time, A action, E episodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from embodied.datasets.diffusion_policy_zarr import DiffusionPolicyZarr
from embodied.protocols import DemonstrationStore
from embodied.types import ActionSpec

SAMPLED_ROWS = 50_000  # at most, evenly spaced, kept for quantiles and pictures
AT_BOUND = 1e-6  # of an element's range: nearer to its bound than this is at the bound
LATE = 1.5  # control steps between two rows: later is a gap


@dataclass(frozen=True)
class EpisodeMeasure:
    """One episode. Shares are of its steps."""

    seed: int
    length: int  # steps
    success: bool | None  # at any step; None where it was not recorded
    first_success: int | None  # steps, counted from 1
    jerk: float | None  # see `jerk`; None where it is too short for one
    idle_steps: int
    longest_idle: int  # steps in a row
    clipped_share: float  # with an element at or beyond its bound
    gaps: int  # between rows: later than control_hz says, or not later at all
    largest_gap_s: float  # between two rows; 0 for an episode of one step


@dataclass
class StoreMeasures:
    """All episodes, and what is counted over all of their steps."""

    episodes: list[EpisodeMeasure] = field(default_factory=list)
    samples: dict[str, np.ndarray] = field(default_factory=dict)  # by key, float [rows d], evenly spaced
    at_low: np.ndarray = field(default_factory=lambda: np.zeros(0))  # share of all steps, float64 [A]
    at_high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    duplicates: list[list[int]] = field(default_factory=list)  # seeds of episodes with equal states and actions
    is_recorded: bool = True  # times and success; False: a reader would compute them, and nothing could show in them


def measure_store(
    store: DemonstrationStore,
    action_range: np.ndarray,
    idle_share: float,
    advance: Callable[[], None],
) -> StoreMeasures:
    """Measure every episode.

    Args:
        action_range: of each element, float64 [A]; 0 for one that never moves.
        idle_share: of the range, see `idle`.
        advance: called after each episode.

    Raises:
        UserError: damaged data.
    """
    result = StoreMeasures(is_recorded=not isinstance(store, DiffusionPolicyZarr))
    state_keys = [f"state/{state.name}" for state in store.spec.state]
    parts: dict[str, list[np.ndarray]] = {key: [] for key in [*state_keys, "action"]}
    every = -(-store.total_steps // SAMPLED_ROWS)
    low, high = (np.zeros(store.spec.action.size) for _ in range(2))
    seen: dict[bytes, list[int]] = {}
    start = 0
    for row, end in zip(store.rows, store.episode_ends.tolist(), strict=True):
        arrays = {key: store.read_rows(key, start, end) for key in parts}
        for key, values in arrays.items():
            parts[key].append(values[-start % every :: every])
        at_low, at_high = at_bounds(arrays["action"], store.spec.action)
        low, high = low + at_low.sum(axis=0), high + at_high.sum(axis=0)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in arrays.values()))
        seen.setdefault(digest.digest(), []).append(int(row.seed))
        is_idle = idle(arrays["action"], store.spec.action, action_range, idle_share)
        success, steps_s = _outcomes(store, start, end) if result.is_recorded else (None, np.zeros(0))
        succeeds = success is not None and bool(success.any())
        result.episodes.append(
            EpisodeMeasure(
                seed=int(row.seed),
                length=end - start,
                success=None if success is None else succeeds,
                first_success=int(np.argmax(success)) + 1 if success is not None and succeeds else None,
                jerk=jerk(arrays["action"], store.spec.action, action_range),
                idle_steps=int(is_idle.sum()),
                longest_idle=longest_run(is_idle),
                clipped_share=float((at_low | at_high).any(axis=1).mean()),
                gaps=int(((steps_s > LATE * store.spec.dt_s) | (steps_s <= 0)).sum()),
                largest_gap_s=float(steps_s.max(initial=0.0)),
            )
        )
        start = end
        advance()
    result.samples = {key: np.concatenate(blocks) for key, blocks in parts.items()}
    result.at_low, result.at_high = low / store.total_steps, high / store.total_steps
    result.duplicates = [seeds for seeds in seen.values() if len(seeds) > 1]
    return result


def _outcomes(store: DemonstrationStore, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Success of each step of an episode, bool [T], and the time from each to the next, s [T - 1]."""
    return store.read_rows("success", start, end), np.diff(store.read_rows("time_s", start, end))


def moving(spec: ActionSpec, action_range: np.ndarray) -> np.ndarray:
    """Which elements command a motion: those that are not binary, and vary. bool [A]."""
    return ~np.asarray(spec.binary, bool) & (action_range > 0)


def idle(actions: np.ndarray, spec: ActionSpec, action_range: np.ndarray, share: float) -> np.ndarray:
    """Steps that command nothing, bool [T], of actions [T A].

    A delta does where every element stays within `share` of its range from 0; an absolute action where none moves by
    more than that from the step before. A binary element that switches is no idle step, and the first step is none
    where actions are absolute.
    """
    elements = moving(spec, action_range)
    before = np.concatenate([actions[:1], actions[:-1]])
    if not elements.any():
        return np.zeros(len(actions), bool)
    motion = actions if spec.representation == "delta" else actions - before
    still = (np.abs(motion[:, elements]) <= share * action_range[elements]).all(axis=1)
    switches = (actions != before)[:, np.asarray(spec.binary, bool)].any(axis=1)
    still &= ~switches
    if spec.representation == "absolute":
        still[:1] = False
    return still


def jerk(actions: np.ndarray, spec: ActionSpec, action_range: np.ndarray) -> float | None:
    """How much the commanded acceleration changes: root mean square a step, in shares of each element's range.

    That is the third difference of absolute actions [T A], the second of deltas, which are differences already. None
    for an episode that is too short, or without elements that move.
    """
    elements = moving(spec, action_range)
    order = 3 if spec.representation == "absolute" else 2
    if len(actions) <= order or not elements.any():
        return None
    shares = actions[:, elements].astype(np.float64) / action_range[elements]
    return float(np.sqrt(np.mean(np.diff(shares, n=order, axis=0) ** 2)))


def at_bounds(actions: np.ndarray, spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Which values are at or beyond their lower and their upper bound, bool [T A] each.

    Binary elements are always at one, and bounds may be infinite: neither counts.
    """
    low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & ~np.asarray(spec.binary, bool)
    margin = AT_BOUND * np.where(bounded, high - low, 0.0)
    return (actions <= low + margin) & bounded, (actions >= high - margin) & bounded


def longest_run(flags: np.ndarray) -> int:
    """The most True values in a row of bool [T]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


def action_ranges(spec: ActionSpec, minimum: np.ndarray, maximum: np.ndarray) -> np.ndarray:
    """The range of each element, float64 [A]: between its bounds, or of the data where it has none."""
    low, high = np.asarray(spec.low, np.float64), np.asarray(spec.high, np.float64)
    bounded = np.isfinite(low) & np.isfinite(high)
    with np.errstate(invalid="ignore"):
        return np.where(bounded, high - low, maximum - minimum)
