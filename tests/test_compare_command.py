"""`embodied compare` on run directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from evaluation_summaries import A, B, evaluation

from embodied.commands.compare import run as run_command
from embodied.configuration import check
from embodied.errors import UserError
from embodied.summaries import validate_summary


def save(directory: Path, summary: dict | None) -> Path:
    """A run directory, finished if there is a summary."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("{}\n")
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    return directory


def run_compare(root: Path, *runs: Path | str, **settings: str) -> Path:
    words = [f"runs=[{','.join(map(str, runs))}]", f"run_root={root}"]
    return run_command(check("compare", words + [f"{key}={value}" for key, value in settings.items()]))


def test_command_writes_table_figure_and_summary(tmp_path: Path, capsys):
    reference = save(tmp_path / "eval" / "reference", evaluation(B, setting="ddim-16", p50=16.0))
    other = save(tmp_path / "eval" / "other", evaluation(A))
    path = run_compare(tmp_path, "reference", other)
    summary = json.loads(path.read_text())
    validate_summary("compare", summary)
    assert path.name == "summary.json" and path.parent.parent == tmp_path / "compare"
    assert summary["evaluations"] == [str(reference), str(other)]
    assert summary["pairs"][0]["discordant"] == {"only_this": 9, "only_reference": 2}
    page = (path.parent / summary["files"]["table"]).read_text()
    assert "15/20" in page
    assert (path.parent / summary["files"]["figure"]).stat().st_size > 10000
    printed = capsys.readouterr().out
    assert "15/20" in printed and "do not tell" in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_command_draws_success_and_differences(tmp_path: Path):
    save(tmp_path / "eval" / "a", evaluation(A))
    save(tmp_path / "eval" / "b", evaluation(B, setting="ddim-16"))
    path = run_compare(tmp_path, "a", "b", interval="clopper_pearson")
    summary = json.loads(path.read_text())
    assert summary["interval"] == "clopper_pearson"
    assert (path.parent / summary["files"]["differences"]).stat().st_size > 10000
    with pytest.raises(UserError, match="an interval of wilson, clopper_pearson; found 'exact'"):
        run_compare(tmp_path, "a", "b", interval="exact")


def test_command_scores_a_suite_where_the_tasks_are_several(tmp_path: Path, capsys):
    for task in ("lift", "can"):
        for outcomes, setting in ((A, "sdp k=2"), (B, "ddim-16")):
            save(
                tmp_path / "eval" / f"{task}-{setting.split()[0]}",
                evaluation(outcomes, setting=setting, task=f"r/{task}"),
            )
    path = run_compare(tmp_path, "lift-ddim-16", "can-ddim-16", "lift-sdp", "can-sdp")
    summary = json.loads(path.read_text())
    assert (summary["what"], summary["tasks"]) == ("suite", ["r/lift", "r/can"])
    assert summary["rows"][1]["score"]["rate"] == pytest.approx(15 / 20)
    assert (path.parent / "comparison.png").stat().st_size > 10000
    printed = capsys.readouterr().out
    assert "suite of 2 tasks" in printed and "r/can: success within 100 steps" in printed
    assert "Over 2 tasks 'sdp k=2' succeeds more often" in printed
    assert max(len(line) for line in printed.splitlines()) <= 100


def test_command_measures_the_agreement_with_a_real_robot(tmp_path: Path, capsys):
    for name, outcomes in (("a", A), ("b", B)):
        save(tmp_path / "eval" / name, evaluation(outcomes, setting=name))
    path = run_compare(tmp_path, "a", "b", real="[17/20,0.2]")
    summary = json.loads(path.read_text())
    assert summary["what"] == "agreement" and len(summary["evaluations"]) == 2
    assert [policy["real"] for policy in summary["agreements"][0]["policies"]] == [0.85, 0.2]
    assert (path.parent / "comparison.png").stat().st_size > 10000
    assert "only 2 policies" in capsys.readouterr().out


def test_command_measures_the_agreement_in_a_file(tmp_path: Path, capsys):
    content = {"policies": ["a", "b"], "tasks": {"lift": {"real": [0.2, 0.8], "sim": [0.5, 0.5]}}}
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(content))
    path = run_compare(tmp_path, agreement=str(file))
    summary = json.loads(path.read_text())
    assert summary["source"] == str(file) and summary["agreements"][0]["mmrv"]["value"] == pytest.approx(0.3)
    assert "0.300" in capsys.readouterr().out and path.parent.name.startswith("rates-")
    other = tmp_path / "elsewhere" / "rates.json"
    other.parent.mkdir()
    other.write_text(file.read_text())
    assert run_compare(tmp_path, agreement=str(other)) == path, "named by its content"
    other.write_text(json.dumps({**content, "policies": ["a", "c"]}))
    assert run_compare(tmp_path, agreement=str(other)) != path
    with pytest.raises(UserError, match="either agreement=FILE alone, or runs with real"):
        run_compare(tmp_path, "a", agreement=str(file))
    with pytest.raises(UserError, match="evaluations to compare; found none; usage: embodied compare RUN RUN"):
        run_compare(tmp_path)


def test_command_takes_the_evaluation_of_a_training_run(tmp_path: Path):
    save(tmp_path / "train" / "a", {"command": "train", "evaluation": {"path": "evaluation"}})
    inside = save(tmp_path / "train" / "a" / "evaluation", evaluation(A))
    outside = save(tmp_path / "eval" / "b", evaluation(B, setting="ddim-16"))
    save(tmp_path / "train" / "b", {"command": "train", "evaluation": {"path": str(outside)}})
    beside = save(tmp_path / "eval" / "c", evaluation(B, setting="ddim-4"))
    save(tmp_path / "train" / "c", {"command": "train", "evaluation": {"path": "../../eval/c"}})
    summary = json.loads(run_compare(tmp_path, *(tmp_path / "train" / name for name in "abc")).read_text())
    assert summary["evaluations"] == [str(inside), str(outside), str(beside)]


def test_command_is_computed_anew_in_the_same_directory(tmp_path: Path):
    first = save(tmp_path / "eval" / "a", evaluation(A))
    save(tmp_path / "eval" / "b", evaluation(B, setting="ddim-16"))
    before = run_compare(tmp_path, "a", "b")
    (first / "summary.json").write_text(json.dumps(evaluation("1" * 20)))
    after = run_compare(tmp_path, first, "b")
    assert after == before
    assert json.loads(after.read_text())["rows"][0]["success"]["ever"]["k"] == 20
    assert run_compare(tmp_path, "b", "a") != before
    assert run_compare(tmp_path, "a", "b", confidence="0.9") != before


def test_command_errors(tmp_path: Path):
    good = save(tmp_path / "eval" / "good", evaluation(A))
    unfinished = save(tmp_path / "eval" / "unfinished", None)
    with pytest.raises(UserError, match=r"a finished run in .*unfinished; found no summary\.json; run the command"):
        run_compare(tmp_path, good, unfinished)
    with pytest.raises(UserError, match="'goood', which does not exist; did you mean 'good'"):
        run_compare(tmp_path, good, "goood")
    collected = save(tmp_path / "collect" / "store", {"command": "collect"})
    with pytest.raises(UserError, match="a run of eval or train or distill; found a run of collect"):
        run_compare(tmp_path, good, collected)
    without = save(tmp_path / "train" / "without", {"command": "train"})
    with pytest.raises(UserError, match="to name its evaluation; found none in its summary; evaluate it"):
        run_compare(tmp_path, good, without)
    lost = save(tmp_path / "train" / "lost", {"command": "train", "evaluation": {"path": "gone"}})
    with pytest.raises(UserError, match=r"gone; found no summary\.json there"):
        run_compare(tmp_path, good, lost)
    damaged = save(tmp_path / "eval" / "damaged", {**evaluation(B), "episodes": None})
    with pytest.raises(UserError, match=r"an evaluation in .*damaged; found at \$\.episodes: .*evaluate again"):
        run_compare(tmp_path, good, damaged)
    with pytest.raises(UserError, match="at least two evaluations; found 1"):
        run_compare(tmp_path, good)
    with pytest.raises(UserError, match="no resume= for a comparison"):
        run_compare(tmp_path, good, good, resume="somewhere")
    assert not (tmp_path / "compare").exists()
