"""A LeRobot checkpoint behind the policy protocol: the chunks that LeRobot's own loop executes, without a memory."""

import numpy as np
import pytest
import torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from test_lerobot_teacher import CHUNK, ENVIRONMENT, STATE, folders  # noqa: F401  # a fixture
from toy_specs import ReachTask, toy_spec

from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.policies.lerobot_checkpoint import seeded_noise
from embodied.policies.lerobot_policy import LeRobotPolicy
from embodied.serving.served_session import Frame
from embodied.serving.sessions import Sessions, SessionSettings

NAMES = {"observation": ["point"], "environment_state": ["goal"]}


def served(folder, **settings):
    return LeRobotPolicy(toy_spec(), folder, **NAMES, **settings)


def observations(start, count):
    task = ReachTask()
    seen = [task.reset(start)]
    generator = np.random.default_rng(0)
    for _ in range(count - 1):
        seen.append(task.step(generator.uniform(-1, 1, 3)).observation)
    return seen


def batch_of(observation):
    return {
        STATE: torch.tensor(observation.state["point"]),
        ENVIRONMENT: torch.tensor(observation.state["goal"]),
        "task": observation.instruction,
    }


@pytest.mark.parametrize("kind", ["act", "diffusion"])
def test_a_chunk_is_what_lerobots_loop_executes_from_there_on(folders, kind):  # noqa: F811
    """LeRobot sees every control step; its queue runs empty every CHUNK steps."""
    policy = served(folders / kind)
    assert policy.history == (2 if kind == "diffusion" else 1) and policy.action_steps == CHUNK
    original = get_policy_class(kind).from_pretrained(folders / kind)
    before, after = make_pre_post_processors(original.config, str(folders / kind))
    seen = observations(3, 2 * CHUNK)
    original.reset()
    state = policy.initial_state(7)
    for chunk_number in range(2):
        begin = chunk_number * CHUNK
        history = [seen[max(begin - back, 0)] for back in range(policy.history - 1, -1, -1)]
        (chunk,), (state,) = policy.step([history], [state], [CHUNK])
        with torch.inference_mode(), seeded_noise(7, chunk_number):
            expected = [
                after(original.select_action(before(batch_of(seen[begin + step])))).numpy()[0] for step in range(CHUNK)
            ]
        np.testing.assert_allclose(chunk.actions, np.clip(expected, -1, 1), atol=1e-5)
        assert chunk.start_s == pytest.approx(begin * 0.1)


def test_sessions_know_nothing_of_each_other(folders):  # noqa: F811
    policy = served(folders / "diffusion")
    one, other = observations(1, 2), observations(2, 2)
    together, _ = policy.step([one, other], [policy.initial_state(1), policy.initial_state(2)], [4, 4])
    alone, _ = policy.step([other], [policy.initial_state(2)], [4])
    assert np.array_equal(together[1].actions, alone[0].actions)
    assert not np.array_equal(together[0].actions, together[1].actions)


def test_it_is_evaluated_like_any_other_policy(folders):  # noqa: F811
    rollout = run_episode(ReachTask(), served(folders / "act"), 3, 3)
    assert np.isfinite(rollout.episode.executed).all() and rollout.chunk_actions.shape == (10, CHUNK, 3)


def test_it_is_served_like_any_other_policy(folders):  # noqa: F811
    seen = observations(3, 1)[0]
    sessions = Sessions(served(folders / "act"), SessionSettings(deadline_periods=100))
    sessions.start(seen)
    try:
        sessions.open("robot", "robot")
        answer = sessions.act("robot", "robot", Frame(seen, 0.0))
    finally:
        sessions.stop()
    alone, _ = served(folders / "act").step([[seen]], [served(folders / "act").initial_state(0)], [4])
    assert np.array_equal(answer.chunk.actions, alone[0].actions)


def test_what_cannot_be_served_in_chunks_is_named(folders, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="a LeRobot policy that hands out chunks; found one with temporal_ensemble"):
        served(folders / "ensemble")
    with pytest.raises(UserError, match="a LeRobot checkpoint folder at"):
        served(tmp_path)
    with pytest.raises(UserError, match="a LeRobot policy for toy/reach: .* found one for"):
        LeRobotPolicy(toy_spec(), folders / "act")
