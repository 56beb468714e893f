"""What the scripted experts share: funnels, yaws, the test of a grasp, all against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.sim.grasping import (
    Funnel,
    TopGrasp,
    cheapest_yaw,
    downward,
    grip_strength,
    gripper_yaw,
    level_axis_yaw,
    over_obstacles,
    retreat,
    turn_to,
)

FUNNEL = Funnel(radius_m=0.01, slope=2.0, top_m=0.08)
GRASP = TopGrasp(FUNNEL, fit_m=(0.01, 0.01, 0.01), loose_fit_m=(0.02, 0.02, 0.02))
ASIDE = np.array([0.015, 0.0, 0.0])  # fits loosely only


@pytest.mark.parametrize(("distance", "height"), [(0.0, 0.0), (0.01, 0.0), (0.03, 0.04), (0.05, 0.08), (1.0, 0.08)])
def test_a_funnel_rises_from_its_spout_to_its_top(distance, height):
    assert FUNNEL.height(distance) == pytest.approx(height)


def test_what_is_too_low_goes_up_before_it_goes_sideways():
    low = over_obstacles(np.array([0.3, -0.2, 0.1]), 0.08, clearance_m=0.04)
    np.testing.assert_allclose(low, [0.0, 0.0, 0.18])
    halfway = over_obstacles(np.array([0.3, -0.2, 0.0]), 0.02, clearance_m=0.04)
    np.testing.assert_allclose(halfway, [0.15, -0.1, 0.02])
    high = over_obstacles(np.array([0.3, -0.2, -0.2]), 0.08, clearance_m=0.04)
    np.testing.assert_allclose(high, [0.3, -0.2, -0.12])


def test_carrying_ends_on_the_place():
    np.testing.assert_allclose(FUNNEL.carry(np.array([0.0, 0.005, -0.03]), 0.04), [0.0, 0.005, -0.03])


def test_fingers_that_have_begun_to_close_keep_on_with_a_looser_fit():
    still = np.zeros(3)
    assert GRASP.is_around(np.zeros(3), still, opening=0.08)
    assert not GRASP.is_around(ASIDE, still, opening=0.08)
    assert GRASP.is_around(ASIDE, still, opening=0.06)
    assert not GRASP.is_around(2 * ASIDE, still, opening=0.06)
    assert not GRASP.is_around(np.zeros(3), np.array([0.0, 0.0, 0.5]), opening=0.08), "not aligned yet"


def test_half_closed_fingers_wait_above_the_object():
    assert GRASP.approach(np.array([0.0, 0.0, -0.08]), opening=0.05)[2] == pytest.approx(0.0)
    assert GRASP.approach(np.array([0.0, 0.0, -0.08]), opening=0.08)[2] == pytest.approx(-0.08)


def test_a_grip_is_an_opening_no_wider_than_the_object():
    assert grip_strength(0.08, width=0.04) == 0.0
    assert grip_strength(0.04, width=0.04) == 1.0


def test_the_gripper_leaves_only_when_its_fingers_are_off():
    assert not retreat(np.zeros(3), opening=0.041, width=0.04, height_m=0.1).any()
    np.testing.assert_allclose(retreat(np.zeros(3), opening=0.08, width=0.04, height_m=0.1), [0.0, 0.0, 0.1])
    assert not retreat(np.array([0.0, 0.0, -0.2]), opening=0.08, width=0.04, height_m=0.1).any(), "high enough"


@pytest.mark.parametrize("yaw", [-3.0, -1.0, 0.0, 0.4, 2.5])
def test_a_downward_gripper_has_its_yaw(yaw):
    rotation = downward(yaw)
    assert gripper_yaw(rotation) == pytest.approx(yaw)
    np.testing.assert_allclose(rotation.as_matrix()[:, 2], [0.0, 0.0, -1.0], atol=1e-12)
    closing = rotation.as_matrix()[:, 0]
    np.testing.assert_allclose(closing, [-np.sin(yaw), np.cos(yaw), 0.0], atol=1e-12)


def test_turning_by_what_is_left_reaches_the_goal():
    goal, rotation = downward(1.0), Rotation.from_rotvec([0.2, -0.1, 0.5]) * downward(0.0)
    reached = Rotation.from_rotvec(turn_to(goal, rotation)) * rotation
    assert (reached * goal.inv()).magnitude() == pytest.approx(0.0, abs=1e-9)


def test_the_cheapest_yaw_is_the_nearest_and_of_two_equals_the_one_near_the_start():
    quarter = np.pi / 2 * np.arange(4)
    assert cheapest_yaw(quarter + 0.1, yaw=1.5) == pytest.approx(np.pi / 2 + 0.1)
    assert cheapest_yaw(np.array([0.2, 1.0]), yaw=0.6) == pytest.approx(0.2)


@pytest.mark.parametrize("tumble", [[0, 0, 0], [np.pi / 2, 0, 0], [0, np.pi / 2, 0]])
def test_a_cube_has_a_level_side_whichever_face_it_lies_on(tumble):
    cube = Rotation.from_euler("z", 0.3) * Rotation.from_rotvec(tumble)
    assert level_axis_yaw(cube) % (np.pi / 2) == pytest.approx(0.3)
