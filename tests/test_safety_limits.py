"""Safety limits: never exceeded from rest, whatever is asked; and closed forms of braking."""

import dataclasses

import numpy as np
import pytest
from toy_specs import absolute_spec, arm_spec, toy_spec

from embodied.errors import UserError
from embodied.robot.braking import largest_step, slowed
from embodied.robot.fallback import stopping_action
from embodied.robot.safety_limits import SafetyLimiter, SafetyLimits
from embodied.types import ActionGroup, Observation

DT = 0.1
NOTHING_SEEN = Observation(state={})


def limiter(spec, **settings):
    return SafetyLimiter(spec.action, SafetyLimits.from_settings(spec.action, settings), DT)


def at(x, y):
    return Observation(state={"point": np.array([x, y], np.float32)})


def placed_spec():
    """Displacements of 0.1 m whose place the state vector "point" shows."""
    action = toy_spec().action
    groups = (ActionGroup("step", "position", ("dx", "dy"), scale=0.1, reference="point"),)
    return dataclasses.replace(toy_spec(), action=dataclasses.replace(action, groups=groups))


@pytest.mark.parametrize("terms", [1, 2, 3, 10])
def test_braking_from_the_largest_step_ends_exactly_at_the_end(terms):
    """From w = n c the way is c (1 + 2 + ... + n) = c n (n + 1) / 2."""
    room = 0.02 * terms * (terms + 1) / 2
    assert largest_step(np.array([room]), np.array([0.02]))[0] == pytest.approx(0.02 * terms)


def test_braking_fits_any_room_and_nothing_faster_does():
    generator = np.random.default_rng(0)
    for _ in range(300):
        room, change = generator.uniform(0, 3), generator.uniform(0.01, 1)
        w = largest_step(np.array([room]), np.array([change]))[0]

        def way(step, change=change):
            total = 0.0
            while step > 0:
                total, step = total + step, step - change
            return total

        assert way(w) == pytest.approx(room) and way(1.001 * w + 1e-9) > room


def test_without_a_limit_of_acceleration_all_the_room_is_one_step():
    assert largest_step(np.array([0.3, np.inf]), np.array([np.inf, 0.1])).tolist() == [0.3, np.inf]
    assert slowed(np.array([0.5, -0.5, 0.05]), np.array([0.1, 0.1, 0.1])).tolist() == pytest.approx([0.4, -0.4, 0.0])


@pytest.mark.parametrize("seed", range(4))
def test_absolute_targets_keep_range_velocity_and_acceleration_at_every_step(seed):
    spec = absolute_spec()
    limits = limiter(spec, low={"x": -0.5}, high={"x": 0.4}, velocity={"x": 1.0, "y": 2.0}, acceleration=3.0)
    generator = np.random.default_rng(seed)
    places = [np.array([0.1, -0.2])]
    reached = set()
    for _ in range(400):
        wanted = np.array([*generator.choice([-2.0, 0.0, 2.0], 2), generator.choice([-1.0, 1.0])])
        limited = limits.limited(wanted, at(0.1, -0.2))
        reached |= set(limited.reasons)
        assert limited.action[2] == wanted[2], "a gripper is only held to its range"
        places.append(limited.action[:2].astype(np.float64))
    velocity = np.diff(places, axis=0) / DT
    acceleration = np.diff(velocity, axis=0, prepend=np.zeros((1, 2))) / DT
    assert np.array(places)[:, 0].min() >= -0.5 - 1e-6 and np.array(places)[:, 0].max() <= 0.4 + 1e-6
    assert np.abs(places).max() <= 1 + 1e-6
    assert (np.abs(velocity).max(axis=0) <= np.array([1.0, 2.0]) + 1e-5).all()
    assert np.abs(acceleration).max() <= 3.0 + 1e-3
    assert {"range", "velocity", "acceleration"} <= reached


def test_what_is_within_all_limits_passes_unchanged():
    limits = limiter(absolute_spec(), velocity=1.0, acceleration=20.0)
    for place in (0.0, 0.05, 0.1, 0.1, 0.05):
        limited = limits.limited(np.array([place, 0.0, 1.0]), at(0.0, 0.0))
        assert limited.action.tolist() == np.array([place, 0, 1], np.float32).tolist() and limited.reasons == ()


def test_the_first_absolute_target_is_measured_from_where_the_robot_is():
    limits = limiter(absolute_spec(), velocity=1.0)
    limited = limits.limited(np.array([0.9, -0.3, 1.0]), at(0.2, -0.3))
    assert limited.action.tolist() == pytest.approx([0.3, -0.3, 1.0]) and limited.reasons == ("velocity",)
    limits.reset()
    assert limits.limited(np.array([0.9, 2.0, 1.0]), NOTHING_SEEN).action.tolist() == pytest.approx([0.9, 1.0, 1.0])
    limited = limits.limited(np.array([0.0, 1.0, 1.0]), NOTHING_SEEN)
    assert limited.action.tolist() == pytest.approx([0.8, 1.0, 1.0]), "from the last command on"


def test_a_displacement_is_the_motion_itself():
    limits = limiter(toy_spec(), velocity=5.0, acceleration=20.0)
    steps = [limits.limited(np.array([1.0, -1.0, 0.0]), NOTHING_SEEN).action[:2].tolist() for _ in range(4)]
    assert np.allclose(steps, [[0.2, -0.2], [0.4, -0.4], [0.5, -0.5], [0.5, -0.5]])


@pytest.mark.parametrize("acceleration", [None, 4.0])
def test_a_workspace_is_never_left_by_displacements(acceleration):
    limits = limiter(placed_spec(), workspace={"point": [[-0.3, -0.2], [0.4, 0.25]]}, acceleration=acceleration)
    point, generator, reasons = np.zeros(2), np.random.default_rng(1), set()
    for _ in range(500):
        wanted = np.array([*generator.choice([-1.0, 0.3, 1.0], 2), 1.0])
        limited = limits.limited(wanted, Observation(state={"point": point}))
        point = point + 0.1 * limited.action[:2].astype(np.float64)
        reasons |= set(limited.reasons)
        assert (point >= np.array([-0.3, -0.2]) - 1e-6).all() and (point <= np.array([0.4, 0.25]) + 1e-6).all()
    assert "workspace" in reasons
    outside = limits.limited(np.array([1.0, 0.0, 0.0]), Observation(state={"point": np.array([0.6, 0.0])}))
    assert outside.action[0] == 0.0, "no further out"
    for seen in (Observation(state={"point": np.array([np.nan, 0.0])}), NOTHING_SEEN):
        limits.reset()
        unseen = limits.limited(np.array([1.0, 0.0, 0.5]), seen)
        assert unseen.action.tolist() == [0.0, 0.0, 0.5] and "workspace" in unseen.reasons


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_and_change_nothing(value):
    limits = limiter(absolute_spec(), velocity=1.0)
    limits.limited(np.array([0.05, 0.0, 0.0]), at(0.0, 0.0))
    with pytest.raises(UserError, match=f"a finite action; found {value} in 'y'; nothing of it is executed"):
        limits.limited(np.array([0.0, value, 0.0]), at(0.0, 0.0))
    assert limits.last.tolist() == pytest.approx([0.05, 0.0, 0.0])
    with pytest.raises(UserError, match=r"an action of 3 values \(x, y, grip\); found shape \[2\]"):
        limits.limited(np.zeros(2), at(0.0, 0.0))


@pytest.mark.parametrize("spec", [absolute_spec(), toy_spec()], ids=["absolute", "delta"])
def test_a_stop_takes_as_many_steps_as_the_deceleration_says(spec):
    last, w, steps, way = np.array([0.4, 0.0, 1.0], np.float32), np.array([0.1, -0.05, 0.0]), [], np.zeros(2)
    for _ in range(6):
        action = stopping_action(spec.action, last, w, np.full(3, 0.03))
        assert action[2] == 1.0, "the gripper stays as it was"
        moved = action - last if spec.action.representation == "absolute" else action
        w, last = np.where(spec.action.binary, 0.0, moved), action
        steps.append(w[:2].tolist())
        way += w[:2]
    assert np.allclose(steps, [[0.07, -0.02], [0.04, 0], [0.01, 0], [0, 0], [0, 0], [0, 0]], atol=1e-6)
    assert np.allclose(way, [0.12, -0.02], atol=1e-6)


def test_without_a_deceleration_the_robot_holds_at_once():
    last, w = np.array([0.4, 0.2, -1.0], np.float32), np.array([0.1, 0.1, 0.0])
    assert np.array_equal(stopping_action(absolute_spec().action, last, w, np.full(3, np.inf)), last)
    assert stopping_action(toy_spec().action, last, w, np.full(3, np.inf)).tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 1}, "settings of limits; found 'speed'; known: acceleration"),
        ({"velocity": {"z": 1}}, "elements of an action in limits.velocity; found 'z'"),
        ({"velocity": 0}, "limits.velocity above 0 for 'x'; found 0"),
        ({"acceleration": {"y": -1.0}}, "limits.acceleration above 0 for 'y'; found -1"),
        ({"velocity": "fast"}, "a number in limits.velocity; found 'fast'"),
        ({"high": float("nan")}, "a number in limits.high; found nan"),
        ({"low": {"x": 0.5}, "high": {"x": 0.4}}, r"limits with room for 'x', within -1 .. 1; found 0.5 .. 0.4"),
        ({"workspace": {"point": [[0, 0], [1, 1]]}}, "absolute actions have limits.low and limits.high; found 'point'"),
    ],
)
def test_settings_that_are_none_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        limiter(absolute_spec(), **settings)


@pytest.mark.parametrize(
    ("workspace", "message"),
    [
        ({"goal": [[0, 0], [1, 1]]}, "a group of displacements in limits.workspace; found 'goal'; .*point"),
        ({"point": [[0, 0], [1, 0]]}, r"limits.workspace.point as \[lowest, highest\], 2 numbers each"),
        ({"point": [[0, 0, 0], [1, 1, 1]]}, "2 numbers each"),
        ({"point": 3}, "2 numbers each, .*; found 3"),
    ],
)
def test_workspaces_that_are_none_are_named(workspace, message):
    with pytest.raises(UserError, match=message):
        limiter(placed_spec(), workspace=workspace)


def test_elements_of_a_group_apart_and_out_of_order_begin_where_they_are():
    spec = arm_spec()
    limits = limiter(spec, velocity={"x": 1.0, "y": 1.0, "z": 1.0})
    wanted = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 5.0, 2.05, -5.0])  # gripper, turns, knob, x, y, z in 0.1 m
    seen = Observation(state={"hand_position": np.array([0.1, 0.2, 0.3])})
    assert limits.limited(wanted, seen).action[5:].tolist() == pytest.approx([1.1, 2.05, 2.9])
