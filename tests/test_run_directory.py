"""Run directories: found again, kept apart, resumed, locked; summaries checked and comparable."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from embodied import run_directory
from embodied.errors import UserError
from embodied.run_directory import RunDirectory, config_differences, config_hash, find_run
from embodied.summaries import validate_summary, without_timings

RESULT = {
    "checks": [{"name": "python", "status": "ok", "found": "3.12", "remedy": None}],
    "counts": {"ok": 1, "warning": 0, "missing": 0},
}


@pytest.fixture
def config(tmp_path):
    values = {
        "run_root": str(tmp_path),
        "name": None,
        "force": False,
        "resume": None,
        "workers": None,
        "seed": 0,
        "policy": {"k": 2, "horizon": 16},
        "same_k": "${policy.k}",
    }
    return OmegaConf.create(values)


def opened(config, **changes) -> RunDirectory:
    return RunDirectory.open("doctor", "robosuite/lift sdp", OmegaConf.merge(config, OmegaConf.create(changes)))


def test_the_name_is_the_stem_and_eight_characters_of_the_hash(config, tmp_path):
    run = opened(config)
    assert run.path == tmp_path / "doctor" / f"robosuite-lift-sdp-{run.config_hash[:8]}"
    assert run.name == run.path.name


def test_the_resolved_configuration_is_written_first(config):
    saved = OmegaConf.load(opened(config).path / "config.yaml")
    assert saved.same_k == 2
    assert OmegaConf.to_container(saved, resolve=False)["same_k"] == 2
    assert saved.policy == {"k": 2, "horizon": 16}


@pytest.mark.parametrize("change", [{"workers": 3}, {"force": True}])
def test_volatile_keys_do_not_change_the_name(config, change):
    assert opened(config, **change).path == opened(config).path


@pytest.mark.parametrize("change", [{"seed": 1}, {"policy": {"k": 1}}, {"policy": {"extra": None}}])
def test_every_other_key_does(config, change):
    assert opened(config, **change).path != opened(config).path


def test_a_caller_can_add_volatile_keys(config):
    changed = OmegaConf.merge(config, {"policy": {"horizon": 8}})
    runs = [RunDirectory.open("doctor", "x", c, volatile=["policy.horizon"]) for c in (config, changed)]
    assert runs[0].path == runs[1].path
    assert "horizon" in runs[0].config.policy


def test_the_hash_is_the_same_in_another_process(config):
    program = (
        "import sys; from omegaconf import OmegaConf; from embodied.run_directory import config_hash; "
        "sys.stdout.write(config_hash(OmegaConf.create(sys.argv[1])))"
    )
    words = [sys.executable, "-c", program, OmegaConf.to_yaml(config, sort_keys=True)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == config_hash(config)


def test_a_finished_run_is_found_again(config):
    run = opened(config)
    assert not run.is_finished
    run.write_summary(RESULT)
    again = opened(config)
    assert again.is_finished
    assert again.path == run.path
    assert again.summary()["counts"] == RESULT["counts"]


def test_force_makes_a_new_run_beside_finished_ones_only(config):
    first = opened(config, force=True)
    assert opened(config, force=True).path == first.path
    first.write_summary(RESULT)
    second = opened(config, force=True)
    assert second.path == first.path.with_name(f"{first.name}-2")
    second.write_summary(RESULT)
    assert opened(config, force=True).path == first.path.with_name(f"{first.name}-3")
    assert opened(config).path == first.path


def test_a_damaged_summary_is_not_finished(config):
    run = opened(config)
    (run.path / "summary.json").write_text('{"command": ')
    assert not run.is_finished


def test_name_replaces_the_generated_one_and_belongs_to_one_configuration(config, tmp_path):
    assert opened(config, name="mine").path == tmp_path / "doctor" / "mine"
    assert opened(config, name="mine", workers=2).path == tmp_path / "doctor" / "mine"
    with pytest.raises(
        UserError, match=r"mine to hold a run of this configuration; found another one \(seed: 0, now 1"
    ):
        opened(config, name="mine", seed=1)


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", ""])
def test_a_name_is_one_directory(config, name):
    with pytest.raises(UserError, match="name of one directory"):
        opened(config, name=name)


@pytest.mark.parametrize("form", ["path", "summary", "name"])
def test_resume_goes_on_as_the_run_began_and_says_each_difference(config, capsys, form):
    run = opened(config)
    before = (run.path / "config.yaml").read_bytes()
    named = {"path": run.path, "summary": run.path / "summary.json", "name": run.name}[form]
    resumed = opened(config, seed=5, policy={"k": 1}, workers=2, resume=str(named))
    assert resumed.path == run.path
    assert (resumed.config.seed, resumed.config.policy.k, resumed.config.workers) == (0, 2, 2)
    assert resumed.config_hash == run.config_hash
    assert (run.path / "config.yaml").read_bytes() == before
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        "resume: policy.k: 2, now 1",
        "resume: same_k: 2, now 1",
        "resume: seed: 0, now 5",
    ]


def test_nothing_to_resume_lists_nearby_runs(config):
    run = opened(config)
    with pytest.raises(UserError, match=f"does not exist; did you mean '{run.name}'"):
        opened(config, resume=run.name[:-1] + "x")


def test_differences_name_absent_keys():
    before, now = OmegaConf.create({"a": {"b": 1}, "c": [1]}), OmegaConf.create({"a": {}, "c": [1, 2], "force": True})
    assert config_differences(before, now) == ["a: (absent), now {}", "a.b: 1, now (absent)", "c: [1], now [1, 2]"]


def test_the_summary_holds_what_every_summary_holds(config):
    run = opened(config)
    path = run.write_summary({**RESULT, "command": "not ours to say"})
    assert path == run.path / "summary.json"
    summary = json.loads(path.read_text())
    assert summary["command"] == "doctor"
    assert summary["config_hash"] == run.config_hash
    assert summary["machine"]["cores"] >= 1
    assert summary["created"].endswith("+00:00")
    validate_summary("doctor", summary)
    assert [p.name for p in run.path.iterdir() if p.name.endswith("~") or p.name.startswith(".summary")] == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"counts": {"ok": -1, "warning": 0, "missing": 0}}, r"\$\.counts\.ok"),
        ({"unknown": 1}, r"\$: .*unknown"),
        ({"checks": []}, r"\$\.checks"),
        ({"timings": 3}, r"\$\.timings"),
    ],
)
def test_a_summary_that_does_not_fit_its_schema_is_refused_and_not_written(config, change, place):
    run = opened(config)
    with pytest.raises(UserError, match=place):
        run.write_summary({**RESULT, **change})
    assert not run.is_finished


def test_a_summary_of_a_command_without_a_schema_is_refused():
    with pytest.raises(UserError, match="a schema for the summary of 'dance'"):
        validate_summary("dance", {})


def test_two_equal_runs_differ_only_in_what_is_stripped():
    one = {"success": 1, "created": "x", "machine": {"cpu": "a"}, "rows": [{"k": 1, "timings": {"p50_ms": 1.0}}]}
    two = {"success": 1, "created": "y", "machine": {"cpu": "b"}, "rows": [{"k": 1, "timings": {"p50_ms": 2.0}}]}
    assert without_timings(one) == without_timings(two) == {"success": 1, "rows": [{"k": 1}]}


def test_a_second_process_is_kept_out_until_the_first_one_ends(config):
    run = opened(config)
    program = (
        "import sys; from pathlib import Path; from omegaconf import OmegaConf\n"
        "from embodied.run_directory import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1]), 'doctor', OmegaConf.create({})).lock():\n"
        "    sys.stdout.write('locked\\n'); sys.stdout.flush(); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, str(run.path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"found process {other.pid} at work"), run.lock():
            pass
        other.kill()
    with run.lock():
        pass
    with run.lock():
        pass


def test_no_space_is_one_clear_error_and_what_existed_stays(config, monkeypatch):
    run = opened(config)
    run.write_summary(RESULT)
    before = (run.path / "summary.json").read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_directory.os, "fsync", full)
    with pytest.raises(UserError, match="found No space left on device; make space"):
        run.write_summary(RESULT)
    assert (run.path / "summary.json").read_bytes() == before
    assert sorted(p.name for p in run.path.iterdir()) == ["config.yaml", "summary.json"]


def test_a_root_that_cannot_be_written_is_one_clear_error(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="to write into"):
        opened(config, run_root=str(tmp_path / "file"))


def test_find_run_takes_a_directory_a_summary_or_a_name(config, tmp_path):
    run = opened(config)
    for given in (run.path, run.path / "summary.json", str(run.path), run.name):
        assert find_run(given, ("doctor",), tmp_path) == run.path


def test_find_run_says_what_is_wrong(config, tmp_path):
    with pytest.raises(UserError, match=r"there is none under .* yet; run `embodied train` first"):
        find_run("x", ("train",), tmp_path)
    run = opened(config)
    with pytest.raises(UserError, match=r"expected a run of train; found a run of doctor"):
        find_run(run.path, ("train",), tmp_path)
    with pytest.raises(UserError, match=r"holds no config\.yaml; .*known: " + run.name):
        find_run(tmp_path, ("doctor",), Path(tmp_path))
