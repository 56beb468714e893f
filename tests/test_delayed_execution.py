"""Executors and delays in evaluated episodes: every action at its time, no stand-still that could be spared."""

import functools
import itertools
import pickle

import numpy as np
import pytest
from clock_policy import ClockPolicy, clock_plan
from toy_policies import DIFFUSION, SDP, toy_policy
from toy_specs import ReachTask

from embodied.catalog import make_executor
from embodied.errors import MisfitError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.result_file import RESULTS
from embodied.evaluation.runner import evaluate
from embodied.executors.holding import hold
from embodied.process_pool import ProcessPool, SerialPool
from embodied.replay.predicted_path import predicted_by_step
from embodied.session import Session


def silent(rows):
    pass


def times_and_holds(rollout):
    """Of the executed actions those that are for another step than theirs, and the steps at which the robot held."""
    executed = rollout.episode.executed
    held = np.flatnonzero(executed[:, 0] == 0)
    moved = np.flatnonzero(executed[:, 0])
    return [int(t) for t in moved if not np.array_equal(executed[t], ClockPolicy.wanted([t])[0])], held.tolist()


@pytest.mark.parametrize(("planned", "taken"), [(0, 0), *itertools.product((1, 2, 4), range(5))])
def test_a_policy_that_plans_for_its_delay_never_holds_up_to_it_and_is_never_late(planned, taken):
    """Chunks of 4. After the plan's end the robot holds for the difference, and the past actions are left out."""
    policy = ClockPolicy(planned)
    rollout = run_episode(ReachTask(), policy, 1, 0, delay_steps=taken)
    wrong, held = times_and_holds(rollout)
    assert wrong == []
    late = max(taken - planned, 0)
    assert held == [t for asked in range(4, 40, 4) for t in range(asked + planned, asked + planned + late) if t < 40]
    assert policy.asked == [(t, 4) for t in range(0, 40, 4)], "every 4 steps, and the buffer rolls by 4"


def test_a_rollout_has_what_was_planned_from_each_observation_on():
    rollout = run_episode(ReachTask(), ClockPolicy(2, beyond=4), 1, 0, delay_steps=2)
    assert rollout.chunk_steps.tolist() == [t for t in range(0, 40, 4) if t + 2 < 40]
    for t, actions, preview in zip(rollout.chunk_steps, rollout.chunk_actions, rollout.preview_actions, strict=True):
        assert np.array_equal(actions, ClockPolicy.wanted(range(t, t + 6)))
        assert np.array_equal(preview, ClockPolicy.wanted(range(t + 6, t + 10)))
    clean, beyond = predicted_by_step(rollout)
    assert np.array_equal(clean, ClockPolicy.wanted(range(40)))
    assert np.array_equal(beyond[6:], ClockPolicy.wanted(range(6, 40))) and np.isnan(beyond[:6]).all()


@pytest.mark.parametrize(("planned", "taken"), [(5, 0), (2, 5), (1, 5)])
def test_a_chunk_has_to_be_there_when_the_next_is_asked_for(tmp_path, planned, taken):
    message = f"inference_delay and delay_steps of at most 4, .*; found inference_delay {planned}, delay_steps {taken}"
    with pytest.raises(MisfitError, match=message):
        run_episode(ReachTask(), ClockPolicy(planned), 1, 0, delay_steps=taken)
    with pytest.raises(MisfitError, match=message):
        evaluate(clock_plan(planned, delay_steps=taken), tmp_path, SerialPool, silent)


@pytest.mark.parametrize("planned", [0, 2])
@pytest.mark.parametrize("taken", [0, 2, 3])
def test_an_ensemble_goes_on_while_the_policy_thinks(planned, taken):
    policy = ClockPolicy(planned, beyond=4)
    executor = make_executor({"name": "temporal_ensembling", "m": 0.1}, policy)
    rollout = run_episode(ReachTask(), policy, 1, 0, delay_steps=taken, executor=executor)
    assert np.allclose(rollout.episode.executed, ClockPolicy.wanted(range(40)), atol=1e-6), "all agree, none is late"
    asked = [0, *range(1, 40, max(taken, 1))]
    assert policy.asked == [(0, 4), *((t, t - before) for before, t in itertools.pairwise(asked))]
    for t, actions in zip(rollout.chunk_steps, rollout.chunk_actions, strict=True):
        assert np.array_equal(actions, ClockPolicy.wanted(range(t, t + planned + 4)))


def test_blended_chunks_that_agree_are_what_they_agree_on():
    policy = ClockPolicy(beyond=4)
    executor = make_executor({"name": "weighted_overlap", "overlap": 4}, policy)
    rollout = run_episode(ReachTask(), policy, 1, 0, executor=executor)
    assert np.allclose(rollout.episode.executed, ClockPolicy.wanted(range(40)), atol=1e-6)
    assert policy.asked == [(t, 4) for t in range(0, 40, 4)]


def counted(task, policy, start, delay_steps):
    """Driven as before there were executors that know the time: by counting the actions of each chunk."""
    session = Session(policy)
    session.reset(start)
    observation, chunk, thinking, done, action = task.reset(start), None, None, 0, np.zeros(3, np.float32)
    executed = []
    for t in range(task.spec.horizon):
        session.observe(observation)
        if (chunk is None or done == len(chunk.actions)) and thinking is None:
            thinking = (t + (delay_steps if chunk else 0), session.act(observation))
        if thinking is not None and t >= thinking[0]:
            chunk, thinking, done = thinking[1], None, 0
        if done < len(chunk.actions):
            action, done = np.clip(chunk.actions[done], -1, 1).astype(np.float32), done + 1
        else:
            action = hold(task.spec.action, action)
        executed.append(action)
        observation = task.step(action).observation
    return np.array(executed)


@pytest.mark.parametrize("settings", [SDP, DIFFUSION], ids=lambda s: s["name"])
@pytest.mark.parametrize("delay_steps", [0, 1, 4, 7])
def test_a_policy_that_plans_for_no_delay_acts_as_it_always_did(settings, delay_steps):
    policy = toy_policy(settings)
    rollout = run_episode(ReachTask(), policy, 3, 3, delay_steps=delay_steps)
    assert np.array_equal(rollout.episode.executed, counted(ReachTask(), policy, 3, delay_steps))


def test_outcomes_with_an_executor_do_not_depend_on_the_number_of_processes(tmp_path):
    results = []
    for name, pool in (("here", SerialPool), ("two", functools.partial(ProcessPool, workers=2))):
        folder = tmp_path / name
        folder.mkdir()
        plan = clock_plan(1, 4, delay_steps=2, executor={"name": "temporal_ensembling", "m": 0.2})
        results.append(evaluate(plan, folder, pool, silent)[0])
    assert results[0] == results[1] and [row["error"] for row in results[0]] == [None] * 6
    assert len({row["return"] for row in results[0]}) == 6


def test_an_executor_that_the_policy_cannot_serve_ends_the_evaluation_at_once(tmp_path):
    plan = clock_plan(executor={"name": "weighted_overlap", "overlap": 2})
    with pytest.raises(MisfitError, match="at least 2 actions predicted beyond a chunk's own 4, .*; found 0") as caught:
        evaluate(plan, tmp_path, SerialPool, silent)
    assert not (tmp_path / RESULTS).exists() or len((tmp_path / RESULTS).read_text().splitlines()) == 1
    from_a_process = pickle.loads(pickle.dumps(caught.value))
    assert type(from_a_process) is MisfitError and str(from_a_process) == str(caught.value)
