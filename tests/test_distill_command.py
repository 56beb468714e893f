"""`embodied distill` as a user types it, on robosuite/lift: small, but every stage is the real one."""

import shutil
from pathlib import Path

import pytest
from test_commands import embodied, summary

from embodied.cli import main
from embodied.run_directory import without_timings
from embodied.training.checkpoint import find_checkpoint

SMALL = ["training.steps=4", "training.batch_size=8", "training.checkpoint_every=2"]
SHORT = ["eval.episodes=1", "eval.recordings=0", "eval.latency_observations=3", "workers=0"]
TEACHER = ["policy=flow_matching", "collect.episodes=2", "task.horizon=40"]
TEACHER += ["network.width=16", "network.depth=1", "network.heads=2"]
PAIR = ["objective=ode_pair", "objective.teacher_calls=3"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def run(capsys, root):
    def call(command, *words, ok=True):
        code, last, text = embodied(capsys, command, *words, f"run_root={root}")
        assert (code == 0) is ok and "Traceback" not in text, text
        return last, text

    return call


def made(root, command, *words):
    """The directory of a run that every test here may look at."""
    with pytest.raises(SystemExit) as exit_:
        main([command, *map(str, words), f"run_root={root}"])
    assert not exit_.value.code
    (summary_path,) = root.glob(f"{command}/*/summary.json")
    return summary_path.parent


@pytest.fixture(scope="module")
def teacher(root):
    return made(root, "train", *TEACHER, *SMALL, *SHORT)


@pytest.fixture(scope="module")
def distilled(root, teacher):
    return made(root, "distill", teacher, *PAIR, *SMALL, *SHORT)


def test_distill_trains_evaluates_and_says_of_whom(run, teacher, distilled):
    result, taught = summary(distilled / "summary.json"), summary(teacher / "summary.json")
    assert result["command"] == "distill" and result["policy"] == "flow_map" and result["steps"] == 4
    assert result["objective"] == {"name": "ode_pair", "teacher_calls": 3, "distance": "pseudo_huber"}
    assert result["teacher"]["run"] == str(find_checkpoint(teacher)) and result["teacher"]["setting"] == "euler-8"
    assert result["teacher"]["config_hash"] == taught["config_hash"]
    assert result["store"]["content_hash"] == taught["store"]["content_hash"]
    assert result["parameters"] > taught["parameters"]
    assert result["evaluation"]["setting"] == "ode_pair-1"
    evaluated = summary((distilled / result["evaluation"]["path"]).resolve() / "summary.json")
    assert evaluated["network_calls_per_observation"] == 1 and evaluated["policy"] == "flow_map"


def test_the_same_teacher_under_another_path_is_the_same_run(run, teacher, distilled, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(find_checkpoint(teacher), copy)
    last, text = run("distill", copy, *PAIR, *SMALL, *SHORT)
    assert "finished already" in text and Path(last).parent == distilled
    last, text = run("distill", teacher.name, *PAIR, *SMALL, *SHORT)  # by its name under run_root
    assert "finished already" in text and Path(last).parent == distilled


def test_an_interrupted_distillation_is_resumed_without_naming_the_teacher(run, distilled, root):
    copy = root / "distill" / "copy"
    shutil.copytree(distilled, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "checkpoints" / "step_0000004")
    last, text = run("distill", f"resume={copy}", *SHORT)
    assert "going on from step 2" in text
    weights = [(find_checkpoint(path) / "policy.safetensors").read_bytes() for path in (copy, distilled)]
    assert weights[0] == weights[1]
    results = [without_timings(summary(path)) for path in (last, distilled / "summary.json")]
    assert results[0] == results[1]
    config = (copy / "config.yaml").read_text()
    (copy / "summary.json").unlink()
    (copy / "config.yaml").write_text(config.replace("teacher_weights: ", "teacher_weights: x"))
    _, text = run("distill", f"resume={copy}", *SHORT, ok=False)
    assert "the teacher's weights that" in text and "began with; found others in" in text
    shutil.rmtree(copy)


def test_consistency_is_evaluated_with_more_calls_compared_and_exported(run, teacher, distilled):
    last, _ = run("distill", teacher, "objective.intervals=4", *SMALL, *SHORT)
    consistency = Path(last).parent
    assert summary(last)["evaluation"]["setting"] == "consistency-1"
    short = [word.removeprefix("eval.") for word in SHORT]
    two, _ = run("eval", consistency, "policy.calls=2", *short)
    assert summary(two)["network_calls_per_observation"] == 2 and summary(two)["setting"] == "consistency-2"
    last, _ = run("compare", teacher, consistency, distilled)
    assert [row["label"] for row in summary(last)["rows"]] == ["euler-8", "consistency-1", "ode_pair-1"]
    last, _ = run("export", distilled, "format=torch_export")
    assert [row["name"] for row in summary(last)["programs"]] == ["sampling"]
    for command in ("eval", "export"):
        _, text = run(command, distilled, "policy.calls=2", ok=False)
        assert "policy.calls between 1 and 1, which objective ode_pair trains; found 2" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a teacher to distill; found none; name a training run"),
        (["nowhere"], "expected a checkpoint in nowhere; found no such folder"),
        (["TEACHER", "objective=consistancy"], "did you mean 'consistency'? known: consistency, ode_pair"),
        (["TEACHER", "objective.teacher_cals=3"], "did you mean 'objective.teacher_calls'?"),
        (["TEACHER", "objective.intervals=999"], "objective.intervals between 1 and the teacher's levels (100)"),
        (["TEACHER", *PAIR, "policy.calls=2"], "policy.calls between 1 and 1, which objective ode_pair trains"),
        (["TEACHER", "data.store=nowhere.zarr"], "nowhere.zarr"),
        (["TEACHER", "seed=-1"], "a seed of at least 0; found -1"),
        (["TEACHER", "STUDENT"], "the stray word"),
        (["STUDENT"], "a policy of kind diffusion; found one of kind flow_map; train one with policy=flow_matching"),
    ],
)
def test_mistakes_are_one_line(run, teacher, distilled, words, message):
    named = {"TEACHER": teacher, "STUDENT": distilled}
    _, text = run("distill", *(named.get(word, word) for word in words), ok=False)
    errors = [line for line in text.splitlines() if line.startswith("embodied: error:")]
    assert len(errors) == 1 and message in errors[0]


def test_demonstrations_that_are_gone_are_asked_for(run, teacher, distilled, root):
    (folder,) = root.glob("collect/*")
    folder.rename(root / "moved")
    try:
        _, text = run("distill", teacher, *PAIR, *SMALL, *SHORT, "seed=5", ok=False)
        assert "the demonstrations that the teacher" in text and "found nothing there" in text
        named = f"data.store={root}/moved/demonstrations.zarr"
        last, _ = run("distill", teacher, *PAIR, *SMALL, *SHORT, "seed=5", named)
        assert summary(last)["steps"] == 4
    finally:
        (root / "moved").rename(folder)
