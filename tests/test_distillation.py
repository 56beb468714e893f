"""Distillation as a training job: exact resume, what a student has of its teacher, and what is refused."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import SETTINGS, Killed, job, killed_after, quiet, tensors
from toy_policies import FLOW, SDP, TINY, toy_stream
from toy_specs import toy_episodes
from toy_stores import make_store

from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.flow_map import FlowMapPolicy
from embodied.policies.objectives.objective import Objective
from embodied.policies.objectives.teacher import teacher_of
from embodied.policies.policy_file import load_policy, read_description
from embodied.session import Session
from embodied.summaries import without_timings
from embodied.training.checkpoint import checkpoint_paths, find_checkpoint
from embodied.training.distillation import Distillation, DistillationJob, stores_of, student_settings
from embodied.training.job import run_on_processes
from embodied.training.learner import Learner
from embodied.training.loop import Training

OBJECTIVES = {
    "ode_pair": {"name": "ode_pair", "teacher_calls": 4, "distance": "pseudo_huber"},
    "consistency": {
        "name": "consistency",
        "intervals": 10,
        "teacher_calls": 1,
        "to_clean": 0.5,
        "distance": "squared",
        "score_matching": 1.0,
    },
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "toy.zarr", toy_episodes(8))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, store):
    """A checkpoint of a short training of flow matching."""
    folder = tmp_path_factory.mktemp("teacher")
    provenance = {"config_hash": "0", "store": str(store)}
    training = job(folder, store, dataclasses.replace(SETTINGS, steps=30, learning_rate=3e-3), policy=FLOW)
    dataclasses.replace(training, provenance=provenance).run(quiet)
    return find_checkpoint(folder)


def distillation(folder, store, teacher, objective="consistency", settings=SETTINGS, **changes):
    folder.mkdir(exist_ok=True)
    about = read_description(teacher)
    return DistillationJob(
        folder=folder,
        stores=(store,),
        spec=about.spec,
        task=about.task,
        policy=student_settings(about, OBJECTIVES[objective], {"calls": 1}),
        network=about.network,
        settings=settings,
        seed=0,
        init=None,
        allow_partial=False,
        provenance={"config_hash": "0"},
        teacher=teacher,
        objective=OBJECTIVES[objective],
        **changes,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, store, teacher, objective):
    """The averaged student, which consistency takes its targets from, comes back too."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = distillation(whole, store, teacher, objective).run(quiet)
    interrupted = distillation(parts, store, teacher, objective)
    with pytest.raises(Killed):
        interrupted.run(killed_after(8))
    assert find_checkpoint(parts).name == "step_0000005"
    result = interrupted.run(quiet)
    ours, theirs = tensors(parts), tensors(whole)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert without_timings(result) == without_timings(expected) and np.isfinite(result["validation_loss"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_falls_on_held_out_episodes(tmp_path, store, teacher, objective):
    settings = dataclasses.replace(SETTINGS, steps=80, learning_rate=3e-3, validation_every=1, batch_size=8)
    distillation(tmp_path, store, teacher, objective, settings).run(quiet)
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 80 and losses[-1] < 0.95 * losses[0]


def test_what_a_student_has_of_its_teacher(tmp_path, store, teacher):
    """Spec, representation, normalisation, statistics; and its first checkpoint acts as Euler's one step does."""
    settings = dataclasses.replace(SETTINGS, steps=5, keep_checkpoints=2)
    distillation(tmp_path, store, teacher, settings=settings).run(quiet)
    first, last = checkpoint_paths(tmp_path)
    policy, about = load_policy(first)
    taught, of_teacher = load_policy(teacher)
    assert about.spec == of_teacher.spec and about.statistics == of_teacher.statistics and about.network == TINY
    assert {name: about.policy[name] for name in ("horizon", "action_steps", "levels", "clip", "path")} == {
        name: of_teacher.policy[name] for name in ("horizon", "action_steps", "levels", "clip", "path")
    }
    assert about.policy["objective"] == "consistency" and about.policy["most_calls"] == 100
    taught.configure(calls=1)
    chunks = []
    for acting in (taught, policy, load_policy(last)[0]):
        session = Session(acting)
        session.reset(0)
        chunks.append(session.act(toy_stream(0, 1)[0]).actions)
    np.testing.assert_allclose(chunks[1], chunks[0], atol=1e-6)
    assert not np.allclose(chunks[2], chunks[0], atol=1e-4)


def test_the_teacher_is_no_part_of_a_checkpoint(tmp_path, store, teacher):
    distillation(tmp_path, store, teacher).run(quiet)
    names = load_file(find_checkpoint(tmp_path) / "training.safetensors")
    assert {name.split(".")[0] for name in names} == {"policy", "average", "optimizer"}


class WithDiscriminator(Objective):
    """An objective with a network of its own, which tells whose chunks it sees."""

    name = "discriminator"
    needs = frozenset()

    def __init__(self, teacher):
        super().__init__(teacher)
        torch.manual_seed(3)
        self.discriminator = torch.nn.Linear(3, 1)

    @staticmethod
    def most_calls(levels):
        return 1

    def loss(self, student, averaged, batch, generator):
        return student.loss(batch, generator) + self.discriminator(batch.action_BHA).square().mean()


def test_an_objectives_own_networks_are_trained_and_resumed_but_not_deployed(tmp_path, store, teacher):
    def training():
        policy, about = load_policy(teacher)
        student, _ = distillation(tmp_path, store, teacher)._make_learner(None)
        objective = WithDiscriminator(teacher_of(policy, about.policy["name"]))
        return Training(Distillation(student.policy, objective), SETTINGS, 0, tmp_path), about

    begun, about = training()
    data = Batch(torch.randn(16, 2, 4), torch.randn(16, 16, 3), torch.ones(16, 16, dtype=torch.bool))
    before = copy.deepcopy(begun.learner.objective.state_dict())
    begun._train_step(data)
    begun.save(lambda step: about)
    after = begun.learner.objective.state_dict()
    assert not torch.equal(after["discriminator.weight"], before["discriminator.weight"])
    resumed, _ = training()
    assert resumed.restore() and resumed.step == 1
    assert torch.equal(resumed.learner.objective.discriminator.weight, after["discriminator.weight"])
    assert not any("discriminator" in name for name in load_file(find_checkpoint(tmp_path) / "policy.safetensors"))


def test_a_checkpoint_from_before_there_were_learners_is_continued(tmp_path, store):
    """Its weights have the names that a learner gives them."""
    job(tmp_path, store).run(quiet)
    names = {name for name in load_file(find_checkpoint(tmp_path) / "training.safetensors") if "." in name}
    policy, _ = load_policy(find_checkpoint(tmp_path))
    assert {f"policy.{name}" for name in policy.state_dict()} == {n for n in names if n.startswith("policy.")}
    assert set(Learner(policy).state_dict()) == {n for n in names if n.startswith("policy.")}


@pytest.mark.heavy
def test_two_processes_are_given_the_same_targets(tmp_path, store, teacher):
    settings = dataclasses.replace(SETTINGS, steps=3, processes=2, validation_share=0.0)
    result = run_on_processes(distillation(tmp_path, store, teacher, settings=settings), quiet)
    assert result["steps"] == 3 and np.isfinite(result["loss"])
    policy, _ = load_policy(find_checkpoint(tmp_path))
    assert isinstance(policy, FlowMapPolicy)


def test_a_teacher_of_another_kind_is_refused(tmp_path, store):
    job(tmp_path / "sdp", store, dataclasses.replace(SETTINGS, steps=1), policy=SDP).run(quiet)
    with pytest.raises(
        UserError, match="a policy of kind diffusion; found one of kind sdp; train one with policy=flow"
    ):
        distillation(tmp_path / "student", store, find_checkpoint(tmp_path / "sdp")).run(quiet)


def test_the_stores_of_a_teacher_are_found_or_asked_for(tmp_path, store, teacher):
    about = read_description(teacher)
    assert stores_of(about, teacher) == ((store,), None)
    two = [{"path": str(store), "weight": 0.7}, {"path": str(store), "weight": 0.3}]
    mixed = dataclasses.replace(about, provenance={**about.provenance, "stores": two})
    assert stores_of(mixed, teacher) == ((store, store), (0.7, 0.3))
    gone = dataclasses.replace(about, provenance={**about.provenance, "store": str(tmp_path / "gone.zarr")})
    with pytest.raises(UserError, match=r"trained on, at .*gone.zarr; found nothing there; .*data.store="):
        stores_of(gone, teacher)
    silent = dataclasses.replace(about, provenance={})
    with pytest.raises(UserError, match=r"trained on, at unknown; found nothing there; .*data.store="):
        stores_of(silent, teacher)
