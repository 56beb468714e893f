"""The commands together, as a user types them, on robosuite/lift: small, but every stage is the real one."""

import json
import re
import shutil
from pathlib import Path

import pytest

from embodied.cli import main
from embodied.datasets.episode_store import EpisodeStore
from embodied.run_directory import without_timings
from embodied.training.checkpoint import find_checkpoint

SMALL = ["collect.episodes=2", "training.steps=4", "training.batch_size=8", "training.checkpoint_every=2"]
SMALL += ["network.width=16", "network.depth=1", "network.heads=2"]
SHORT = ["eval.episodes=2", "eval.recordings=1", "eval.latency_observations=5", "task.horizon=60", "workers=0"]


def embodied(capsys, *words):
    """Exit status, last line of stdout, everything printed."""
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    return exit_.value.code or 0, lines[-1] if lines else "", out + err


def summary(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def run(capsys, root):
    def call(command, *words, ok=True):
        code, last, text = embodied(capsys, command, *words, f"run_root={root}")
        assert (code == 0) is ok, text
        return last, text

    return call


@pytest.fixture
def trained(run):
    """The training run; made by the first test that asks, found again by the others."""
    last, text = run("train", *SMALL, *SHORT)
    return Path(last).parent, text


def test_train_collects_trains_evaluates_and_records(trained, root):
    folder, _ = trained
    result = summary(folder / "summary.json")
    assert result["command"] == "train" and result["steps"] == 4 and result["store"]["episodes"] == 2
    assert (folder / result["checkpoint"] / "policy.safetensors").is_file()
    evaluation = (folder / result["evaluation"]["path"]).resolve()
    evaluated = summary(evaluation / "summary.json")
    assert [row["start"] for row in evaluated["episodes"]] == [100000, 100001]
    assert evaluated["setting"] == "sdp k=2" and evaluated["network_calls_per_observation"] == 2
    assert evaluated["success"]["ever"] == result["evaluation"]["success"]["ever"]
    recorded = [row["recording"] for row in evaluated["episodes"] if row["recording"]]
    assert len(recorded) == 1 and (evaluation / recorded[0]).stat().st_size > 10_000
    store = EpisodeStore.open(next(root.glob("collect/*/demonstrations.zarr")))
    assert len(store) == 2 and store.content_hash() == result["store"]["content_hash"]


def test_the_same_command_finds_its_finished_run(run, trained):
    folder, _ = trained
    last, text = run("train", *SMALL, *SHORT)
    assert last == str(folder / "summary.json")
    assert "finished already" in text and "train  " not in text


def test_the_same_command_again_gives_the_same_summary(run, trained, root):
    folder, _ = trained
    last, text = run("train", *SMALL, *SHORT, "force=true")
    assert Path(last).parent != folder and "collecting" not in text
    assert without_timings(summary(last)) == without_timings(summary(folder / "summary.json"))


def test_an_interrupted_training_is_resumed_by_the_same_command(run, trained, root, monkeypatch, capsys):
    folder, _ = trained
    copy = root / "train" / "copy"
    shutil.copytree(folder, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "step_0000004")
    last, text = run("train", f"resume={copy}", "training.steps=9")
    assert "going on from step 2" in text
    assert "training.steps: 4, now 9" in text  # the difference is said, and the run goes on as it began
    weights = [(find_checkpoint(path) / "policy.safetensors").read_bytes() for path in (copy, folder)]
    assert weights[0] == weights[1] and Path(last) == copy / "summary.json"
    shutil.rmtree(copy)


def test_evaluations_that_differ_in_any_setting_are_runs_of_their_own(run, trained):
    folder, _ = trained
    short = [word.removeprefix("eval.") for word in SHORT if "task" not in word]
    as_trained = Path(summary(folder / "summary.json")["evaluation"]["path"]).name
    default, _ = run("eval", folder, *short, "policy.k=2")
    zero, _ = run("eval", folder, *short, "policy.initialization=zero")
    assert Path(default).parent.name == as_trained and Path(zero).parent.name != as_trained
    assert summary(zero)["run_time_settings"] == {
        "k": 2,
        "initialization": "zero",
        "initial_calls": 8,
        "inference_delay": 0,
        "engine": "eager",
    }
    assert summary(zero)["first_observation_calls"] == 2


def test_a_resumed_evaluation_is_of_the_checkpoint_that_it_began_with(run, trained, root):
    folder, _ = trained
    begun = (folder / summary(folder / "summary.json")["evaluation"]["path"]).resolve()
    copy = root / "eval" / "copy"
    shutil.copytree(begun, copy)
    (copy / "summary.json").unlink()
    last, _ = run("eval", folder, f"resume={copy}", "policy.k=1", "workers=0")
    assert without_timings(summary(last)) == without_timings(summary(begun / "summary.json"))
    (copy / "summary.json").unlink()
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("k: 2", "k: 1"))
    _, text = run("eval", folder, f"resume={copy}", ok=False)
    assert "the weights and settings that" in text and "began with; found others in" in text
    shutil.rmtree(copy)


def test_compare_pairs_the_settings_of_one_policy(run, trained):
    folder, _ = trained
    one, _ = run("eval", folder, "policy.k=1", *[word.removeprefix("eval.") for word in SHORT if "task" not in word])
    evaluated = summary(one)
    ever = evaluated["success"]["ever"]
    assert ever["posterior"]["alpha"] == ever["k"] + 0.5 and ever["posterior"]["beta"] == ever["n"] - ever["k"] + 0.5
    assert evaluated["error_bounds"]["ever"] == {"if_failed": ever["rate"], "if_succeeded": ever["rate"]}
    page = (Path(one).parent / evaluated["report"]).read_text()
    assert "robosuite/lift: sdp k=1" in page and "data:image/png;base64," in page
    last, text = run("compare", Path(one).parent, folder)
    result = summary(last)
    assert [row["label"] for row in result["rows"]] == ["sdp k=1", "sdp k=2"]
    assert result["pairs"][0]["n"] == 2
    assert re.search(r"sdp k=1 .*sdp k=2", text, re.DOTALL) and (Path(last).parent / "comparison.png").is_file()


def test_replay_makes_a_recording_of_the_training_run_and_of_a_demonstration(run, trained, root):
    folder, _ = trained
    last, text = run("replay", folder, "open=false")
    assert "recording:" in text and list(Path(last).parent.glob("*.rrd"))
    store = next(root.glob("collect/*/demonstrations.zarr"))
    last, _ = run("replay", store, "episode=1", "open=false")
    assert summary(last)["start"] == 1


class TestMistakes:
    """One line: what was expected, what was found, the remedy. No traceback, and nothing that existed is lost."""

    @pytest.fixture
    def refused(self, run):
        def call(*words):
            _, text = run(*words, ok=False)
            assert "Traceback" not in text
            errors = [line for line in text.splitlines() if line.startswith("embodied: error:")]
            assert len(errors) == 1, text
            return errors[0]

        return call

    def test_a_store_that_is_named_and_missing(self, refused, root):
        error = refused("train", *SMALL, f"data.store={root}/nowhere.zarr")
        assert "nowhere.zarr" in error and "embodied collect" in error
        assert not (root / "nowhere.zarr").exists()

    def test_a_half_collected_store(self, refused, trained, root, tmp_path):
        store = tmp_path / "half.zarr"
        shutil.copytree(next(root.glob("collect/*/demonstrations.zarr")), store)
        manifest = store / "manifest.jsonl"
        manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
        before = manifest.read_bytes()
        error = refused("train", *SMALL, "task.horizon=60", f"data.store={store}")
        assert "expected 2 episodes" in error and "found 1 kept" in error and "data.allow_partial=true" in error
        assert manifest.read_bytes() == before

    def test_a_store_of_other_specs(self, refused, trained, root):
        store = next(root.glob("collect/*/demonstrations.zarr"))
        error = refused("train", *SMALL, "task.horizon=60", "task.control_hz=10", f"data.store={store}")
        assert "control_hz: 20" in error or "control_hz: 10" in error

    def test_a_checkpoint_of_another_task(self, refused, trained, tmp_path):
        copy = tmp_path / "other"
        shutil.copytree(find_checkpoint(trained[0]), copy)
        text = (copy / "policy.json").read_text()
        (copy / "policy.json").write_text(text.replace('"control_hz": 20.0', '"control_hz": 25.0'))
        error = refused("eval", copy, "episodes=1", "workers=0")
        assert "a policy for task robosuite/lift" in error and "control_hz: 25.0 against 20.0" in error
        error = refused("train", *SMALL, "task.horizon=60", f"init={copy}")
        assert f"a checkpoint for task robosuite/lift in init={copy}" in error

    def test_a_run_that_does_not_exist(self, refused):
        assert "a checkpoint in" in refused("eval", "outputs/train/nothing")

    def test_settings_fail_before_minutes_of_collection(self, refused, root):
        before = sorted(root.glob("collect/*"))
        assert "policy.k between 1 and floor(N / h) = 25; found 99" in refused(
            "train", "policy.k=99", "collect.episodes=3"
        )
        assert sorted(root.glob("collect/*")) == before

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["seed=-1"], "a seed of at least 0; found -1"),
            (["eval.episodes=0"], "episodes of at least 1; found 0"),
            (["eval.latency_observations=0"], "latency_observations of at least 1"),
            (["collect.noise=3"], "0 <= noise <= noise_bound"),
            (["training.validation_share=1.5"], "training.validation_share from 0 to below 1"),
            (["training.loggers=[wandb]"], "the package 'wandb'"),
            (["init=nothing"], "a checkpoint in nothing"),
            (["policy.k=two"], "a whole number for policy.k; found policy.k=two"),
            (["training.steps=1.5"], "a whole number for training.steps"),
            (["eval.episodes=true"], "a whole number for eval.episodes"),
            (["workers=two"], "a whole number for workers"),
            (["training.betas=1"], "a list for training.betas"),
        ],
    )
    def test_wrong_values_fail_at_once(self, refused, root, words, message):
        before = sorted(root.glob("collect/*"))
        assert message in refused("train", *words, "collect.episodes=3")
        assert sorted(root.glob("collect/*")) == before

    def test_a_camera_without_opengl(self, refused, monkeypatch):
        monkeypatch.setenv("MUJOCO_GL", "nonsense")
        error = refused("collect", "episodes=1", "task.cameras=[agentview]")
        assert "MUJOCO_GL" in error or "OpenGL" in error

    def test_an_unknown_key(self, refused):
        assert "did you mean 'policy'" in refused("train", "polcy=sdp")

    def test_a_setting_of_another_policy(self, refused, trained):
        assert "a run-time setting of StreamingDiffusionPolicy; found policy.calls" in refused(
            "eval", trained[0], "policy.calls=4"
        )
