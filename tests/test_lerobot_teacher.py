"""A LeRobot checkpoint as a teacher: its own queues and noise, made explicit, and the folders that are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_checkpoints import ENVIRONMENT, STATE, save_checkpoint
from toy_specs import ReachTask, toy_settings

from embodied.catalog import make_expert
from embodied.collection import collect_episode
from embodied.errors import UserError

ORDER = {"observation": ["point"], "environment_state": ["goal"]}
CHUNK = 4  # actions that one inference puts into the queue


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: `act` with a queue, `ensemble` with a running mean, `diffusion` with a history and noise."""
    root = tmp_path_factory.mktemp("lerobot")
    small = {"chunk_size": CHUNK, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1}
    small |= {"use_vae": False, "push_to_hub": False}
    save_checkpoint(root / "act", ACTConfig(**small, n_action_steps=CHUNK))
    save_checkpoint(root / "ensemble", ACTConfig(**small, n_action_steps=1, temporal_ensemble_coeff=0.1))
    unet = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": CHUNK, "down_dims": (8, 16), "n_groups": 4}
    unet |= {"diffusion_step_embed_dim": 8, "num_inference_steps": 3, "push_to_hub": False}
    save_checkpoint(root / "diffusion", DiffusionConfig(**unet))
    return root


KINDS = ["act", "ensemble", "diffusion"]


@pytest.fixture
def task():
    task = ReachTask()
    task.reset(0)
    return task


def teacher(task, folder, **settings):
    return make_expert(task, {"name": "lerobot", "path": str(folder), **ORDER, **settings})


def drive(task, expert, start_id: int, steps: int = 7) -> list[np.ndarray]:
    """The teacher's actions along one episode."""
    task.reset(start_id)
    memory, actions = expert.infer_memory(), []
    for _ in range(steps):
        action, memory = expert.act(memory)
        actions.append(action)
        task.step(action)
    return actions


def test_actions_are_lerobots_own(task, folders):
    """LeRobot's documented loop beside the teacher, on a policy without noise."""
    config = ACTConfig.from_pretrained(folders / "act")
    policy = get_policy_class("act").from_pretrained(folders / "act")
    before, after = make_pre_post_processors(config, str(folders / "act"))
    expert = teacher(task, folders / "act")
    for start_id in (0, 1):
        observation, memory = task.reset(start_id), expert.infer_memory()
        policy.reset()
        for _ in range(2 * CHUNK + 1):
            batch = {
                STATE: torch.tensor(observation.state["point"]),
                ENVIRONMENT: torch.tensor(observation.state["goal"]),
            }
            with torch.inference_mode():
                expected = after(policy.select_action(before(batch))).numpy()[0]
            action, memory = expert.act(memory)
            np.testing.assert_allclose(action, np.clip(expected, -1, 1), atol=1e-6)
            observation = task.step(action).observation


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_one_episode_reaches_another(task, folders, kind):
    expert = teacher(task, folders / kind)
    first = drive(task, expert, 3)
    drive(task, expert, 4, steps=2)  # leaves a half-empty queue behind
    assert np.array_equal(drive(task, expert, 3), first)
    assert np.array_equal(drive(task, teacher(task, folders / kind), 3), first), "another instance is expected to agree"


@pytest.mark.parametrize("kind", KINDS)
def test_asking_changes_neither_the_memory_nor_the_answer(task, folders, kind):
    expert = teacher(task, folders / kind)
    task.reset(5)
    memory = expert.infer_memory()
    for _ in range(3):
        action, following = expert.act(memory)
        again, _ = expert.act(memory)
        assert np.array_equal(action, again)
        memory = following
        task.step(action)


def test_the_queue_lasts_for_a_chunk_and_is_part_of_the_memory(task, folders):
    expert = teacher(task, folders / "act")
    task.reset(0)
    memory = expert.infer_memory()
    for left in (3, 2, 1, 0, 3):
        action, memory = expert.act(memory)
        assert len(memory.held["_action_queue"]) == left
        task.step(action)
    assert memory.calls == 5


def test_noise_is_seeded_and_leaves_torchs_generator_alone(task, folders):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drive(task, teacher(task, folders / "diffusion"), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(drive(task, teacher(task, folders / "diffusion"), 3), first)
    assert not np.array_equal(drive(task, teacher(task, folders / "diffusion", seed=1), 3), first)


def test_its_episodes_are_recorded_like_any_other(task, folders):
    episode = collect_episode(task, teacher(task, folders / "diffusion"), 3, toy_settings())
    assert episode.length == task.spec.horizon and np.isfinite(episode.action).all()


def test_the_state_vectors_can_be_named_in_another_order(task, folders):
    swapped = {"observation": ["goal"], "environment_state": ["point"]}
    one, other = teacher(task, folders / "act"), teacher(task, folders / "act", **swapped)
    assert not np.array_equal(one.act(one.infer_memory())[0], other.act(other.infer_memory())[0])


def test_features_that_the_task_does_not_have_are_named(task, folders):
    message = (
        r"a LeRobot policy for toy/reach: observation\.state \[4\], observation\.environment_state \[2\] to an action "
        r"of 3; found one for observation\.state \[2\], observation\.environment_state \[2\] to an action of \[3\]"
    )
    with pytest.raises(UserError, match=message):
        teacher(task, folders / "act", observation=None)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"]
)
def test_a_folder_without_one_of_its_files_is_refused(task, folders, tmp_path, name):
    shutil.copytree(folders / "act", tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(UserError, match=rf"a LeRobot checkpoint folder at .*found no {name}"):
        teacher(task, tmp_path / "copy")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "policy_preprocessor.json"])
def test_a_folder_of_another_kind_is_refused(task, folders, tmp_path, name):
    shutil.copytree(folders / "act", tmp_path / "copy")
    (tmp_path / "copy" / name).write_text("[1, 2]")
    with pytest.raises(UserError, match=r"expected a .*LeRobot.* at .*copy.*; found something else"):
        teacher(task, tmp_path / "copy")


def test_a_single_file_or_an_absent_one_is_refused(task, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a LeRobot checkpoint folder at"):
        teacher(task, tmp_path / "file")
    with pytest.raises(UserError, match="a teacher at .*absent; found no such file"):
        teacher(task, tmp_path / "absent")


def test_a_processor_cannot_name_a_class_of_its_own(task, folders, tmp_path):
    shutil.copytree(folders / "act", tmp_path / "copy")
    path = tmp_path / "copy" / "policy_preprocessor.json"
    processor = json.loads(path.read_text())
    processor["steps"].append({"class": "subprocess.Popen", "config": {"args": ["false"]}})
    path.write_text(json.dumps(processor))
    with pytest.raises(UserError, match=r"steps of LeRobot's own in .*; found subprocess\.Popen"):
        teacher(task, tmp_path / "copy")
