"""What every policy must do, with every network, every representation of actions, and images."""

import copy

import numpy as np
import pytest
import torch
from toy_policies import (
    CONV,
    DIFFUSION,
    FLOW,
    FLOW_MAP,
    RNR,
    SDP,
    STREAMING_FLOW,
    TINY,
    TINY_UNET,
    toy_image,
    toy_policy,
    toy_stream,
)
from toy_specs import absolute_spec, arm_spec, image_spec, toy_spec

from embodied.catalog import NETWORKS, POLICIES, STATE_ENCODER
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.policy_file import (
    PolicyDescription,
    build_policy,
    load_policy,
    read_description,
    save_policy,
)
from embodied.session import Session
from embodied.types import CameraSpec, Statistics

SETTINGS = {
    "diffusion": DIFFUSION,
    "sdp": SDP,
    "rnr": RNR,
    "flow": FLOW,
    "flow_map": FLOW_MAP,
    "flow map of ddpm": {**FLOW_MAP, "path": "ddpm", "calls": 1},
    "streaming flow": STREAMING_FLOW,
}
NETWORK_SETTINGS = {"transformer": TINY, "unet": TINY_UNET}
SPECS = {
    "recorded deltas": toy_spec(),
    "recorded positions": absolute_spec(),
    "recorded poses": arm_spec(),
    "images": image_spec(),
}
NETWORK_CASES = [(policy, network, "recorded deltas", {}) for policy in POLICIES for network in NETWORKS]
POSITION_CASES = [
    (policy, "transformer", "recorded positions", {"representation": representation})
    for policy in ("diffusion", "sdp")
    for representation in ("absolute", "delta", "chunk_relative")
]
ROTATION_CASES = [
    (policy, "transformer", "recorded poses", {"representation": representation, "rotation": rotation})
    for policy in ("diffusion", "sdp")
    for representation, rotation in (
        ("absolute", "axis_angle"),
        ("delta", "rotation_6d"),
        ("chunk_relative", "axis_angle"),
        ("chunk_relative", "rotation_6d"),
    )
    if (policy, rotation) != ("sdp", "axis_angle") or representation == "absolute"
]
IMAGE_CASES = [(policy, "transformer", "images", {}) for policy in POLICIES]
# Neither the path of a flow nor the length of chunks changes how actions are represented: fewer of those.
OTHER_CASES = [
    ("rnr", "transformer", "recorded positions", {"representation": "delta"}),
    ("rnr", "transformer", "recorded positions", {"representation": "chunk_relative"}),
    ("flow", "transformer", "recorded deltas", {}),
    ("flow", "transformer", "recorded positions", {"representation": "delta"}),
    ("flow map of ddpm", "transformer", "recorded deltas", {}),
    ("flow_map", "transformer", "recorded positions", {"representation": "delta"}),
    ("streaming flow", "transformer", "recorded deltas", {}),
    ("streaming flow", "transformer", "recorded positions", {"representation": "chunk_relative"}),
]
OTHER_ROTATION_CASES = [
    ("streaming flow", "transformer", "recorded poses", {"representation": "chunk_relative", "rotation": "rotation_6d"})
]


def cases(params):
    """Settings of the policy and of the network, the task's spec, and settings of the encoder."""

    def build(request):
        policy, network, spec, actions = request.param
        encoder = CONV if SPECS[spec].cameras else STATE_ENCODER
        return {**SETTINGS[policy], "actions": actions}, NETWORK_SETTINGS[network], SPECS[spec], encoder

    return pytest.fixture(params=params, ids=lambda param: "-".join([*param[:3], *param[3].values()]))(build)


case = cases([*NETWORK_CASES, *POSITION_CASES, *ROTATION_CASES, *IMAGE_CASES, *OTHER_CASES, *OTHER_ROTATION_CASES])
case_without_rotations = cases([*NETWORK_CASES, *POSITION_CASES, *OTHER_CASES])


@pytest.fixture
def policy(case):
    return toy_policy(*case)


def drive(session, stream, seed):
    session.reset(seed)
    chunks = []
    for t, observation in enumerate(stream):
        session.observe(observation)
        if t % 4 == 0:
            chunks.append(session.act(observation))
    return chunks


def batch(policy, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, policy.spec.state_size), (16, policy.spec.action.size)
    draw = [torch.randn(size, *shape, generator=generator) for shape in shapes]
    images = {c.name: torch.from_numpy(toy_image(c, generator, size, 2)) for c in policy.spec.cameras}
    return Batch(draw[0], draw[1], torch.ones(size, 16, dtype=torch.bool), images)


def test_chunks_have_the_promised_shape_time_and_cost(policy):
    for chunk, start_s in zip(
        drive(Session(policy), toy_stream(0, 9, policy.spec), seed=0), (0.0, 0.4, 0.8), strict=True
    ):
        assert (
            chunk.actions.shape == (policy.action_steps, policy.spec.action.size) and chunk.actions.dtype == np.float32
        )
        assert np.isfinite(chunk.actions).all()
        assert chunk.start_s == pytest.approx(start_s) and chunk.dt_s == pytest.approx(0.1)
        assert chunk.network_calls >= 1
        if chunk.preview is not None:
            assert chunk.preview.actions.shape == (len(chunk.preview.levels), policy.spec.action.size)
            assert (chunk.preview.levels >= 0).all() and (chunk.preview.levels <= 1).all()


def test_same_seed_and_observations_give_the_same_actions(policy):
    stream, session = toy_stream(0, 12, policy.spec), Session(policy)
    once, again, other = (drive(session, stream, seed) for seed in (1, 1, 2))
    for a, b, c in zip(once, again, other, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert not np.array_equal(a.actions, c.actions)


def test_sessions_do_not_see_each_other(policy):
    """Unbatched: bit-equal, alone or between others."""
    streams = [toy_stream(seed, 12, policy.spec) for seed in range(3)]
    alone = [drive(Session(policy), stream, seed) for seed, stream in enumerate(streams)]
    sessions = [Session(policy) for _ in streams]
    for seed, session in enumerate(sessions):
        session.reset(seed)
    for t in range(12):
        for index, session in enumerate(sessions):
            session.observe(streams[index][t])
            if t % 4 == 0:
                assert np.array_equal(session.act(streams[index][t]).actions, alone[index][t // 4].actions)


@pytest.fixture
def precise(policy):
    """The policy in double precision, where it can be: a product of matrices sums a batch in another order."""
    if policy.inputs.cameras or not policy.actions.is_identity:
        yield policy
        return
    torch.set_default_dtype(torch.float64)
    policy = copy.deepcopy(policy).double()
    policy.prepare()
    yield policy
    torch.set_default_dtype(torch.float32)


def test_batched_sessions_are_the_single_ones(precise):
    """Also where some are fresh, some run, and each executed another number of actions."""
    policy = precise
    history = [[o, o] for o in toy_stream(0, 5, policy.spec)]
    states = [policy.initial_state(seed) for seed in range(5)]
    for index in (1, 3, 4):
        states[index] = policy.step([history[index]], [states[index]], [0])[1][0]
    executed = [min(steps, policy.action_steps) for steps in (0, 4, 0, 2, 4)]
    atol = 1e-5 if policy.actions.is_identity else 1e-4  # an element of a decoded pose stands for 0.1 m or 0.5 rad
    together, next_together = policy.step(history, states, executed)
    for index in range(5):
        alone, next_alone = policy.step([history[index]], [states[index]], [executed[index]])
        np.testing.assert_allclose(together[index].actions, alone[0].actions, atol=atol)
        assert next_together[index].observations == next_alone[0].observations


def test_actions_depend_on_every_observation_of_the_history(policy):
    older, newer, other = toy_stream(0, 3, policy.spec)
    base, *others = [
        policy.step([history], [policy.initial_state(0)], [0])[0][0].actions
        for history in ([older, newer], [other, newer], [older, other])
    ]
    for changed in others:
        assert not np.allclose(base, changed, atol=1e-6)


def test_loss_falls_when_trained_on_one_batch(case):
    policy = toy_policy(*case)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = policy.loss(batch(policy), torch.Generator().manual_seed(0))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_every_weight_gets_a_gradient(policy):
    policy.loss(batch(policy, size=32), torch.Generator().manual_seed(0)).backward()
    assert [name for name, weight in policy.named_parameters() if weight.grad is None] == []
    assert [name for name, weight in policy.named_parameters() if not weight.grad.abs().sum() > 0] == []


def test_loss_is_a_function_of_weights_batch_and_generator(policy):
    one, same, other = (policy.loss(batch(policy), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_normalisation_makes_the_units_of_the_data_irrelevant(case_without_rotations):
    """Data in other units, with its own statistics, gives the same loss and actions in those units."""
    action = torch.randn(6, 16, 3)
    data = Batch(torch.randn(6, 2, 4), action, torch.ones(6, 16, dtype=torch.bool))

    def outcome(scale, shift):
        policy = toy_policy(*case_without_rotations)
        moved = Batch(data.state_BTS * scale + shift, action * scale + shift, data.valid_BH)
        state = statistics(moved.state_BTS.flatten(0, 1))
        policy.fit_normalizers(state, statistics(policy.learned_actions(moved).flatten(0, 1)))
        return float(policy.loss(moved, torch.Generator().manual_seed(0)).detach())

    assert outcome(1.0, 0.0) == pytest.approx(outcome(50.0, -3.0), rel=1e-4)


def statistics(rows):
    rows = rows.double().numpy()
    return Statistics(rows.min(0), rows.max(0), rows.mean(0), rows.std(0), len(rows))


def test_saved_and_loaded_it_acts_the_same(case, tmp_path):
    policy = toy_policy(*case)
    seen = batch(policy, size=50)
    learned = policy.learned_actions(seen).flatten(0, 1)
    policy.fit_normalizers(statistics(seen.state_BTS.flatten(0, 1)), statistics(learned))
    described = PolicyDescription(
        case[2], case[0], case[1], {"name": case[2].task}, {}, 7, {"config_hash": "0"}, case[3]
    )
    save_policy(tmp_path, policy, described)
    loaded, description = load_policy(tmp_path)
    assert description == described and loaded.actions == policy.actions
    stream = toy_stream(0, 9, policy.spec)
    for a, b in zip(drive(Session(policy), stream, 0), drive(Session(loaded), stream, 0), strict=True):
        assert np.array_equal(a.actions, b.actions)
    assert not list(tmp_path.glob("*.p*kl*")) and {p.name for p in tmp_path.iterdir()} == {
        "policy.json",
        "policy.safetensors",
    }


def test_recorded_actions_come_back_through_transform_and_normaliser(policy):
    seen = batch(policy, size=50)
    anchors = policy.actions.anchors(seen.state_BTS[:, -1])
    learned = policy.learned_actions(seen)
    policy.fit_normalizers(statistics(seen.state_BTS.flatten(0, 1)), statistics(learned.flatten(0, 1)))
    normal = policy.action_normalizer.normalize(learned)
    assert normal.shape == (50, 16, policy.actions.size) and normal.abs().max() <= 1 + 1e-5
    back = policy.actions.decode(policy.action_normalizer.denormalize(normal), anchors)
    torch.testing.assert_close(back, seen.action_BHA, atol=5e-5, rtol=1e-5)


def test_predicted_chunks_come_back_in_the_task_s_representation(policy):
    """What a session hands out is the denoised buffer, decoded with what the newest observation shows."""
    observation = toy_stream(0, 1, policy.spec)[0]
    buffer = 0.5 * torch.randn(1, 16, policy.actions.size, generator=torch.Generator().manual_seed(0))
    anchors = policy.anchors([[observation] * 2])
    chunk = policy.chunks(buffer, [[observation] * 2], anchors, 1)[0]
    state = torch.from_numpy(policy.spec.flatten_state(observation.state))[None]
    batch = Batch(
        state[None].expand(1, 2, -1),
        torch.from_numpy(chunk.actions)[None],
        torch.ones(1, policy.action_steps, dtype=torch.bool),
    )
    again = policy.learned_actions(batch)
    expected = policy.actions.encode(policy.actions.decode(buffer, anchors), anchors)  # a 6-D prediction is no rotation
    torch.testing.assert_close(again, expected[:, : policy.action_steps], atol=1e-4, rtol=0)


def test_wrong_observations_are_refused_with_their_names(policy):
    observation = toy_stream(0, 1, policy.spec)[0]
    *others, last = (state.name for state in policy.spec.state)
    del observation.state[last]
    known = ", ".join(sorted(others))
    with pytest.raises(UserError, match=f"vector '{last}' of task {policy.spec.task}; found state vectors {known}"):
        policy.step([[observation] * 2], [policy.initial_state(0)], [0])


def test_unknown_settings_and_cameras_are_refused(case):
    policy, network, spec, encoder = case
    with pytest.raises(UserError, match="settings that policy .* takes: .*horizon.*found .*horizont"):
        build_policy(spec, {**policy, "horizont": 3}, network, encoder)
    with pytest.raises(UserError, match="settings that network .* takes: .*found .*depthh"):
        build_policy(spec, policy, {**network, "depthh": 3}, encoder)
    with pytest.raises(UserError, match="the name of a network; found 'transfomer'; did you mean 'transformer'"):
        build_policy(spec, policy, {"name": "transfomer"}, encoder)
    with pytest.raises(UserError, match="the name of a policy; found 'spd'; did you mean 'sdp'"):
        build_policy(spec, {"name": "spd"}, network, encoder)
    with pytest.raises(UserError, match="found 'deltas'; did you mean 'delta'"):
        build_policy(spec, {**policy, "actions": {"representation": "deltas"}}, network, encoder)
    with pytest.raises(UserError, match="a setting of policy.actions; found 'rotations'; did you mean 'rotation'"):
        build_policy(spec, {**policy, "actions": {"rotations": "rotation_6d"}}, network, encoder)
    spec = type(spec)(**{**spec.__dict__, "cameras": (CameraSpec("front", 8, 8),)})
    with pytest.raises(
        UserError, match=r"reads state vectors only; found cameras front; set encoder=conv_small.*task.cameras=\[\]"
    ):
        build_policy(spec, policy, network)


def test_a_checkpoint_written_before_representations_could_be_chosen_is_read():
    for settings in SETTINGS.values():
        assert "actions" not in settings and build_policy(toy_spec(), settings, TINY).actions.is_identity


class TestDamagedFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        described = PolicyDescription(toy_spec(), SDP, TINY, {}, {}, 0, {})
        save_policy(tmp_path, toy_policy(SDP), described)
        return tmp_path

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UserError, match="a checkpoint at .* found no policy.json"):
            load_policy(tmp_path / "nowhere")

    def test_damaged_description(self, folder):
        (folder / "policy.json").write_text('{"format": "embodied-policy", "version"')
        with pytest.raises(UserError, match="something unreadable"):
            read_description(folder)

    def test_newer_version(self, folder):
        text = (folder / "policy.json").read_text()
        (folder / "policy.json").write_text(text.replace('"version": 1', '"version": 9'))
        with pytest.raises(UserError, match="found version 9; update this package"):
            read_description(folder)

    def test_truncated_weights(self, folder):
        weights = (folder / "policy.safetensors").read_bytes()
        (folder / "policy.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(UserError, match="weights in .* that fit policy.json"):
            load_policy(folder)

    def test_missing_weights(self, folder):
        (folder / "policy.safetensors").unlink()
        with pytest.raises(UserError, match="policy.safetensors beside policy.json"):
            load_policy(folder)

    def test_weights_of_another_network(self, folder):
        text = (folder / "policy.json").read_text()
        (folder / "policy.json").write_text(text.replace('"width": 16', '"width": 32'))
        with pytest.raises(UserError, match="size mismatch"):
            load_policy(folder)
