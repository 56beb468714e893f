"""Weights of a streaming policy, run by the samplers of whole chunks: their training showed them both."""

import re

import pytest
import torch
from toy_policies import DIFFUSION, FLOW_MAP, RNR, SDP, STREAMING_FLOW, TINY, toy_policy, toy_stream
from toy_specs import toy_spec

from embodied.errors import UserError
from embodied.policies.policy_file import PolicyDescription, load_configured, save_policy
from embodied.session import Session


@pytest.fixture
def checkpoint(tmp_path):
    def save(settings):
        policy = toy_policy(settings)
        save_policy(tmp_path, policy, PolicyDescription(toy_spec(), settings, TINY, {"name": "toy"}, {}, 7, {}))
        return policy

    return save


def first_chunks(policy, count=3):
    session = Session(policy)
    session.reset(5)
    stream = toy_stream(3, 4 * count)
    chunks = []
    for t, observation in enumerate(stream):
        session.observe(observation)
        if t % 4 == 0:
            chunks.append(torch.from_numpy(session.act(observation).actions))
    return torch.stack(chunks)


def test_ddim_of_a_streaming_checkpoint_is_ddim_of_the_same_weights(checkpoint, tmp_path):
    trained = checkpoint(SDP)
    loaded, description = load_configured(tmp_path, {"sampler": "ddim", "calls": 5})
    same = toy_policy({**DIFFUSION, "calls": 5})
    same.load_state_dict(trained.state_dict())
    assert torch.equal(first_chunks(loaded), first_chunks(same))
    assert not torch.equal(first_chunks(loaded), first_chunks(trained))
    assert loaded.label == "ddim-5 of sdp" and loaded.calls_per_observation == 5
    assert description.policy["name"] == "diffusion"


def test_without_a_sampler_it_streams(checkpoint, tmp_path):
    trained = checkpoint(SDP)
    loaded, description = load_configured(tmp_path, {"k": 2})
    assert torch.equal(first_chunks(loaded), first_chunks(trained))
    assert loaded.label == "sdp k=2" and description.policy["name"] == "sdp"


def test_the_samplers_are_those_of_its_path(checkpoint, tmp_path):
    checkpoint(STREAMING_FLOW)
    loaded, _ = load_configured(tmp_path, {"sampler": "heun", "calls": 2})
    assert loaded.calls_per_observation == 3 and torch.isfinite(first_chunks(loaded)).all()
    with pytest.raises(UserError, match=re.escape("a sampler for a network that was trained with policy.path=flow")):
        load_configured(tmp_path, {"sampler": "ddim"})


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({**SDP, "chunkwise": 1.0, "initialization": "zero"}, "policy=sdp with policy.chunkwise=1, whose training"),
        (RNR, "policy=rnr, whose training shows none"),
    ],
    ids=["ladder alone", "noise relaying"],
)
def test_a_training_without_whole_chunks_at_one_level_is_refused(checkpoint, tmp_path, settings, found):
    checkpoint(settings)
    with pytest.raises(UserError, match=re.escape(found)):
        load_configured(tmp_path, {"sampler": "ddim", "calls": 4})


def test_weights_of_jumps_have_no_sampler_to_choose(checkpoint, tmp_path):
    checkpoint(FLOW_MAP)
    with pytest.raises(UserError, match=re.escape("a run-time setting of FlowMapPolicy; found policy.sampler")):
        load_configured(tmp_path, {"sampler": "euler"})


def test_settings_of_streaming_are_none_of_the_sampler(checkpoint, tmp_path):
    checkpoint(SDP)
    with pytest.raises(UserError, match=re.escape("found policy.k")):
        load_configured(tmp_path, {"sampler": "ddim", "k": 1})
