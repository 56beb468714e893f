"""The tabletop tasks: starts, rules of success, sentences, and oracles with their plans."""

from __future__ import annotations

import collections
import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from embodied.catalog import EXPERTS, TASKS, lookup, make_expert, make_task, task_config
from embodied.errors import UserError
from embodied.sim import tabletop_instructions
from embodied.sim.tabletop_drawer import CLOSED_M, OPEN_M, CloseDrawerTask, OpenDrawerTask
from embodied.sim.tabletop_instructions import Instructions
from embodied.sim.tabletop_move_near import MoveNearTask
from embodied.sim.tabletop_objects import BASKET, CAN, GREEN_CUBE, LEMON, PLATE, YELLOW_CUBE
from embodied.sim.tabletop_pick import ORIENTATIONS, PickCanTask
from embodied.sim.tabletop_placing import PutInBasketTask, PutOnTask, StackTask
from embodied.sim.tabletop_put_in_drawer import HEIGHT, PutInDrawerTask
from embodied.sim.tabletop_starts import Grid
from embodied.sim.tabletop_variants import REGIONS

NAMES = sorted(name for name in TASKS if name.startswith("tabletop/"))
GRID_SIZES = {
    "tabletop/close_drawer": 27,
    "tabletop/move_near": 60,
    "tabletop/open_drawer": 27,
    "tabletop/pick_can": 75,
    "tabletop/put_in_basket": 64,
    "tabletop/put_in_drawer": 108,
    "tabletop/put_on": 128,
    "tabletop/stack": 32,
}
NOISE, NOISE_BOUND = 0.1, 0.2
STILL = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
HOLDING = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)


@pytest.fixture(scope="module", params=NAMES)
def task(request):
    task = make_task(task_config(request.param))
    yield task
    task.close()


def outcome(task, expert, start_id, noise=0.0):
    """The last step of an episode that ends ten steps after its first success."""
    generator = np.random.default_rng(start_id)
    task.reset(start_id)
    since = 0
    for _ in range(task.spec.horizon):
        action = expert.act(expert.infer_memory())[0]
        action[:6] += np.clip(generator.normal(0.0, noise, 6), -NOISE_BOUND, NOISE_BOUND)
        step = task.step(action)
        since += step.info["success_ever"]
        if since == 10:
            break
    return step


def test_the_oracle_succeeds_and_reaches_every_stage(task):
    expert = make_expert(task)
    for start_id in (0, 1, 2, 1003):
        step = outcome(task, expert, start_id)
        assert step.info["success_ever"], start_id
        assert list(step.info["stages"]) == list(task.stage_names)
        assert all(step.info["stages"].values()), (start_id, step.info["stages"])


def test_the_oracle_recovers_from_noise(task):
    expert = make_expert(task)
    outcomes = [outcome(task, expert, start_id, NOISE).info["success_ever"] for start_id in (0, 1, 2, 1003)]
    assert sum(outcomes) >= 3


def test_the_plan_names_sub_goals_that_get_done_in_their_order(task):
    expert = make_expert(task)
    task.reset(1)
    names = [goal.name for goal in expert.plan()]
    assert len(set(names)) == len(names) and not expert.plan()[0].done
    pursued = []
    for _ in range(task.spec.horizon):
        plan = expert.plan()
        assert [goal.name for goal in plan] == names, "the list itself is expected to stay"
        goal = next((goal for goal in plan if not goal.done), None)
        if goal is None:
            break
        action = expert.act(None)[0]
        assert (action[6] > 0) is goal.close or (action[6] > 0) == goal.close
        if not pursued or pursued[-1] != goal.name:
            pursued.append(goal.name)
        task.step(action)
    assert pursued[0] == names[0] and pursued[-1] == names[-1]
    order = [names.index(name) for name in pursued]
    assert order == sorted(order), f"none is expected to be taken up again without a mishap: {pursued}"


def test_success_is_not_there_from_the_beginning(task):
    for start_id in (0, 5, 500):
        task.reset(start_id)
        info = task.step(STILL).info
        assert not info["success"] and list(info["stages"]) == list(task.stage_names)
        assert not any(info["stages"].values())


def test_starts_lie_on_a_grid_and_then_between_its_places(task):
    size = GRID_SIZES[task.spec.task]
    grid = [task.start(start_id) for start_id in range(size)]
    assert len({repr(start) for start in grid}) == size, "all are expected to differ"
    later = [task.start(start_id) for start_id in range(size, 3 * size)]
    assert not {repr(start) for start in later} & {repr(start) for start in grid}
    assert task.start(size + 3) == task.start(size + 3)


def test_things_start_within_the_tasks_region(task):
    region = REGIONS[task.spec.task]
    for start_id in [*range(0, 120, 7), 1000, 1001, 1002]:
        task.reset(start_id)
        for name, place in task.sim._free.items():
            x, y = task.data.qpos[place : place + 2]
            assert region.holds(x, y), (start_id, name, x, y)


def test_things_rest_at_a_start(task):
    for start_id in range(6):
        task.reset(start_id)
        before = task.data.qpos.copy()
        for _ in range(10):
            task.step(STILL)
        np.testing.assert_allclose(task.data.qpos, before, atol=2e-3)


def test_sentences_name_what_the_start_asks_for(task):
    kinds = ("canonical", "training", "held_out")
    choices = {kind: make_task({**task_config(task.spec.task), "instructions": kind}) for kind in kinds}
    told = {kind: [choices[kind].reset(start_id).instruction for start_id in range(30)] for kind in choices}
    assert not set(told["held_out"]) & (set(told["training"]) | set(told["canonical"]))
    assert len(set(told["training"])) > len(set(told["canonical"]))
    for start_id in range(30):
        task.reset(start_id)
        for kind, sentences in told.items():
            assert all(word in sentences[start_id] for word in task.words().values()), kind
            assert "{" not in sentences[start_id]
    assert told["held_out"][3] == choices["held_out"].reset(3).instruction


def test_no_paraphrase_is_both_for_training_and_held_out():
    every = [value for value in vars(tabletop_instructions).values() if isinstance(value, Instructions)]
    assert len(every) == len(NAMES)
    for instructions in every:
        assert len(instructions.training) >= 3 and len(instructions.held_out) >= 2
        assert not {instructions.canonical, *instructions.training} & set(instructions.held_out)
        fields = set(re.findall(r"{\w+}", instructions.canonical))
        for sentence in (*instructions.training, *instructions.held_out):
            assert set(re.findall(r"{\w+}", sentence)) == fields, sentence


def test_grids_are_stratified():
    grid = Grid(("a", "b", "c"), (5, 5))
    drawn = [grid.draw(start_id) for start_id in range(75)]
    assert collections.Counter((draw.kind, draw.offsets) for draw in drawn).most_common(1)[0][1] == 1
    assert {round(draw.offsets[0], 6) for draw in drawn} == {-0.8, -0.4, 0.0, 0.4, 0.8}
    assert collections.Counter(draw.kind for draw in drawn[:30]) == {"a": 10, "b": 10, "c": 10}
    rows = collections.Counter(round(draw.offsets[0], 1) for draw in drawn[:30])
    assert max(rows.values()) - min(rows.values()) <= 3, "the first starts are expected to be spread already"
    later = [grid.draw(start_id) for start_id in range(75, 1000)]
    assert np.abs([draw.offsets for draw in later]).max() <= 1.0
    cell = [draw.offsets[0] for draw in later if draw.kind == "a"]
    np.testing.assert_allclose(np.mean(cell), 0.0, atol=0.1)


def test_a_kind_can_be_fixed():
    assert {PickCanTask(orientation="lying_along").start(i).orientation for i in range(9)} == {"lying_along"}
    assert {PickCanTask().start(i).orientation for i in range(3)} == set(ORIENTATIONS)
    assert {OpenDrawerTask(height="bottom").start(i).height for i in range(9)} == {"bottom"}
    assert {PutOnTask(pair="lemon_on_plate").start(i).pair for i in range(9)} == {"lemon_on_plate"}
    assert {PutInDrawerTask(item="can").start(i).item for i in range(9)} == {"can"}
    with pytest.raises(UserError, match=r"task\.height.*found 'lowest'; known: bottom, middle, top"):
        OpenDrawerTask(height="lowest")
    with pytest.raises(UserError, match=r"task\.pair.*'lemon_on_plat'; did you mean 'lemon_on_plate'"):
        PutOnTask(pair="lemon_on_plat")


def put(task, item, position, rotation=None):
    """Put an item somewhere at rest, with the gripper where it is, and judge without waiting."""
    task.sim.place(item.name, position, rotation)
    place = task.model.joint(item.name).dofadr[0]
    task.data.qvel[place : place + 6] = 0.0
    task.sim.restore(task.physics_state())


def test_a_can_that_is_in_the_air_without_being_held_is_not_picked_at_once():
    task = PickCanTask()
    task.reset(0)
    put(task, CAN, (0.6, 0.2, 0.07))
    info = task.step(STILL).info
    assert info["stages"] == {"grasped": False, "consecutive_grasp": False, "lifted": True} and not info["success"]


def test_a_can_is_picked_when_held_and_free_of_the_table():
    task = PickCanTask(orientation="standing")
    expert = make_expert(task)
    task.reset(0)
    while not task.sim.grasped(CAN.name):
        task.step(expert.act(None)[0])
    held = [task.step(HOLDING).info for _ in range(8)]
    assert not held[0]["stages"]["consecutive_grasp"] and held[-1]["stages"]["consecutive_grasp"]
    assert not any(info["success"] for info in held), "it still stands on the table"
    rise = HOLDING.copy()
    rise[2] = 0.5
    heights = []
    while not (info := task.step(rise).info)["success"]:
        heights.append(task.sim.position(CAN.name)[2] - task.memory("rest_height"))
    assert max(heights, default=0.0) <= 0.01 < task.sim.position(CAN.name)[2] - task.memory("rest_height")
    assert info["stages"]["lifted"]


@pytest.mark.parametrize(("opening", "solved"), [(OPEN_M - 0.002, False), (OPEN_M + 0.002, True)])
def test_a_drawer_is_open_from_fifteen_centimetres_on(opening, solved):
    task = OpenDrawerTask()
    task.reset(0)
    task.sim.set_drawer(task.height, opening)
    info = task.step(STILL).info
    assert info["success"] is solved and info["stages"]["ajar"] and not info["stages"]["touched"]


@pytest.mark.parametrize(("opening", "solved"), [(CLOSED_M + 0.002, False), (CLOSED_M - 0.002, True)])
def test_a_drawer_is_closed_up_to_five_centimetres(opening, solved):
    task = CloseDrawerTask()
    task.reset(0)
    assert not task.step(STILL).info["stages"]["half_closed"]
    task.sim.set_drawer(task.height, opening)
    info = task.step(STILL).info
    assert info["success"] is solved and info["stages"]["half_closed"]


def test_only_the_drawer_in_question_counts():
    task = OpenDrawerTask(height="top")
    task.reset(0)
    task.sim.set_drawer("bottom", 0.2)
    assert not task.step(STILL).info["success"]


def near(task, *, gap=0.03, third_moves=False, falls=False):
    """A start whose item has been put so near the target; what the next step says."""
    task.reset(0)
    item, target, bystander = task.items
    goal = task.sim.position(target.name)
    line = task.sim.position(item.name) - goal
    line[2] = 0.0
    line /= np.linalg.norm(line)
    place = goal + line * (item.radius + target.radius + gap)
    lying = Rotation.from_euler("x", np.pi / 2) if falls else None
    put(task, item, (*place[:2], item.half[1] if falls else item.half[2]), lying)
    if third_moves:
        put(task, bystander, (0.75, 0.4, bystander.half[2]))
    return task.step(STILL).info


def test_near_is_within_ten_centimetres_and_nearest():
    task = MoveNearTask()
    solved = near(task)
    assert solved["success"] and solved["stages"]["closest"] and not solved["stages"]["grasped"]
    far = near(task, gap=0.105)
    assert not far["success"] and far["stages"]["moved"] and not far["stages"]["near"]
    assert not near(task, third_moves=True)["success"], "the wrong one moved farther"
    assert not near(task, falls=True)["success"], "it fell"


def test_an_item_over_its_target_counts_only_while_it_touches_nothing_else():
    task = PutOnTask(pair="lemon_on_plate")
    task.reset(0)
    plate = task.sim.position(PLATE.name)
    on = (*plate[:2], plate[2] + PLATE.half[2] + LEMON.half[2])
    put(task, LEMON, on)
    info = task.step(STILL).info
    assert info["success"] and info["stages"]["over_target"] and info["stages"]["moved"]
    put(task, LEMON, (on[0], on[1], on[2] + 0.05))
    assert not task.step(STILL).info["success"], "too far above"
    put(task, LEMON, (on[0] + PLATE.radius + 0.01, on[1], LEMON.half[2]))
    assert not task.step(STILL).info["success"], "beside it"
    corner = 0.7 * PLATE.radius + 0.02
    put(task, LEMON, (on[0] + corner, on[1] + 0.02, LEMON.half[2]))
    assert not task.step(STILL).info["success"], "it leans on the table"


def test_a_cube_on_another_is_stacked_also_when_let_go():
    task = StackTask()
    step = outcome(task, make_expert(task), 3)
    for _ in range(25):
        step = task.step(make_expert(task).act(None)[0])
    assert step.info["success"] and task.sim.opening() > 0.06
    offset = task.sim.position(GREEN_CUBE.name) - task.sim.position(YELLOW_CUBE.name)
    np.testing.assert_allclose(offset, [0, 0, 0.04], atol=0.012)


def test_in_the_basket_is_between_its_walls():
    task = PutInBasketTask(pair="lemon_in_basket")
    task.reset(0)
    basket = task.sim.position(BASKET.name)
    put(task, LEMON, (*basket[:2], basket[2]))
    assert task.step(STILL).info["success"]
    put(task, LEMON, (basket[0], basket[1] + 0.11, 0.06))  # in the air, within half the diagonal, but outside
    assert not task.step(STILL).info["success"]


def test_in_the_drawer_is_touching_it_within_its_walls():
    task = PutInDrawerTask(item="lemon")
    task.reset(0)
    task.sim.set_drawer(HEIGHT, 0.2)
    task.sim.restore(task.physics_state())
    room = task.room()
    put(task, LEMON, (*room[:2], room[2] + 0.1))
    info = task.step(STILL).info
    assert not info["success"] and info["stages"]["over_drawer"], "in the air above it"
    for _ in range(10):
        info = task.step(STILL).info
    assert info["success"]
    put(task, LEMON, (room[0] - 0.3, room[1], LEMON.half[2]))
    assert not task.step(STILL).info["success"]


def test_every_task_is_in_the_catalogue_with_its_oracle():
    for name in NAMES:
        assert lookup("task", TASKS, name).name == name and name in EXPERTS
    assert set(NAMES) == set(REGIONS) == set(GRID_SIZES)
