"""Policies that see images: what they are given and what they leave alone, exact resume, and whom they refuse."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from made_episodes import make_episode
from test_training import SETTINGS, Killed, job, killed_after, quiet, tensors
from toy_policies import CONV, DIFFUSION, SDP, TINY, toy_policy, toy_stream
from toy_specs import ReachTask, absolute_spec, image_spec, toy_spec

from embodied.catalog import STATE_ENCODER
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.evaluation.episodes import check_policy_fits
from embodied.policies.encoders import image_encoder
from embodied.policies.policy_file import PolicyDescription, load_policy, read_description, save_policy
from embodied.session import Session
from embodied.summaries import without_timings
from embodied.training.data import DataSettings
from embodied.training.job import TrainingJob
from embodied.types import Observation, TaskSpec

SPEC = image_spec()
POLICIES = {"sdp": SDP, "diffusion": DIFFUSION}
EPISODES = 4


def policy(settings=SDP, spec=SPEC, **encoder):
    return toy_policy(settings, TINY, spec, {**CONV, **encoder})


def act(built, history):
    return built.step([history], [built.initial_state(0)], [0])[0][0].actions


def without(observation, state=(), images=()):
    return dataclasses.replace(
        observation,
        state={name: value for name, value in observation.state.items() if name not in state},
        images={name: value for name, value in observation.images.items() if name not in images},
    )


@pytest.mark.parametrize("settings", POLICIES.values(), ids=POLICIES)
class TestWhatIsSeen:
    def test_actions_depend_on_every_image_of_the_history(self, settings):
        built, (older, newer, other) = policy(settings), toy_stream(0, 3, SPEC)
        base = act(built, [older, newer])
        for frame in range(2):
            for camera in ("front", "wrist"):
                history = [older, newer]
                images = {**history[frame].images, camera: other.images[camera]}
                history[frame] = dataclasses.replace(history[frame], images=images)
                assert not np.allclose(act(built, history), base, atol=1e-7), (frame, camera)

    def test_what_the_encoder_does_not_name_is_neither_needed_nor_seen(self, settings):
        built, (older, newer, other) = policy(settings, state=["point"], cameras=["wrist"]), toy_stream(0, 3, SPEC)
        assert [vector.name for vector in built.inputs.state] == ["point"]
        assert [camera.name for camera in built.inputs.cameras] == ["wrist"]
        assert built.encoder.context_size == 2 * (2 + 8) and built.spec == SPEC
        base = act(built, [older, newer])
        changed = dataclasses.replace(
            newer,
            state={**newer.state, "goal": other.state["goal"]},
            images={**newer.images, "front": other.images["front"]},
        )
        assert np.array_equal(act(built, [older, changed]), base)
        less = [without(observation, ["goal"], ["front"]) for observation in (older, newer)]
        assert np.array_equal(act(built, less), base)

    def test_a_reference_of_actions_is_needed_though_the_encoder_does_not_see_it(self, settings):
        """`point`, where differences begin from: not in the context, yet the actions follow it exactly."""
        spec = dataclasses.replace(absolute_spec(), cameras=SPEC.cameras)
        relative = {**settings, "actions": {"representation": "chunk_relative"}}
        built, stream = policy(relative, spec, state=["goal"]), toy_stream(0, 2, spec)
        assert [vector.name for vector in built.inputs.state] == ["point", "goal"]
        assert built.encoder.context_size == 2 * (2 + 2 * 8)
        moved = [
            dataclasses.replace(o, state={**o.state, "point": o.state["point"] + np.float32([3, -2])}) for o in stream
        ]
        assert torch.equal(built.encode([moved]), built.encode([stream]))
        np.testing.assert_allclose(act(built, moved)[:, :2], act(built, stream)[:, :2] + [3, -2], atol=1e-5)
        with pytest.raises(UserError, match="vector 'point'"):
            act(built, [without(observation, ["point"]) for observation in stream])

    def test_latency_parts_take_images(self, settings):
        built, stream = policy(settings), toy_stream(0, 2, SPEC)
        parts = built.timed_parts(stream)
        assert torch.equal(parts["encode"](), built.encode([stream]))


class TestWrongImages:
    @pytest.mark.parametrize(
        ("image", "found"),
        [
            (np.zeros((12, 24, 3), np.uint8), r"uint8 \[12, 24, 3\]"),
            (np.zeros((3, 24, 24), np.uint8), r"uint8 \[3, 24, 24\]"),
            (np.zeros((24, 24, 4), np.uint8), r"uint8 \[24, 24, 4\]"),
            (np.zeros((24, 24), np.uint8), r"uint8 \[24, 24\]"),
            (np.zeros((24, 24, 3), np.float32), r"float32 \[24, 24, 3\]"),
            (np.zeros((24, 24, 3), np.int64), r"int64 \[24, 24, 3\]"),
            (None, r"object \[\]"),
        ],
    )
    def test_another_shape_or_type(self, image, found):
        observation = toy_stream(0, 1, SPEC)[0]
        observation.images["wrist"] = image
        session = Session(policy())
        session.reset(0)
        message = rf"the image of camera 'wrist' as uint8 \[24, 24, 3\]; found {found}; send every camera's image"
        with pytest.raises(UserError, match=message):
            session.act(observation)

    def test_a_camera_that_is_missing(self):
        observation = without(toy_stream(0, 1, SPEC)[0], images=["front"])
        with pytest.raises(UserError, match="the image of camera 'front' .*; found images of wrist; send every"):
            act(policy(), [observation] * 2)
        with pytest.raises(UserError, match=r"the image of camera 'front' .*; found images of \(no camera\)"):
            act(policy(), [without(observation, images=["wrist"])] * 2)


def rendered(**settings):
    cameras = tuple(dataclasses.replace(camera, rendering=settings or None) for camera in SPEC.cameras)
    return dataclasses.replace(SPEC, cameras=cameras)


class TestRendering:
    def task(self, spec):
        task = ReachTask()
        task.spec = spec
        return task

    def test_other_rendering_is_refused(self):
        built = policy(spec=rendered(renderer="mujoco", shadows=False))
        check_policy_fits(built, self.task(rendered(renderer="mujoco", shadows=False)))
        message = r"rendering.front.shadows: False against True.*evaluate it on the task it was trained for"
        with pytest.raises(UserError, match=message):
            check_policy_fits(built, self.task(rendered(renderer="mujoco", shadows=True)))
        with pytest.raises(UserError, match=r"rendering.front.samples"):
            check_policy_fits(built, self.task(rendered(renderer="mujoco", shadows=False, samples=0)))

    def test_where_one_does_not_state_it_it_is_not_compared(self):
        stated, silent = rendered(renderer="mujoco"), rendered()
        check_policy_fits(policy(spec=silent), self.task(stated))
        check_policy_fits(policy(spec=stated), self.task(silent))
        smaller = dataclasses.replace(silent, cameras=image_spec(size=20).cameras)
        with pytest.raises(UserError, match=r"cameras.front: {'height': 24, .*} against {'height': 20"):
            check_policy_fits(policy(spec=stated), self.task(smaller))

    def test_it_travels_with_the_checkpoint(self, tmp_path):
        spec = rendered(renderer="mujoco", samples=0, geom_group=None)
        assert TaskSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
        save_policy(tmp_path, policy(spec=spec), PolicyDescription(spec, SDP, TINY, {}, {}, 0, {}, CONV))
        assert load_policy(tmp_path)[0].spec == spec


class TestPolicyFile:
    def test_one_written_before_there_were_encoders_sees_state(self, tmp_path):
        built = toy_policy(SDP)
        save_policy(tmp_path, built, PolicyDescription(toy_spec(), SDP, TINY, {}, {}, 0, {}))
        data = json.loads((tmp_path / "policy.json").read_text())
        assert data.pop("encoder") == STATE_ENCODER
        (tmp_path / "policy.json").write_text(json.dumps(data))
        assert read_description(tmp_path).encoder == STATE_ENCODER
        loaded, stream = load_policy(tmp_path)[0], toy_stream(0, 2)
        assert np.array_equal(act(loaded, stream), act(built, stream))

    def test_one_written_before_renderings_were_stated_is_read(self, tmp_path):
        save_policy(tmp_path, policy(), PolicyDescription(SPEC, SDP, TINY, {}, {}, 0, {}, CONV))
        data = json.loads((tmp_path / "policy.json").read_text())
        for camera in data["spec"]["cameras"]:
            assert camera.pop("rendering") is None
        (tmp_path / "policy.json").write_text(json.dumps(data))
        assert load_policy(tmp_path)[0].spec == SPEC

    def test_an_encoder_that_is_none(self, tmp_path):
        save_policy(tmp_path, policy(), PolicyDescription(SPEC, SDP, TINY, {}, {}, 0, {}, CONV))
        path = tmp_path / "policy.json"
        path.write_text(path.read_text().replace("conv_small", "conv_large"))
        with pytest.raises(UserError, match="the name of an encoder; found 'conv_large'"):
            load_policy(tmp_path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "encoder": {"crop": 0.9}}))
        with pytest.raises(UserError, match="a policy description in .*; found something unreadable"):
            load_policy(tmp_path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "encoder": None}))
        with pytest.raises(UserError, match="a policy description in .*; found something unreadable"):
            load_policy(tmp_path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "images.zarr"
    with EpisodeStore.create(path, SPEC, expected_episodes=EPISODES, provenance={}) as store:
        for seed in range(EPISODES):
            store.commit(make_episode(seed, steps=6, spec=SPEC))
    return path


def image_job(folder, store, encoder=CONV, steps=6, **changes) -> TrainingJob:
    settings = dataclasses.replace(SETTINGS, steps=steps, batch_size=6, checkpoint_every=2, validation_every=3)
    return dataclasses.replace(job(folder, store, settings, spec=SPEC, **changes), encoder=encoder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, image_job(folder, store).run(quiet)


class TestTraining:
    @pytest.mark.parametrize("killed_at", [3, 4])
    def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(self, tmp_path, store, uninterrupted, killed_at):
        """Random crops included, which are drawn from the loss's generator."""
        with pytest.raises(Killed):
            image_job(tmp_path, store).run(killed_after(killed_at))
        torch.manual_seed(99)  # nothing may draw from it
        result = image_job(tmp_path, store).run(quiet)
        ours, theirs = tensors(tmp_path), tensors(uninterrupted[0])
        assert ours.keys() == theirs.keys() and any("encoder.towers.1" in key for key in ours)
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
        assert without_timings(result) == without_timings(uninterrupted[1])

    @pytest.mark.parametrize("ahead", [0, 2])
    @pytest.mark.parametrize("mapped", [False, True])
    def test_images_from_shards_or_a_map_ahead_or_not_give_the_same_weights(
        self, tmp_path, store, uninterrupted, mapped, ahead
    ):
        data = DataSettings(image_cache=tmp_path / "cache" if mapped else None, read_ahead=ahead)
        run = tmp_path / "run"
        dataclasses.replace(image_job(run, store), data=data).run(quiet)
        ours, theirs = tensors(run), tensors(uninterrupted[0])
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert len(list(tmp_path.glob("cache/*/*.npy"))) == (len(SPEC.cameras) if mapped else 0)

    def test_crops_are_random_in_training_and_central_otherwise(self, store, uninterrupted):
        built, _ = load_policy(uninterrupted[0] / "checkpoints" / "step_0000006")
        stream = toy_stream(0, 2, SPEC)
        state = torch.zeros(1, 2, 4)
        images = {c.name: torch.from_numpy(np.stack([o.images[c.name] for o in stream]))[None] for c in SPEC.cameras}
        central = built.context(state, images)
        assert torch.equal(central, built.context(state, images))
        shifted = [built.context(state, images, torch.Generator().manual_seed(seed)) for seed in range(5)]
        assert all(not torch.equal(context, central) for context in shifted)

    def test_every_training_step_shifts_and_no_validation_does(self, tmp_path, store, monkeypatch):
        calls = {"random_crop": 0, "centre_crop": 0}
        for name in calls:
            original = getattr(image_encoder, name)

            def counted(*args, name=name, original=original):
                calls[name] += 1
                return original(*args)

            monkeypatch.setattr(image_encoder, name, counted)
        image_job(tmp_path, store, steps=6).run(quiet)
        # Six steps, and twice the held-out windows: one episode of 6 steps, a batch.
        assert calls == {"random_crop": 6 * len(SPEC.cameras), "centre_crop": 2 * len(SPEC.cameras)}

    def test_the_checkpoint_says_what_it_sees(self, tmp_path, store):
        encoder = {**CONV, "state": ["point"], "cameras": ["wrist"]}
        image_job(tmp_path, store, encoder, steps=1).run(quiet)
        built, description = load_policy(tmp_path / "checkpoints" / "step_0000001")
        assert description.encoder == encoder and description.spec == SPEC
        assert set(description.statistics) == {"state/point", "action"}
        assert np.isfinite(act(built, [without(o, ["goal"], ["front"]) for o in toy_stream(0, 2, SPEC)])).all()

    def test_fine_tuning_starts_from_all_weights_of_the_same_encoder(self, tmp_path, store, uninterrupted):
        start = str(uninterrupted[0])
        frozen = image_job(tmp_path, store, steps=1, init=start)
        frozen = dataclasses.replace(frozen, settings=dataclasses.replace(frozen.settings, learning_rate=0.0))
        frozen.run(quiet)
        theirs, _ = load_policy(uninterrupted[0] / "checkpoints" / "step_0000006")
        ours, _ = load_policy(tmp_path / "checkpoints" / "step_0000001")
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())

    @pytest.mark.parametrize(
        ("changes", "found"),
        [
            ({"crop": 0.8}, "crop=0.8"),
            ({"features": 16}, "features=16"),
            ({"cameras": ["front"]}, r"cameras=\['front'\]"),
            ({"state": ["goal"]}, r"state=\['goal'\]"),
        ],
        ids=["crop", "features", "cameras", "state"],
    )
    def test_fine_tuning_refuses_another_encoder(self, tmp_path, store, uninterrupted, changes, found):
        start = str(uninterrupted[0])
        refused = image_job(tmp_path, store, {**CONV, **changes}, init=start)
        message = rf"the encoder of init=.*: conv_small \(.*crop=0.9.*\); found .*{found}.*; use the same encoder="
        with pytest.raises(UserError, match=message):
            refused.run(quiet)

    def test_a_store_with_other_pictures_is_refused(self, tmp_path, store):
        larger = dataclasses.replace(image_job(tmp_path, store), spec=image_spec(size=32))
        with pytest.raises(UserError, match=r"cameras.front: {'height': 24, .*} against {'height': 32"):
            larger.run(quiet)
        third = dataclasses.replace(image_job(tmp_path, store), spec=image_spec("front", "wrist", "side"))
        with pytest.raises(UserError, match="cameras.side"):
            third.run(quiet)

    def test_a_camera_that_only_the_store_has_is_left_alone(self, tmp_path, store):
        one = dataclasses.replace(image_job(tmp_path, store, steps=1), spec=image_spec("wrist"))
        assert one.run(quiet)["steps"] == 1


def test_an_observation_without_images_is_enough_for_a_policy_of_state():
    built, stream = toy_policy(SDP), toy_stream(0, 2)
    bare = [Observation(state=o.state, time_s=o.time_s) for o in stream]
    assert np.array_equal(act(built, bare), act(built, stream))
