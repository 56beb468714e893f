"""LeRobot's own DiffusionPolicy in this program's harness: the same chunks as LeRobot makes, timed a chunk."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot_checkpoints import save_checkpoint
from toy_policies import toy_stream
from toy_specs import ReachTask, absolute_spec, toy_spec

from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.latency import measure_latency
from embodied.policies.lerobot_checkpoint import load_lerobot
from embodied.policies.lerobot_diffusion import LeRobotDiffusion

ORDER = {"observation": ["point"], "environment_state": ["goal"]}
CALLS, CHUNK = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lerobot") / "diffusion"
    unet = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": CHUNK, "down_dims": (8, 16), "n_groups": 4}
    unet |= {"diffusion_step_embed_dim": 8, "num_inference_steps": CALLS, "push_to_hub": False}
    save_checkpoint(path, DiffusionConfig(**unet))
    return path


@pytest.fixture
def policy(folder):
    return LeRobotDiffusion(toy_spec(), str(folder), **ORDER)


def test_its_chunks_are_those_that_lerobots_own_queues_would_have_led_to(folder, policy):
    stream = toy_stream(0, 2)
    (chunk,), _ = policy.step([stream], [policy.initial_state(5)], [CHUNK])
    with contextlib.redirect_stdout(io.StringIO()):
        theirs, preprocess, postprocess = load_lerobot(folder, "cpu")
    theirs.reset()
    (seed,) = np.random.SeedSequence([5, 0]).generate_state(1)
    with torch.inference_mode():
        for observation in stream:
            batch = preprocess(
                {
                    "observation.state": torch.from_numpy(observation.state["point"]),
                    "observation.environment_state": torch.from_numpy(observation.state["goal"]),
                    "task": "",
                }
            )
            torch.manual_seed(int(seed))
            theirs._queues["action"].clear()  # so that the next call makes a chunk of the newest observation
            actions = [theirs.select_action(batch)]
        actions += [theirs.select_action(batch) for _ in range(CHUNK - 1)]
    expected = torch.cat([postprocess(action) for action in actions]).numpy()
    assert np.allclose(chunk.actions, expected, atol=1e-6)
    assert chunk.network_calls == CALLS == policy.calls_per_observation


def test_an_episode_is_a_function_of_its_start_and_seed(policy):
    one, again, other = (run_episode(ReachTask(), policy, 3, seed).episode.action for seed in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_the_global_generator_stays_as_it_was(policy):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    policy.step([toy_stream(0, 2)], [policy.initial_state(0)], [CHUNK])
    assert torch.rand(1) == expected


def test_a_chunk_is_timed_with_all_its_calls(policy):
    figures = measure_latency(policy, toy_stream(0, 40), observations=10)
    assert figures["observation_ms"]["p50"] > CALLS * 0.5 * figures["network_call_ms"]["p50"]
    assert figures["action_ms"]["p50"] == pytest.approx(figures["observation_ms"]["p50"] / CHUNK)


def test_what_does_not_fit_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="a LeRobot checkpoint folder at .*absent"):
        LeRobotDiffusion(toy_spec(), str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"see lerobot.observation, lerobot.environment_state"):
        LeRobotDiffusion(toy_spec(), str(folder))
    with pytest.raises(UserError, match="names of state vectors of toy/reach_absolute in lerobot.observation.*'pont'"):
        LeRobotDiffusion(absolute_spec(), str(folder), observation=["pont"])
    small = {"chunk_size": 4, "n_action_steps": 4, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16}
    save_checkpoint(tmp_path / "act", ACTConfig(**small, n_encoder_layers=1, use_vae=False, push_to_hub=False))
    with pytest.raises(UserError, match="policy 'diffusion' in .*found 'act'.*expert=lerobot"):
        LeRobotDiffusion(toy_spec(), str(tmp_path / "act"))
