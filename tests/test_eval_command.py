"""`embodied eval` as a user types it: servers and experts beside checkpoints, videos, kills, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stand_in_server import policy_server
from test_commands import embodied, summary

from embodied.evaluation.result_file import RESULTS
from embodied.run_directory import without_timings

REACH = ["task=metaworld/reach-v3", "task.horizon=60"]


@pytest.fixture
def run(capsys, tmp_path):
    def call(*words, ok=True):
        code, last, text = embodied(capsys, "eval", *words, f"run_root={tmp_path}")
        assert (code == 0) is ok, text
        assert "Traceback" not in text
        return (Path(last), text) if ok else text

    return call


def test_an_expert_is_evaluated_as_a_policy_is(run):
    path, text = run("expert=task", *REACH, "episodes=3", "workers=0", "recordings=1")
    result = summary(path)
    assert "expert task: success 3/3" in text and result["policy"] == "expert" and result["network"] is None
    assert [row["start"] for row in result["episodes"]] == [100000, 100001, 100002]
    assert result["timings"]["latency"]["observation_ms"]["n"] == 59
    assert sum(row["recording"] is not None for row in result["episodes"]) == 1
    again, text = run("expert=task", *REACH, "episodes=3", "workers=0", "recordings=1")
    assert again == path and "is finished already" in text


def test_another_executor_is_another_run(run):
    words = ["expert=task", *REACH, "episodes=1", "workers=0", "recordings=0"]
    plain, _ = run(*words)
    blended, text = run(*words, "executor=weighted_overlap", "executor.overlap=0")
    assert plain.parent != blended.parent and "expert task weighted_overlap overlap=0: success 1/1" in text
    assert summary(plain)["executor"] == {"name": "chunk"}
    assert summary(blended)["executor"] == {"name": "weighted_overlap", "overlap": 0}
    assert summary(plain)["episodes"] == summary(blended)["episodes"], "without overlap it is the same"


def test_another_checkpoint_behind_the_same_address_is_another_run(run, monkeypatch):
    served = {"weights": "first", "action_steps": 4}
    words = [*REACH, "episodes=1", "workers=0", "recordings=0"]
    with policy_server(lambda observation: {"actions": np.zeros((4, 4))}, served) as address:
        first, _ = run(f"server.address={address}", *words)
        again, text = run(f"server.address={address}", *words)
        assert again == first and "is finished already" in text
        served["weights"] = "second"
        other, text = run(f"server.address={address}", *words)
    assert other != first and "is finished already" not in text


def test_a_policy_behind_a_server_drives_pixels_and_is_filmed(run):
    seen = []

    def answer(observation):
        seen.append(observation)
        return {"actions": np.full((8, 2), 200.0)}

    words = ["task=pusht/pixels", "task.horizon=30", "episodes=2", "workers=0", "recordings=all", "recorded_as=video"]
    words += ["delay_steps=1"]
    with policy_server(answer) as address:
        path, text = run(f"server.address={address}", "server.action_steps=8", *words)
    result = summary(path)
    assert f"server {address}: success 0/2" in text and len(seen) == 3 * 4, "one again, for its latency"
    assert result["delay_steps"] == 1 and seen[0]["images/board"].shape == (96, 96, 3)
    assert [row["recording"] for row in result["episodes"]] == ["recordings/100000.mp4", "recordings/100001.mp4"]
    assert result["network_calls_per_observation"] is None and result["checkpoint"]["run"] == address
    import av

    with av.open(str(path.parent / "recordings" / "100000.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 30
    # The first frame is what the policy saw first, but for the codec's losses.
    assert np.abs(frames[0].astype(int) - seen[0]["images/board"]).mean() < 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one policy to evaluate: run=, server.address=, lerobot.path= or expert=; found none"),
        (["outputs/x", "expert=task"], "one policy to evaluate: .*; found run=outputs/x and expert=task"),
        (["outputs/x", *REACH], "a checkpoint alone, which says its task; found task=metaworld/reach-v3"),
        (["expert=task"], "the task in which expert=task acts; found none; add task="),
        (["expert=task", *REACH, "variants=[light]"], "variants of metaworld/reach-v3, .*; found 'light'; known: base"),
        (["expert=task", *REACH, "recordings=most"], "recordings as a number, all, or failures; found most"),
        (["expert=task", *REACH, "recordings=-1"], "recordings of at least 0; found -1"),
        (["expert=task", *REACH, "delay_steps=-1"], "delay_steps of at least 0; found -1"),
        (
            ["expert=task", *REACH, "executor=chunks"],
            "an option of the group 'executor'; found 'executor=chunks'; did you",
        ),
        (
            ["expert=task", *REACH, "executor=weighted_overlap", "executor.overlap=-1"],
            "executor.overlap a whole number",
        ),
        (
            ["expert=task", *REACH, "executor=temporal_ensembling", "workers=0"],
            "clean actions beyond those of a chunk, for executor temporal_ensembling; found chunks without a preview",
        ),
        (["expert=task", *REACH, "engine=rey"], "engine processes or ray; found rey; did you mean 'ray'"),
        (["expert=task", *REACH, "recorded_as=gif"], "recorded_as rerun or video; found gif"),
        (
            ["expert=task", *REACH, "recorded_as=video"],
            "cameras of metaworld/reach-v3 for recorded_as=video; found none",
        ),
        (["expert=task", "task=pusht/state"], "an expert for task pusht/state; found none"),
        (["server.address=ws://127.0.0.1:9", *REACH], "a policy server at ws://127.0.0.1:9; found none that answers"),
        (
            ["server.address=ws://127.0.0.1:9", "server.keys={state/pint: a}", *REACH],
            "observations of metaworld/reach-v3 in server.keys; found 'state/pint'",
        ),
        (["server.address=here", *REACH], "the address of a policy server, .*; found 'here'"),
    ],
)
def test_what_is_refused(run, words, message):
    import re

    text = run(*words, ok=False)
    errors = [line for line in text.splitlines() if line.startswith("embodied: error:")]
    assert len(errors) == 1 and re.search(message, errors[0]), text


@pytest.mark.heavy
def test_an_evaluation_killed_at_any_moment_ends_with_the_same_summary(tmp_path):
    words = ["eval", "expert=task", *REACH, "episodes=12", "workers=1", "recordings=0"]
    command = [sys.executable, "-m", "embodied", *words]
    results = []
    for name, kill_after in (("whole", None), ("killed", 3)):
        root = tmp_path / name
        if kill_after is not None:
            process = subprocess.Popen(
                [*command, f"run_root={root}"], stdout=subprocess.DEVNULL, start_new_session=True
            )
            while not any(len(path.read_text().splitlines()) > kill_after for path in root.glob(f"eval/*/{RESULTS}")):
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kept = next(root.glob(f"eval/*/{RESULTS}")).read_text().splitlines()[1 : kill_after + 1]
        done = subprocess.run([*command, f"run_root={root}"], capture_output=True, text=True, check=True)
        results.append(json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text()))
    assert without_timings(results[0]) == without_timings(results[1])
    rows = next((tmp_path / "killed").glob(f"eval/*/{RESULTS}")).read_text().splitlines()
    assert rows[1 : 1 + len(kept)] == kept, "what was done is not done again"
    assert len(rows) == 1 + 12
