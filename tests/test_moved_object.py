"""The variant in which an object is moved once in an episode: when, by how much, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from embodied import catalog
from embodied.catalog import make_task, task_config
from embodied.errors import UserError
from embodied.sim.moved_object import EARLIEST, FARTHEST, LATEST, NEAREST, OFFERING, planned_move, variants

FAR = {"pusht": 80.0, "robosuite": 0.05}


def test_moves_are_addressed_and_within_their_ranges():
    moves = [planned_move("moved", start, 200, 1.0, 0.5) for start in range(500)]
    assert moves == [planned_move("moved", start, 200, 1.0, 0.5) for start in range(500)]
    assert all(200 * EARLIEST - 1 <= move.step <= 200 * LATEST for move in moves)
    assert all(NEAREST <= np.hypot(*move.shift) <= FARTHEST + 1e-9 and abs(move.turn) <= 0.5 for move in moves)
    directions = np.array([np.array(move.shift) / np.hypot(*move.shift) for move in moves])
    assert np.abs(directions.mean(0)).max() < 0.15  # to all sides
    assert planned_move("base", 1, 200, 1.0, 0.5) is None


ONE_OF_EACH_WORLD = [name for name in OFFERING if name not in ("pusht/pixels", "pusht/state")]  # which share theirs


@pytest.mark.parametrize("name", ONE_OF_EACH_WORLD)
def test_only_the_object_is_moved_and_only_once(name):
    config = {**task_config(name), "horizon": 40}
    plain, moved = make_task(config), make_task({**config, "variant": "moved"})
    farthest, start = FAR[name.split("/")[0]], 2  # at which the block stays clear of the walls
    try:
        first, same = plain.reset(start), moved.reset(start)
        assert all(np.array_equal(first.state[key], same.state[key]) for key in first.state)
        move = planned_move("moved", start, 40, farthest, 0.5)
        still = np.zeros(plain.spec.action.size, np.float32)
        if name.startswith("pusht"):
            still = first.state["agent_position"].copy()
        changed = []
        for _ in range(move.step + 3):
            one, other = plain.step(still).observation, moved.step(still).observation
            changed.append(any(not np.allclose(one.state[k], other.state[k], atol=1e-4) for k in one.state))
        assert changed == [False] * move.step + [True] * 3
        shift = _object(moved, name) - _object(plain, name)
        assert np.hypot(*shift) == pytest.approx(np.hypot(*move.shift), rel=0.1)
        assert moved.variant == "moved"
    finally:
        plain.close(), moved.close()


def _object(task, name):
    """Where the object is, in the plane."""
    if name.startswith("pusht"):
        from embodied import pusht_board

        return pusht_board.placed(pusht_board.CENTRE_OF_MASS, task.physics_state()[2:])[0]
    return (task.cube_position("B") if name.endswith("stack") else task.nut_position())[:2]


def test_tasks_say_whether_they_offer_it():
    assert [variant.id for variant in catalog.variants("robosuite/stack")] == ["base", "moved"]
    assert [variant.id for variant in variants("robosuite/door")] == ["base"]
    assert catalog.chosen_variants("pusht/keypoints", ["disturbance"])[0].id == "moved"
    assert {name.split("/")[0] for name in OFFERING} == {"pusht", "robosuite"}
    with pytest.raises(UserError, match="a variant of robosuite/lift; found 'moved'; known: base"):
        make_task({**task_config("robosuite/lift"), "variant": "moved"})
