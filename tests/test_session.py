"""Sessions and the chunk executor: history in step with time, and what may reach a robot."""

import numpy as np
import pytest
from toy_specs import toy_spec

from embodied.errors import UserError
from embodied.executors.chunk import ChunkExecutor
from embodied.session import Session
from embodied.types import ActionChunk, Observation


class Recorder:
    """A policy that notes what it is asked."""

    action_steps, inference_delay, label = 4, 0, "recorder"

    def __init__(self, history=2):
        self.history, self.spec, self.asked = history, toy_spec(), []

    def initial_state(self, seed):
        return ("state", seed, 0)

    def step(self, histories, states, executed):
        self.asked.append(([o.time_s for o in histories[0]], states[0], executed[0]))
        kind, seed, count = states[0]
        chunk = ActionChunk(np.zeros((4, 3), np.float32), histories[0][-1].time_s, 0.1)
        return [chunk], [(kind, seed, count + 1)]


def at(time_s):
    return Observation(state={}, time_s=time_s)


def test_history_is_the_newest_frames_with_the_first_one_repeated_at_the_start():
    policy = Recorder()
    session = Session(policy)
    session.reset(7)
    session.act(at(0.0))
    for t in (0.1, 0.2, 0.3, 0.4):
        session.observe(at(t))
    session.act(at(0.4), executed=4)
    assert policy.asked == [([0.0, 0.0], ("state", 7, 0), 4), ([0.3, 0.4], ("state", 7, 1), 4)]


def test_reset_forgets_history_and_state():
    policy = Recorder()
    session = Session(policy)
    session.reset(1)
    session.act(at(5.0))
    session.reset(2)
    session.act(at(0.0), executed=0)
    assert policy.asked[-1] == ([0.0, 0.0], ("state", 2, 0), 0)


def test_a_left_out_control_step_is_refused_where_the_policy_sees_a_history():
    session = Session(Recorder())
    session.reset(0)
    session.act(at(0.0))
    with pytest.raises(UserError, match=r"one observation every 0.100 s.*found 0.400 s since the last one"):
        session.act(at(0.4))


def test_a_policy_without_history_may_be_asked_once_a_chunk():
    policy = Recorder(history=1)
    session = Session(policy)
    session.reset(0)
    for t in (0.0, 0.4, 0.8):
        session.act(at(t))
    with pytest.raises(UserError, match="in the order of time; found 0.400 s before the last one"):
        session.act(at(0.4))


def test_jitter_below_half_a_control_period_is_forgiven():
    session = Session(Recorder())
    session.reset(0)
    for t in (0.0, 0.13, 0.19, 0.31):
        session.observe(at(t))


@pytest.mark.parametrize("executed", [-1, 5, 2.5])
def test_executed_must_lie_within_the_chunk(executed):
    session = Session(Recorder())
    session.reset(0)
    with pytest.raises(UserError, match=f"executed a whole number between 0 and 4.*found {executed}"):
        session.act(at(0.0), executed=executed)


def test_observations_need_times_that_go_on():
    session = Session(Recorder())
    session.reset(0)
    session.act(at(0.0))
    with pytest.raises(UserError, match="later than the one acted on before; found time_s = 0.000 again; set time_s"):
        session.act(at(0.0))
    with pytest.raises(UserError, match="found time_s = nan"):
        session.observe(at(float("nan")))
    session.reset(1)
    session.act(at(0.0))


def chunk(values):
    return ActionChunk(np.asarray(values, np.float32), 0.0, 0.1)


def test_the_executor_hands_out_every_action_once_within_bounds():
    executor = ChunkExecutor(toy_spec().action)
    assert executor.needs_chunk(0.0)
    executor.take(chunk([[0.5, -3.0, 1.0], [0.1, 0.2, 9.0]]))
    assert executor.next_action(0.0).tolist() == pytest.approx([0.5, -1.0, 1.0])
    assert not executor.needs_chunk(0.1)
    assert executor.next_action(0.1).tolist() == pytest.approx([0.1, 0.2, 1.0])
    assert executor.needs_chunk(0.2)
    with pytest.raises(UserError, match="a chunk with actions left"):
        executor.next_action(0.2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0, float("nan"), 0.0]], "finite actions; found nan in 'dy' of action 0"),
        ([[0.0, 0.0]], r"actions with 3 values each \(dx, dy, grip\); found shape \(1, 2\)"),
        (np.zeros((0, 3)), "found shape"),
    ],
)
def test_the_executor_refuses_what_a_robot_must_not_get(values, message):
    with pytest.raises(UserError, match=message):
        ChunkExecutor(toy_spec().action).take(chunk(values))
