"""Where a policy's predicted actions would lead the tool, as far as the action's spec tells.

Letters: C chunks, Ta actions of a chunk, P actions of a preview, A action.
"""

from __future__ import annotations

import re

import numpy as np

from embodied.types import ActionSpec, Rollout, Scene

_METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_QUANTITY = re.compile(r"\s*(?P<number>[0-9.]+(?:[eE][+-]?[0-9]+)?)?\s*(?P<unit>m|cm|mm)(?![A-Za-z/])")


def metres_per_unit(spec: ActionSpec) -> np.ndarray | None:
    """What 1.0 of the action's first three elements moves the tool by, float64 [3], m; None for another action.

    Known from a delta representation whose first three units are lengths ("m", "0.05 m", "5 cm").
    """
    if spec.representation != "delta" or spec.size < 3:
        return None
    found = [_QUANTITY.match(unit) for unit in spec.units[:3]]
    if any(match is None for match in found):
        return None
    return np.array([float(match["number"] or 1.0) * _METRES[match["unit"]] for match in found if match])


def tool_response(rollout: Rollout, tool_positions: np.ndarray, metres: np.ndarray) -> float:
    """The share of the commanded motion that the tool made, 0.05 .. 1: least squares over windows of one chunk.

    A compliant controller lags behind its commands and makes only a part of each delta before the next one replaces it.

    Args:
        tool_positions: float32 [T 3], m.
        metres: float64 [3], from `metres_per_unit`.
    """
    executed = rollout.episode.executed[:, :3].astype(np.float64) * metres
    span = min(rollout.chunk_actions.shape[1], len(executed) - 1)
    if span < 1:
        return 1.0
    positions = tool_positions.astype(np.float64)
    commanded_until = np.concatenate([np.zeros((1, 3)), np.cumsum(executed, axis=0)])[: len(positions)]
    commanded = commanded_until[span:] - commanded_until[:-span]
    made = positions[span:] - positions[:-span]
    power = float((commanded**2).sum())
    return float(np.clip((commanded * made).sum() / power, 0.05, 1.0)) if power > 0 else 1.0


def predicted_paths(
    rollout: Rollout, scene: Scene, body_poses: np.ndarray, spec: ActionSpec
) -> tuple[np.ndarray, np.ndarray] | None:
    """The tool's path that each chunk asks for, and the one that its preview would add.

    It begins where the tool was when the chunk was handed out. Actions are clipped to the spec's bounds as the task
    clips them. Absolute ones are points of the path, if the scene says where they send the tool. Deltas are summed
    along the world's axes and scaled by `tool_response`, so that the path can be compared with the executed one.

    Returns:
        float32 [C Ta+1 3] and [C P+1 3], m; the second begins where the first ends. None if the actions do not tell.
    """
    if not scene.bodies:
        return None
    tool_positions = body_poses[:, scene.tool, :3]
    start_C13 = tool_positions[rollout.chunk_steps].astype(np.float64)[:, None]
    if spec.representation == "absolute" and scene.targets is not None:
        return _through_targets(rollout, start_C13, spec, np.array(scene.targets))
    metres = metres_per_unit(spec)
    if metres is None:
        return None
    scale = metres * tool_response(rollout, tool_positions, metres)
    low, high = np.asarray(spec.low[:3]), np.asarray(spec.high[:3])

    def follow(start: np.ndarray, actions: np.ndarray) -> np.ndarray:
        deltas = np.clip(actions[..., :3].astype(np.float64), low, high) * scale
        return np.concatenate([start, start + np.cumsum(deltas, axis=1)], axis=1)

    chunk = follow(start_C13, rollout.chunk_actions)
    preview = follow(chunk[:, -1:], rollout.preview_actions)
    return chunk.astype(np.float32), preview.astype(np.float32)


def _through_targets(
    rollout: Rollout, start_C13: np.ndarray, spec: ActionSpec, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    def points(actions: np.ndarray) -> np.ndarray:
        return np.clip(actions.astype(np.float64), spec.low, spec.high) @ targets[:, :-1].T + targets[:, -1]

    chunk = np.concatenate([start_C13, points(rollout.chunk_actions)], axis=1)
    preview = np.concatenate([chunk[:, -1:], points(rollout.preview_actions)], axis=1)
    return chunk.astype(np.float32), preview.astype(np.float32)


def predicted_by_step(rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """For each control step, the newest prediction that a chunk and that a preview made for it.

    Returns:
        float32 [T A] twice; NaN where nothing was predicted.
    """
    steps, size = rollout.episode.executed.shape
    clean = np.full((steps, size), np.nan, np.float32)
    noisy = clean.copy()
    ahead = rollout.chunk_actions.shape[1]
    for chunk, first in enumerate(rollout.chunk_steps):
        _write(clean, first, rollout.chunk_actions[chunk])
        _write(noisy, first + ahead, rollout.preview_actions[chunk])
    return clean, noisy


def _write(rows: np.ndarray, first: int, values: np.ndarray) -> None:
    count = max(min(len(values), len(rows) - first), 0)
    rows[first : first + count] = values[:count]
