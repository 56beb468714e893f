"""Jerk and chunk-seam jump of executed actions, against motions whose derivatives are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from toy_specs import absolute_spec, toy_spec

from embodied.evaluation.smoothness import seam_steps, smoothness
from embodied.types import Episode, Rollout

T = 40


def rollout_of(action_TA, chunk_steps):
    count = len(action_TA)
    zeros = np.zeros(count, np.float32)
    episode = Episode(
        "toy/reach", 0, {}, {}, action_TA.astype(np.float32), action_TA.astype(np.float32), zeros, zeros > 0, zeros,
        np.zeros((count, 0)),
    )  # fmt: skip
    chunks = len(chunk_steps)
    empty = np.zeros((chunks, 0), np.float32)
    return Rollout(
        episode, np.array(chunk_steps, np.int64), np.zeros((chunks, 4, action_TA.shape[1]), np.float32),
        empty[..., None], empty, np.zeros(chunks, np.float32), np.zeros(chunks, np.int64),
    )  # fmt: skip


def test_a_cubic_of_absolute_targets_has_the_jerk_of_its_third_derivative():
    t = np.arange(T) / T
    action = np.stack([2 * t**3, np.zeros(T), np.sign(t - 0.5)], axis=1)  # the last one is binary, and not counted
    spec = absolute_spec().action
    found = smoothness(rollout_of(action, [0]), spec, 0, 0)
    # The third difference of 2 t^3 is 12 dt^3 in x, 0 in y: root mean square over both.
    assert found["jerk"] == pytest.approx(12 / T**3 / np.sqrt(2), rel=1e-2)
    assert found["seam_jump"] is None  # one chunk


def test_deltas_are_velocities_of_what_they_command():
    t = np.arange(T) / T
    action = np.stack([3 * t**2, -3 * t**2, np.zeros(T)], axis=1)
    found = smoothness(rollout_of(action, [0]), toy_spec().action, 0, 0)
    assert found["jerk"] == pytest.approx(6 / T**2, rel=1e-3)


def test_wide_ranges_make_the_same_change_smaller():
    action = np.random.default_rng(0).uniform(-1, 1, (T, 3))
    spec = toy_spec().action
    wide = dataclasses.replace(spec, low=(-4.0, -4.0, -1.0), high=(4.0, 4.0, 1.0))
    one, other = (smoothness(rollout_of(action, [0, 4]), s, 0, 0) for s in (spec, wide))
    for name in ("jerk", "seam_jump", "step_change"):
        assert one[name] == pytest.approx(4 * other[name])


def test_a_stair_changes_at_its_seams_alone():
    action = np.repeat(np.arange(T // 4) * 0.25, 4)[:, None] * np.array([[1.0, 1.0, 0.0]])
    rollout = rollout_of(action, range(0, T, 4))
    found = smoothness(rollout, toy_spec().action, 0, 0)
    assert found["seam_jump"] == pytest.approx(0.25) and found["step_change"] == 0
    # A policy that plans for two steps hands over two steps after its observation; later, if it takes longer.
    assert seam_steps(rollout, 2, 2).tolist() == [*range(6, T + 2, 4)]
    assert seam_steps(rollout, 2, 3).tolist() == [*range(7, T + 3, 4)]
    assert seam_steps(rollout, 0, 3).tolist() == [*range(4, T, 4)]
    late = smoothness(rollout, toy_spec().action, 2, 2)
    assert late["seam_jump"] == 0 and late["step_change"] > 0


def test_an_episode_too_short_for_a_third_difference_has_no_jerk():
    found = smoothness(rollout_of(np.zeros((2, 3)), [0]), absolute_spec().action, 0, 0)
    assert found["jerk"] is None and found["step_change"] == 0
