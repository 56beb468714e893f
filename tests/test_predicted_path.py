"""Where the tool would go if the predicted actions were executed."""

from __future__ import annotations

import numpy as np
import pytest
from made_rollouts import AHEAD, PREVIEWED, SPEC, TOOL, make_saved_rollout

from embodied.replay.predicted_path import metres_per_unit, predicted_by_step, predicted_paths, tool_response
from embodied.types import ActionSpec


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (("0.05 m", "5 cm", "50mm"), [0.05] * 3),
        (("m", "m", "m"), [1.0] * 3),
        (("1e-2 m", "m", "m"), [0.01, 1.0, 1.0]),
        (("0.05 rad", "m", "m"), None),
        (("m/s", "m", "m"), None),
        (("mrad", "m", "m"), None),
    ],
)
def test_units_say_how_far_an_action_moves_the_tool(units, expected):
    spec = ActionSpec(units=units, **_without_units())
    found = metres_per_unit(spec)
    assert found is None if expected is None else found.tolist() == pytest.approx(expected)


def _without_units() -> dict:
    return {
        "elements": ("x", "y", "z"),
        "low": (-1.0,) * 3,
        "high": (1.0,) * 3,
        "binary": (False,) * 3,
        "representation": "delta",
        "rotation": "none",
    }


def test_predicted_paths_start_at_the_tool_and_sum_the_deltas():
    saved = make_saved_rollout()
    rollout = saved.rollout
    chunk, preview = predicted_paths(rollout, saved.scene, saved.body_poses, SPEC.action)
    tool = saved.body_poses[rollout.chunk_steps, TOOL, :3]
    assert chunk.shape == (8, AHEAD + 1, 3) and preview.shape == (8, PREVIEWED + 1, 3)
    np.testing.assert_array_equal(chunk[:, 0], tool)
    np.testing.assert_allclose(chunk[:, -1], tool + 0.05 * rollout.chunk_actions[..., :3].sum(axis=1), atol=1e-6)
    np.testing.assert_array_equal(preview[:, 0], chunk[:, -1])
    end = chunk[:, -1] + 0.05 * rollout.preview_actions[..., :3].sum(axis=1)
    np.testing.assert_allclose(preview[:, -1], end, atol=1e-6)
    # A tool that does what it is told follows the predicted path exactly.
    np.testing.assert_allclose(chunk[0], saved.body_poses[: AHEAD + 1, TOOL, :3], atol=1e-6)


def test_a_lagging_tool_shortens_the_predicted_path():
    saved = make_saved_rollout()
    metres = np.full(3, 0.05)
    tool = saved.body_poses[:, TOOL, :3]
    assert tool_response(saved.rollout, tool, metres) == pytest.approx(1.0, abs=1e-5)
    saved.body_poses[:, TOOL, :3] = tool[0] + 0.4 * (tool - tool[0])
    assert tool_response(saved.rollout, saved.body_poses[:, TOOL, :3], metres) == pytest.approx(0.4, abs=1e-5)
    chunk, _ = predicted_paths(saved.rollout, saved.scene, saved.body_poses, SPEC.action)
    np.testing.assert_allclose(chunk[0], saved.body_poses[: AHEAD + 1, TOOL, :3], atol=1e-6)


def test_predictions_stand_at_the_steps_they_were_made_for():
    rollout = make_saved_rollout().rollout
    clean, noisy = predicted_by_step(rollout)
    np.testing.assert_array_equal(clean, rollout.episode.executed)
    assert np.isnan(noisy[:AHEAD]).all()
    np.testing.assert_array_equal(noisy[AHEAD : 2 * AHEAD], rollout.preview_actions[0, :AHEAD])
    np.testing.assert_array_equal(noisy[2 * AHEAD], rollout.preview_actions[1, 0])  # the newest preview wins
