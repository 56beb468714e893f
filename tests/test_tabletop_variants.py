"""Variants of the tabletop tasks: how many by which axis, and that looks leave physics untouched bit for bit."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest

from embodied import catalog
from embodied.collection import CollectionSettings, collect_episode
from embodied.errors import UserError
from embodied.sim import tabletop_variants
from embodied.sim.opengl import available_backends
from embodied.sim.tabletop_model import Dynamics, TabletopWorld
from embodied.sim.tabletop_objects import BASKET, CAN, PLATE
from embodied.sim.tabletop_pick import PickCanExpert, PickCanTask
from embodied.sim.tabletop_variants import REGIONS, Region, variant, variants

TASKS = {name: catalog.lookup("task", catalog.TASKS, name) for name in catalog.TASKS if name.startswith("tabletop/")}
QUICK = ("tabletop/pick_can", "tabletop/open_drawer")  # of the others the distractors, which are their own
VISUAL = [
    pytest.param(name, one.id, marks=[] if name in QUICK or one.axis == "distractors" else pytest.mark.heavy)
    for name in TASKS
    for one in variants(name)
    if one.visual_only and one.id != "base"
]
DYNAMIC = [one.id for one in variants("tabletop/pick_can") if not one.visual_only]
STEPS = 40


def actions(seed: int = 0) -> np.ndarray:
    """At random, after a reach down to the can of start 0 that pushes it aside."""
    drawn = np.random.default_rng(seed).uniform(-1, 1, (STEPS, 7)).astype(np.float32)
    drawn[:18, 3:] = [0, 0, 0, 1]
    drawn[:12, :3], drawn[12:18, :3] = [0.15, -0.2, -0.6], [0, -1, 0]
    return drawn


def positions(task, start_id: int = 0) -> np.ndarray:
    """Joint positions along fixed actions, float64 [T nq]."""
    task.reset(start_id)
    rows = []
    for action in actions():
        task.step(action)
        rows.append(task.data.qpos.copy())
    return np.array(rows)


@pytest.fixture(scope="module")
def base_positions():
    return functools.cache(lambda name: positions(TASKS[name]()))


@pytest.mark.parametrize(("name", "wanted"), VISUAL)
def test_a_look_leaves_physics_untouched_bit_for_bit(name, wanted, base_positions):
    assert np.array_equal(positions(TASKS[name](variant=wanted)), base_positions(name))


@pytest.mark.parametrize("wanted", DYNAMIC)
def test_dynamics_do_not(wanted, base_positions):
    assert not np.array_equal(positions(PickCanTask(variant=wanted)), base_positions("tabletop/pick_can"))


def test_the_fixed_actions_meet_something(base_positions):
    before, after = base_positions("tabletop/pick_can")[[0, -1]]
    assert np.linalg.norm(after[9:12] - before[9:12]) > 0.01, "the can is expected to have been pushed"


def test_simplerenvs_axes_are_counted_as_it_counts_them():
    counts = {}
    for name in REGIONS:
        counted = [one for one in variants(name) if one.protocol == "variant_aggregation"]
        assert all(one.counted for one in counted)
        counts[name] = dict(collections.Counter(one.axis for one in counted))
    pick = {"base": 1, "background": 2, "light": 2, "distractors": 2, "table": 2}
    drawer = {"base": 1, "background": 2, "light": 2, "cabinet": 2}
    assert counts["tabletop/pick_can"] == pick and sum(pick.values()) == 9
    assert counts["tabletop/move_near"] == {**pick, "distractors": 1}
    assert counts["tabletop/open_drawer"] == counts["tabletop/put_in_drawer"] == drawer and sum(drawer.values()) == 7
    for name in REGIONS:
        others = collections.Counter(
            (one.protocol, one.counted) for one in variants(name) if one.protocol != "variant_aggregation"
        )
        assert others == {
            ("visual_matching", True): 4,
            ("camera", False): 2,
            ("dynamics", False): 5,
            ("stand_in", False): 1,
        }


def test_each_but_the_stand_in_changes_one_axis_alone():
    for name in REGIONS:
        assert len({one.id for one in variants(name)}) == len(variants(name))
        for one in variants(name)[:-1]:
            changed = set(one.look) | set(one.dynamics)
            fields = {
                "base": set(),
                "background": {"wall", "floor"},
                "light": {"light"},
                "distractors": {"ornaments"},
                "table": {"table"},
                "cabinet": {"cabinet"},
                "robot": {"wall", "floor", "table", "robot_tint"},
                "camera": {"cameras"},
            }
            assert changed == fields[one.axis] if one.axis != "dynamics" else changed <= set(vars(Dynamics()))
            assert one.id.startswith(one.axis)
            assert one.of(TabletopWorld()) == one.of(TabletopWorld()), "a world is expected to be a value"
        stand_in = variants(name)[-1]
        assert set(stand_in.look) == {"wall", "floor", "table", "light", "cameras"}
        assert set(stand_in.dynamics) == set(vars(Dynamics()))


def test_the_four_robots_stand_in_one_room():
    matched = [one for one in variants("tabletop/stack") if one.protocol == "visual_matching"]
    assert len({one.look["robot_tint"] for one in matched}) == 4
    assert len({(one.look["wall"], one.look["floor"], one.look["table"]) for one in matched}) == 1


def test_distractors_stay_out_of_the_tasks_region():
    for name, region in REGIONS.items():
        for one in variants(name):
            ornaments = one.look.get("ornaments", ())
            assert not any(region.holds(o.x, o.y, margin=o.item.radius) for o in ornaments)
            gaps = [
                np.hypot(a.x - b.x, a.y - b.y) - a.item.radius - b.item.radius
                for place, a in enumerate(ornaments)
                for b in ornaments[:place]
            ]
            assert min(gaps, default=1.0) > 0


def test_too_many_distractors_for_the_free_spots_are_rejected():
    with pytest.raises(ValueError, match="2 distractors for 0 spots outside"):
        tabletop_variants._scattered((PLATE, BASKET), Region((-1, 2), (-1, 1)))


def test_distractors_have_no_joints_and_touch_nothing():
    base = TabletopWorld(items=(CAN,))
    changed = variant("tabletop/pick_can", "distractors/kitchen").of(base).build()
    model = base.build()
    assert changed.ngeom > model.ngeom and (changed.nq, changed.nv) == (model.nq, model.nv)
    added = [geom for geom in range(changed.ngeom) if changed.geom(geom).name.startswith("ornament")]
    assert len(added) > 3 and not any(changed.geom_contype[geom] | changed.geom_conaffinity[geom] for geom in added)


def test_the_catalogue_lists_the_variants_of_a_task():
    listed = catalog.variants("tabletop/pick_can")
    assert listed[0].id == listed[0].axis == "base" and listed == variants("tabletop/pick_can")
    chosen = catalog.chosen_variants("tabletop/pick_can", ["light", "robot/blue"])
    assert [one.id for one in chosen] == ["light/dim", "light/low_sun", "robot/blue"]


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'lights/dim'; did you mean 'light/dim'\?.*background/bricks"):
        variant("tabletop/pick_can", "lights/dim")
    with pytest.raises(UserError, match=r"name of a tabletop task; found 'tabletop/pick_a_can'; did you mean"):
        variants("tabletop/pick_a_can")


def test_demonstrations_say_their_variant():
    settings = CollectionSettings(1, 0, noise=0.0, noise_bound=0.0, steps_after_success=2, seed=0)
    for wanted in ("base", "light/dim"):
        task = PickCanTask(variant=wanted)
        assert collect_episode(task, PickCanExpert(task), 0, settings).variant == task.variant == wanted


@pytest.mark.skipif(not any(backend.works for backend in available_backends()), reason="no OpenGL back end works")
def test_every_look_shows():
    cameras = {"cameras": ["overview"], "camera_size": 48}
    base = PickCanTask(**cameras)
    picture = base.reset(0).images["overview"].astype(int)
    base.close()
    for one in variants("tabletop/pick_can"):
        task = PickCanTask(variant=one.id, **cameras)
        difference = np.abs(task.reset(0).images["overview"].astype(int) - picture).mean()
        task.close()
        seen = bool(one.look)
        assert (difference > 0.3) if seen else (difference == 0.0), (one.id, difference)
