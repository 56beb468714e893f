"""Push-T from human data as a user types it: train, evaluate, replay. Small, but every stage is the real one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from pusht_data import made_arrays, write_zarr_v2

from embodied.cli import main
from embodied.datasets.open_store import open_store

SMALL = ["training.steps=4", "training.batch_size=8", "network.width=16", "network.depth=1", "network.heads=2"]
PIXELS = ["task=pusht/pixels", "task.camera_size=24", "encoder=conv_small"]
SHORT = ["eval.episodes=2", "eval.recordings=1", "eval.latency_observations=5", "task.horizon=20", "workers=0"]


@pytest.fixture
def run(capsys, tmp_path):
    """Run a command: exit status, last line of stdout, everything printed."""

    def call(*words):
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, words), f"run_root={tmp_path}/outputs"])
        out, err = capsys.readouterr()
        return exit_.value.code or 0, (out.strip().splitlines() or [""])[-1], out + err

    return call


@pytest.fixture
def store(tmp_path):
    return write_zarr_v2(tmp_path / "human.zarr", made_arrays())


def test_training_from_human_data_just_works(run, store):
    code, last, text = run("train", "task=pusht/keypoints", f"data.store={store}", *SMALL, *SHORT)
    assert code == 0, text
    trained = json.loads(Path(last).read_text())
    assert (trained["store"]["episodes"], trained["store"]["steps"]) == (3, 76)
    shown = open_store(store, None)
    assert trained["store"]["content_hash"] != shown.content_hash(), "the hash is of what this task shows"
    folder = Path(last).parent / trained["evaluation"]["path"]
    evaluated = json.loads((folder / "summary.json").read_text())
    reward = evaluated["mean_max_reward"]
    best = [row["max_reward"] for row in evaluated["episodes"]]
    assert reward["mean"] == pytest.approx(np.mean(best)) and reward["n"] == 2
    assert min(best) <= reward["low"] <= reward["mean"] <= reward["high"] <= max(best)
    printed = re.search(r"mean maximum reward ([\d.]+) \[", text)
    assert printed is not None and float(printed[1]) == pytest.approx(reward["mean"], abs=1e-3)
    assert len(list((folder / "recordings").glob("*.rrd"))) == 1


def test_a_policy_of_images_is_trained_evaluated_and_trained_on(run, store, monkeypatch):
    code, last, text = run("train", *PIXELS, f"data.store={store}", *SMALL, *SHORT)
    assert code == 0, text
    first = Path(last).parent
    trained = json.loads(Path(last).read_text())
    assert (trained["task"], trained["encoder"]) == ("pusht/pixels", "conv_small")
    assert "conv_small" in first.name
    evaluated = json.loads((first / trained["evaluation"]["path"] / "summary.json").read_text())
    assert evaluated["encoder"] == "conv_small" and len(evaluated["episodes"]) == 2
    assert evaluated["timings"]["latency"]["encode_ms"]["p50"] > 0
    recording = next((first / trained["evaluation"]["path"] / "recordings").glob("*.rrd"))
    assert recording.stat().st_size > 0

    # One evaluation is enough: its processes take seconds to start.
    monkeypatch.setattr("embodied.commands.train.evaluate_last", lambda directory: trained["evaluation"])
    code, last, text = run("train", *PIXELS, f"data.store={store}", f"init={first}", *SMALL, "task.horizon=20")
    assert code == 0, text
    assert Path(last).parent != first and json.loads(Path(last).read_text())["steps"] == 4

    other = ["encoder.features=16", f"data.store={store}", f"init={first}", *SMALL, *SHORT]
    code, _, text = run("train", *PIXELS, *other)
    assert code != 0 and "Traceback" not in text
    assert "expected the encoder of init=" in text and "features=64" in text and "features=16" in text
    code, _, text = run("train", "task=pusht/pixels", "task.camera_size=24", f"data.store={store}", *SMALL)
    assert code != 0 and "found cameras board" in text and "set encoder=conv_small" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encoder=conv_smal"], "conv_small"),
        (["encoder.keypoint=3"], "encoder.keypoints"),
        (["encoder.crop=0"], "expected encoder.crop above 0 and at most 1; found 0"),
        (["encoder.cameras=[bord]"], "found 'bord' in encoder.cameras; did you mean 'board'"),
        (["encoder.state=agent"], "write encoder.state=[agent]"),
        (["encoder=timm", "encoder.weights=nowhere.safetensors"], "nowhere.safetensors"),
        (["encoder.crop=a_lot"], "encoder.crop"),
        (["encoder.keypoints=2.5"], "encoder.keypoints"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_an_encoder_that_cannot_be_is_one_clear_error(run, store, words, message):
    code, _, text = run("train", *PIXELS, f"data.store={store}", *SMALL, *words)
    assert code != 0 and "Traceback" not in text
    assert message in " ".join(text.split())


def test_a_demonstration_is_replayed(run, store):
    code, last, text = run("replay", store, "episode=1", "open=false")
    assert code == 0, text
    summary = json.loads(Path(last).read_text())
    assert (summary["kind"], summary["task"], summary["steps"]) == ("demonstration", "pusht/state", 21)
    code, _, text = run("replay", store, "episode=7", "open=false")
    assert code != 0 and "recorded starts: 0, 1, 2" in text


def test_another_task_is_one_clear_error(run, store):
    code, _, text = run("train", "task=robosuite/lift", f"data.store={store}", *SMALL)
    assert code != 0 and "Traceback" not in text
    assert "expected one of the tasks pusht/state, pusht/keypoints, pusht/pixels" in text


def test_training_without_demonstrations_or_an_expert_is_refused_before_it_collects(run):
    status, _, printed = run("train", "task=pusht/keypoints")
    assert status == 2
    assert "expected an expert for task pusht/keypoints; found none" in printed and "data.store=..." in printed
    assert "collecting" not in printed
