"""The robot's side in virtual time: as the evaluation executes it, and what happens when server or network fail."""

import dataclasses

import numpy as np
import pytest
from clock_policy import ClockPolicy
from toy_policies import DIFFUSION, SDP, toy_policy
from toy_specs import ReachTask, toy_spec
from virtual_link import VirtualLink, drive, served

from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.robot.controller import RobotController
from embodied.robot.messages import AnsweredChunk, ServedPolicy
from embodied.types import Observation

DT = 0.1


def after(steps):
    """The first answer at once, as the evaluation has it, and the others so many control steps later."""
    return lambda number: 0.0 if number == 0 else steps * DT


def controlled(policy, delay_s, **settings):
    link = VirtualLink(policy, delay_s)
    return RobotController(served(policy), link, **settings), link


def executed(steps):
    return np.array([step.action for step in steps])


@pytest.mark.parametrize("planned", [0, 1, 2, 4])
@pytest.mark.parametrize("taken", [0, 0.3, 1, 2, 3.5, 4])
def test_a_delayed_server_is_executed_as_the_evaluation_executes_a_delayed_policy(planned, taken):
    policy = ClockPolicy(planned)
    controller, link = controlled(policy, after(taken))
    steps = drive(ReachTask(), controller, link, 1)
    asked, policy.asked = policy.asked, []
    expected = run_episode(ReachTask(), policy, 1, 1, delay_steps=int(np.ceil(taken))).episode.executed
    assert np.array_equal(executed(steps), expected)
    assert asked == policy.asked


@pytest.mark.parametrize("settings", [SDP, {**SDP, "largest_delay": 2, "inference_delay": 2}, DIFFUSION], ids=str)
@pytest.mark.parametrize("taken", [1, 2])
def test_real_policies_act_through_the_controller_as_in_the_evaluation(settings, taken):
    if settings.get("inference_delay"):
        settings = {**settings, "initialization": "denoise"}
    policy = toy_policy(settings)
    controller, link = controlled(policy, after(taken))
    steps = drive(ReachTask(), controller, link, 3)
    assert np.array_equal(executed(steps), run_episode(ReachTask(), policy, 3, 3, delay_steps=taken).episode.executed)


def test_synchronous_execution_stalls_where_the_overlapped_one_goes_on():
    fallbacks = {}
    for planned in (0, 3):
        controller, link = controlled(ClockPolicy(planned), after(3))
        drive(ReachTask(), controller, link, 1)
        fallbacks[controller.mode] = controller.counts.fallback
    # Chunks of 4 that come 3 steps late: of 7 steps 4 move.
    assert fallbacks == {"synchronous": sum(t % 7 >= 4 for t in range(40)), "overlapped": 0}


def test_before_the_first_chunk_nothing_is_commanded_and_the_chunk_begins_where_the_robot_is():
    policy = ClockPolicy(2)
    controller, link = controlled(policy, lambda number: 3 * DT if number == 0 else DT)
    steps = drive(ReachTask(), controller, link, 1)
    assert [step.source for step in steps[:4]] == ["nothing"] * 3 + ["chunk"]
    assert np.array_equal(executed(steps[3:9]), policy.wanted(range(6))), "its first action first"
    assert policy.asked[1] == (7, 4), "with d left, and the buffer rolls by what was executed"


def test_a_silent_server_leaves_the_robot_at_rest_and_is_asked_again():
    policy = ClockPolicy(2)
    controller, link = controlled(policy, lambda number: None if number == 1 else 0.0)
    steps = drive(ReachTask(), controller, link, 1)
    sources = "".join(step.source[0] for step in steps)
    # Six actions; the answer to the request at step 4 is lost, which shows 1 s later.
    assert sources == "c" * 6 + "f" * 8 + "c" * 26
    assert all(np.array_equal(step.action, [0, 0, 1]) for step in steps[6:14]), "no motion, the gripper as it was"
    assert [bool(step.fault) for step in steps].count(True) == 1 and "lost" in steps[14].fault
    assert "executed" not in link.requests[2], "a new session knows of no chunk"
    moving = executed(steps[14:])
    assert np.array_equal(moving, policy.wanted(range(14, 40))), "aligned in time again"


def test_a_robot_without_actions_slows_down_as_it_is_told():
    class Rightwards(ClockPolicy):
        @staticmethod
        def wanted(steps):
            return np.tile(np.array([0.8, 0.0, 1.0], np.float32), (len(steps), 1))

    def only_the_first(number):
        return 0.0 if number == 0 else None

    controller, link = controlled(Rightwards(), only_the_first, deceleration=20.0)
    steps = drive(ReachTask(), controller, link, 1, 9)
    assert executed(steps)[:, 0].tolist() == pytest.approx([0.8] * 4 + [0.6, 0.4, 0.2, 0.0, 0.0], abs=1e-6)
    controller, link = controlled(
        Rightwards(), lambda number: 0.0 if number == 0 else None, limits={"acceleration": 30}
    )
    steps = drive(ReachTask(), controller, link, 1, 9)
    assert executed(steps)[:, 0].tolist() == pytest.approx([0.3, 0.6, 0.8, 0.8, 0.5, 0.2, 0, 0, 0], abs=1e-6)
    assert [step.limited for step in steps] == [("acceleration",)] * 2 + [()] * 2 + [("acceleration",)] * 2 + [()] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_chunk_that_is_not_finite_is_never_executed(value):
    policy = ClockPolicy()
    controller, link = controlled(policy, lambda number: 0.0)
    honest = link.answer

    def answer(request):
        said = honest(request)
        if len(link.requests) == 2:
            said["actions"][2, 1] = value
        return said

    link.answer = answer
    steps = drive(ReachTask(), controller, link, 1, 12)
    assert np.isfinite(executed(steps)).all()
    assert "finite actions; found" in "".join(step.fault for step in steps)
    assert controller.counts.fallback >= 1 and steps[-1].source == "chunk"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((4, 7))}, "3 values each"),
        ({"actions": "none"}, "an answer with actions, start_s, dt_s and observed_s; found one without"),
        ({"start_s": None}, "found one without"),
        ({"dt_s": 0.0}, "a start and a control period"),
    ],
)
def test_an_answer_of_another_form_is_a_fault_and_no_motion(change, message):
    controller, link = controlled(ClockPolicy(), lambda number: 0.0)
    honest = link.answer
    link.answer = lambda request: honest(request) | change
    steps = drive(ReachTask(), controller, link, 1, 3)
    assert {step.source for step in steps} == {"nothing"}
    assert message in steps[-1].fault


def test_a_stale_answer_with_a_chunk_that_is_there_already_changes_nothing():
    policy = ClockPolicy(2)
    controller, link = controlled(policy, lambda number: 0.0)
    honest, said = link.answer, []

    def answer(request):
        if len(link.requests) == 2:  # the first chunk again, from now on
            return {**said[0], "actions": said[0]["actions"][4:], "start_s": 0.4, "stale": True}
        said.append(honest(request))
        return said[-1]

    link.answer = answer
    steps = drive(ReachTask(), controller, link, 1)
    moved = [t for t in range(40) if t != 6]  # a step later than planned, the next chunk begins a step later
    assert np.array_equal(executed(steps)[moved], policy.wanted(moved)) and steps[6].source == "fallback"
    assert controller.counts.stale == 1 and controller.counts.fallback == 1
    assert [round(request["time_s"] / DT) for request in link.requests[:4]] == [0, 4, 5, 9]
    assert "executed" not in link.requests[2], "the time says by how much the buffer moves on"


def test_what_was_executed_is_reported_once_each_with_its_time():
    controller, link = controlled(ClockPolicy(2), after(1), limits={"velocity": {"dx": 1.0}})
    steps = drive(ReachTask(), controller, link, 1)
    times = np.concatenate([request["executed_at_s"] for request in link.requests[1:]])
    actions = np.concatenate([request["executed_actions"] for request in link.requests[1:]])
    assert times.tolist() == pytest.approx([t * DT for t in range(len(times))]) and len(times) == 36
    assert np.array_equal(actions, executed(steps)[:36]) and actions[:, 0].max() == pytest.approx(0.1)
    assert "executed_actions" not in link.requests[0]


def test_what_a_lost_request_reported_is_reported_again():
    controller, link = controlled(ClockPolicy(2), lambda number: None if number == 1 else 0.0)
    drive(ReachTask(), controller, link, 1)
    assert link.requests[1]["executed_at_s"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert link.requests[2]["executed_at_s"].tolist() == pytest.approx([t * DT for t in range(14)])


def test_each_request_has_a_deadline_that_leaves_room_for_the_way():
    policy = ClockPolicy(2)
    controller, link = controlled(policy, lambda number: 0.0)
    link.delay_s = 0.15
    drive(ReachTask(), controller, link, 1, 8)
    assert [request["deadline_s"] for request in link.requests] == pytest.approx([0.45, 0.45])


def test_a_policy_with_a_history_is_sent_the_frames_before():
    policy = toy_policy({**SDP, "history": 2})
    controller, link = controlled(policy, after(1))
    drive(ReachTask(), controller, link, 2)
    assert "earlier" in link.requests[1] and len(link.requests[1]["earlier"]) == 1
    assert not np.array_equal(link.requests[1]["earlier"][0]["state/point"], link.requests[1]["state/point"])


def test_an_answer_of_the_last_episode_is_not_executed_in_the_next():
    policy = ClockPolicy()
    controller, link = controlled(policy, lambda number: 5 * DT)
    drive(ReachTask(), controller, link, 1, 2)
    controller.reset(2)
    task = ReachTask()
    observation, sources = task.reset(2), []
    for _ in range(14):
        link.tick(0.2 + observation.time_s)
        sources.append(controller.step(observation).source[0])
        observation = task.step(np.zeros(3)).observation
    assert len(link.requests) == 3 and link.requests[1]["reset"] and link.requests[1]["seed"] == 2
    assert round(link.requests[1]["time_s"] / DT) == 3, "once the old answer has come"
    assert "".join(sources) == "n" * 8 + "c" * 4 + "ff"


def test_the_first_request_of_an_episode_resets_the_server_until_one_was_answered():
    controller, link = controlled(ClockPolicy(), lambda number: None if number == 0 else 0.0)
    drive(ReachTask(), controller, link, 7, 30)
    assert [request.get("reset", False) for request in link.requests[:3]] == [True, True, False]
    assert link.requests[1]["seed"] == 7


def test_names_are_those_that_the_server_reads():
    policy = ClockPolicy()
    names = {"state/point": "observation/point", "instruction": "text"}
    link = VirtualLink(policy, lambda number: 0.0)
    link.answer = lambda request: None
    controller = RobotController(dataclasses.replace(served(policy), keys=names), link)
    controller.reset()
    controller.step(Observation({"point": np.zeros(2)}, {"front": np.zeros((2, 2, 3))}, "go", 0.0))
    assert set(link.requests[0]) == {"observation/point", "images/front", "text", "reset", "time_s", "deadline_s"}


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"spec": 3},
        {"spec": ClockPolicy().spec.to_json(), "action_steps": 0, "inference_delay": 0, "history": 1},
        {"spec": ClockPolicy().spec.to_json(), "action_steps": "x", "inference_delay": 0, "history": 1},
    ],
)
def test_a_server_that_does_not_state_its_policy_is_named(metadata):
    with pytest.raises(UserError, match="a server that states its policy's spec"):
        ServedPolicy.from_metadata(metadata)
    with pytest.raises(UserError, match="an answer with actions"):
        AnsweredChunk.from_answer({"actions": [[0.0]]})


def test_a_policy_for_another_robot_is_refused():
    metadata = {"spec": toy_spec().to_json(), "action_steps": 4, "inference_delay": 0, "history": 1}
    assert ServedPolicy.from_metadata(metadata, toy_spec()).action_steps == 4
    faster = dataclasses.replace(toy_spec(), control_hz=50.0)
    with pytest.raises(UserError, match="a policy for toy/reach; found one for toy/reach .control_hz: 10.0 against 50"):
        ServedPolicy.from_metadata(metadata, faster)


def test_skipped_control_steps_roll_the_buffer_by_no_more_than_a_chunk():
    policy = ClockPolicy(2)
    controller, link = controlled(policy, lambda number: 0.0)
    controller.reset(1)
    observation = ReachTask().reset(1)
    for t in (0, 1, 2, 3, 5):  # the loop was late, and the first chunk has 6 actions
        link.tick(0.1 * t)
        step = controller.step(dataclasses.replace(observation, time_s=0.1 * t))
    assert policy.asked == [(0, 4), (5, 4)]
    assert np.array_equal(step.action, policy.wanted([5])[0]), "each action at its time all the same"


def test_reset_comes_first():
    controller, _ = controlled(ClockPolicy(), lambda number: 0.0)
    with pytest.raises(UserError, match=r"reset\(\) before the first observation; found none"):
        controller.step(Observation({}))
