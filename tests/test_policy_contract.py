"""What every policy must do, with every network."""

import numpy as np
import pytest
import torch
from toy_policies import DIFFUSION, SDP, TINY, TINY_UNET, toy_policy, toy_stream
from toy_specs import toy_episodes, toy_spec

from embodied.catalog import NETWORKS, POLICIES
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

SETTINGS = {"diffusion": DIFFUSION, "sdp": SDP}
NETWORK_SETTINGS = {"transformer": TINY, "unet": TINY_UNET}
CASES = [(policy, network) for policy in POLICIES for network in NETWORKS]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request):
    policy, network = request.param
    return SETTINGS[policy], NETWORK_SETTINGS[network]


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


def batch(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(size, *shape, generator=generator) for shape in ((2, 4), (16, 3))]
    return Batch(draw[0], draw[1], torch.ones(size, 16, dtype=torch.bool))


def test_chunks_have_the_promised_shape_time_and_cost(policy):
    for chunk, start_s in zip(drive(Session(policy), toy_stream(0, 9), seed=0), (0.0, 0.4, 0.8), strict=True):
        assert chunk.actions.shape == (policy.action_steps, 3) and chunk.actions.dtype == np.float32
        assert np.isfinite(chunk.actions).all()
        assert chunk.start_s == pytest.approx(start_s) and chunk.dt_s == pytest.approx(0.1)
        assert chunk.network_calls >= 1
        if chunk.preview is not None:
            assert len(chunk.preview.actions) == len(chunk.preview.levels)
            assert (chunk.preview.levels > 0).all() and (chunk.preview.levels <= 1).all()


def test_same_seed_and_observations_give_the_same_actions(policy):
    stream, session = toy_stream(0, 12), Session(policy)
    once, again, other = (drive(session, stream, seed) for seed in (1, 1, 2))
    for a, b, c in zip(once, again, other, strict=True):
        assert np.array_equal(a.actions, b.actions)
        assert not np.array_equal(a.actions, c.actions)


def test_sessions_do_not_see_each_other(policy):
    """Unbatched: bit-equal, alone or between others."""
    streams = [toy_stream(seed, 12) for seed in range(3)]
    alone = [drive(Session(policy), stream, seed) for seed, stream in enumerate(streams)]
    sessions = [Session(policy) for _ in streams]
    for seed, session in enumerate(sessions):
        session.reset(seed)
    for t in range(12):
        for index, session in enumerate(sessions):
            session.observe(streams[index][t])
            if t % 4 == 0:
                assert np.array_equal(session.act(streams[index][t]).actions, alone[index][t // 4].actions)


def test_batched_sessions_are_the_single_ones(policy):
    """Also where some are fresh, some run, and each executed another number of actions."""
    history = [[o, o] for o in toy_stream(0, 5)]
    states = [policy.initial_state(seed) for seed in range(5)]
    for index in (1, 3, 4):
        states[index] = policy.step([history[index]], [states[index]], [0])[1][0]
    executed = [0, 4, 0, 2, 4]
    together, next_together = policy.step(history, states, executed)
    for index in range(5):
        alone, next_alone = policy.step([history[index]], [states[index]], [executed[index]])
        np.testing.assert_allclose(together[index].actions, alone[0].actions, atol=1e-5)
        assert next_together[index].observations == next_alone[0].observations


def test_actions_depend_on_every_observation_of_the_history(policy):
    older, newer, other = toy_stream(0, 3)
    base, *others = [
        policy.step([history], [policy.initial_state(0)], [0])[0][0].actions
        for history in ([older, newer], [other, newer], [older, other])
    ]
    for changed in others:
        assert not np.allclose(base, changed, atol=1e-6)


def test_loss_falls_when_trained_on_one_batch(case):
    policy = toy_policy(*case)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = policy.loss(batch(), torch.Generator().manual_seed(0))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_every_weight_gets_a_gradient(policy):
    policy.loss(batch(size=32), torch.Generator().manual_seed(0)).backward()
    assert [name for name, weight in policy.named_parameters() if weight.grad is None] == []
    assert [name for name, weight in policy.named_parameters() if not weight.grad.abs().sum() > 0] == []


def test_loss_is_a_function_of_weights_batch_and_generator(policy):
    one, same, other = (policy.loss(batch(), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_normalisation_makes_the_units_of_the_data_irrelevant(case):
    """Data in other units, with its own statistics, gives the same loss and actions in those units."""
    action = torch.randn(6, 16, 3)
    data = Batch(torch.randn(6, 2, 4), action, torch.ones(6, 16, dtype=torch.bool))

    def outcome(scale, shift):
        policy = toy_policy(*case)
        state = statistics(data.state_BTS.flatten(0, 1) * scale + shift)
        policy.fit_normalizers(state, statistics(action.flatten(0, 1) * scale + shift))
        moved = Batch(data.state_BTS * scale + shift, action * scale + shift, data.valid_BH)
        return float(policy.loss(moved, torch.Generator().manual_seed(0)).detach())

    assert outcome(1.0, 0.0) == pytest.approx(outcome(50.0, -3.0), rel=1e-4)


def statistics(rows):
    rows = rows.double().numpy()
    return Statistics(rows.min(0), rows.max(0), rows.mean(0), rows.std(0), len(rows))


def test_saved_and_loaded_it_acts_the_same(case, tmp_path):
    policy = toy_policy(*case)
    action = np.concatenate([episode.action for episode in toy_episodes(2)])
    policy.fit_normalizers(statistics(torch.randn(50, 4)), statistics(torch.from_numpy(action)))
    described = PolicyDescription(toy_spec(), case[0], case[1], {"name": "toy/reach"}, {}, 7, {"config_hash": "0"})
    save_policy(tmp_path, policy, described)
    loaded, description = load_policy(tmp_path)
    assert description == described
    stream = toy_stream(0, 9)
    for a, b in zip(drive(Session(policy), stream, 0), drive(Session(loaded), stream, 0), strict=True):
        assert np.array_equal(a.actions, b.actions)
    assert not list(tmp_path.glob("*.p*kl*")) and {p.name for p in tmp_path.iterdir()} == {
        "policy.json",
        "policy.safetensors",
    }


def test_wrong_observations_are_refused_with_their_names(policy):
    observation = toy_stream(0, 1)[0]
    del observation.state["goal"]
    with pytest.raises(UserError, match="the state vector 'goal' of task toy/reach; found state vectors point"):
        policy.step([[observation] * 2], [policy.initial_state(0)], [0])


def test_unknown_settings_and_cameras_are_refused(case):
    policy, network = case
    with pytest.raises(UserError, match="settings that policy .* takes: .*horizon.*found .*horizont"):
        build_policy(toy_spec(), {**policy, "horizont": 3}, network)
    with pytest.raises(UserError, match="settings that network .* takes: .*found .*depthh"):
        build_policy(toy_spec(), policy, {**network, "depthh": 3})
    with pytest.raises(UserError, match="the name of a network; found 'transfomer'; did you mean 'transformer'"):
        build_policy(toy_spec(), policy, {"name": "transfomer"})
    with pytest.raises(UserError, match="the name of a policy; found 'spd'; did you mean 'sdp'"):
        build_policy(toy_spec(), {"name": "spd"}, network)
    spec = toy_spec()
    spec = type(spec)(**{**spec.__dict__, "cameras": (CameraSpec("front", 8, 8),)})
    with pytest.raises(UserError, match=r"reads state vectors only; found cameras front; set task.cameras=\[\]"):
        build_policy(spec, policy, network)


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
