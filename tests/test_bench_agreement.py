"""`embodied bench agreement`, small but whole: checkpoints of one training in a task, its stand-in, and in between."""

import json
from pathlib import Path

import pytest
from test_commands import embodied, summary

from embodied.evaluation.rank_agreement import mean_maximum_rank_violation

TRAINED = [
    "task=tabletop/pick_can",
    "task.horizon=40",
    "collect.episodes=2",
    "training.steps=5",
    "training.batch_size=8",
]
TRAINED += ["training.checkpoint_every=1", "training.keep_checkpoints=5", "eval.episodes=1", "eval.recordings=0"]
TRAINED += ["network.width=16", "network.depth=1", "network.heads=2", "eval.latency_observations=2", "workers=0"]
SMALL = ["agreement.logs=1", "agreement.log_steps=6", "agreement.episodes=2", "workers=0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def checkpoints(capsys, root):
    code, last, text = embodied(capsys, "train", *TRAINED, f"run_root={root}")
    assert code == 0, text
    return sorted(str(path) for path in (Path(last).parent / "checkpoints").glob("step_*"))


@pytest.mark.heavy
def test_every_policy_runs_in_all_three_worlds(capsys, root):
    paths = checkpoints(capsys, root)
    words = ["bench", "agreement", f"agreement.policies=[{','.join(paths)}]", f"run_root={root}", *SMALL]
    code, last, text = embodied(capsys, *words, f"results={root}/results")
    assert code == 0, text
    (row,) = summary(last)["rows"]
    assert row["task"] == "tabletop/pick_can" and [one["policy"] for one in row["policies"]] == paths
    worlds = ("stand-in", "simulation", "identified simulation")
    assert all(one["success"][world]["n"] == 2 for one in row["policies"] for world in worlds)
    real, sim = ([one["success"][world]["rate"] for one in row["policies"]] for world in worlds[:2])
    assert row["agreement"]["simulation"]["mmrv"] == mean_maximum_rank_violation(real, sim)
    fit = row["fit"]
    assert fit["after"]["position_m"] < 0.2 * fit["before"]["position_m"]
    page = (root / "results" / "agreement.md").read_text()
    assert "Simulation against simulation: no robot was involved" in page
    assert "variant `stand_in`. The simulation is the task" in page.replace("\n", " ")
    kept = json.loads((Path(last).parent / "identification.json").read_text())
    assert kept == fit


def test_few_policies_have_no_ranking(capsys, root):
    code, _, text = embodied(capsys, "bench", "agreement", "agreement.policies=[a,b]", f"run_root={root}")
    assert code == 2 and "at least 5 policies, since fewer have hardly a ranking; found 2 in agreement.policies" in text


def test_a_task_without_identification_is_named(capsys, root):
    words = [word.replace("tabletop/pick_can", "metaworld/reach-v3") for word in TRAINED]
    code, last, text = embodied(capsys, "train", *words, f"run_root={root}")
    assert code == 0, text
    path = next((Path(last).parent / "checkpoints").glob("step_*"))
    policies = f"agreement.policies=[{','.join([str(path)] * 5)}]"
    code, _, text = embodied(capsys, "bench", "agreement", policies, f"run_root={root}", *SMALL)
    assert code == 2 and "dynamics can be identified; found 'metaworld'" in text, text
