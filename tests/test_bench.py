"""The simulation benchmark: what it measures, its page, and its mistakes."""

from __future__ import annotations

import functools
import json
import time

import pytest
from omegaconf import OmegaConf
from toy_environments import BrokenEnvironment, SlowEnvironment

from embodied.benchmarks.simulation import BareProcess, SimulationBenchmark, measure
from embodied.catalog import BARE_ENVIRONMENTS, TASKS, names, task_config
from embodied.commands import bench
from embodied.errors import UserError
from embodied.sim.gymnasium_adapter import from_gymnasium
from embodied.sim.pusht_bare import BarePushT

HORIZON = 40


class SlowTask:
    """Half as fast as `SlowEnvironment(0.002)`."""

    def __init__(self) -> None:
        import gymnasium

        env = gymnasium.make("Pendulum-v1", max_episode_steps=None)
        task = from_gymnasium(env, task="toy/slow", control_hz=20, horizon=HORIZON, success=lambda *_: False)
        self.spec, self.reset, self._step, self.close = task.spec, task.reset, task.step, task.close

    def step(self, action):
        time.sleep(0.004)
        return self._step(action)


@pytest.fixture
def bare():
    process = BareProcess(functools.partial(SlowEnvironment, 0.002))
    yield process
    process.close()


def test_the_ratio_is_of_steps_alone_and_blocks_are_counted(bare):
    pairs = []
    row = measure(SlowTask(), bare, SimulationBenchmark(3, 20, seed=0), lambda: pairs.append(1))
    assert len(pairs) == 4
    assert 100 < row["steps_per_s"]["median"] < 250 and row["bare_steps_per_s"]["median"] < 500
    assert 0.2 < row["ratio"]["median"] < 0.8
    assert row["ratio"]["q25"] <= row["ratio"]["median"] <= row["ratio"]["q75"]
    assert row["reset_s"] < 0.2 <= row["bare_reset_s"]


def test_a_block_must_fit_the_horizon(bare):
    with pytest.raises(UserError, match=r"block_steps of at most 40, the horizon of toy/slow; found 41"):
        measure(SlowTask(), bare, SimulationBenchmark(1, HORIZON + 1, seed=0), lambda: None)
    with pytest.raises(UserError, match="blocks of at least 1; found 0"):
        SimulationBenchmark(0, 5, seed=0)


def test_a_bare_environment_that_fails_says_why():
    process = BareProcess(BrokenEnvironment)
    with pytest.raises(UserError, match="RuntimeError: no such robot; leave its task out"):
        measure(SlowTask(), process, SimulationBenchmark(1, 5, seed=0), lambda: None)
    process.close()


def config(tmp_path, **changes):
    settings = {
        **{"run_root": str(tmp_path), "name": None, "force": False, "resume": None, "what": "sim"},
        **{"tasks": ["robosuite/lift"], "cameras": False, "camera_names": {}, "camera_size": 96},
        **{"blocks": 1, "block_steps": 5, "seed": 0, "results": None},
        **{"gymnasium": {"control_hz": 1, "success_reward": 0}},
    }
    return OmegaConf.create({**settings, **changes})


@pytest.mark.heavy
def test_the_command_measures_lift_beside_robosuite(tmp_path, capsys):
    path = bench.run(config(tmp_path))
    (row,) = json.loads(path.read_text())["timings"]["rows"]
    assert (row["task"], row["cameras"]) == ("robosuite/lift", [])
    page = (path.parent / "sim.md").read_text()
    assert "\n\n| task |" in page and "| robosuite/lift | none |" in page
    assert "robosuite/lift" in capsys.readouterr().out


TASK_OF_EACH_FAMILY = (
    "adroit/door",
    "gymnasium/Pendulum-v1",
    "metaworld/reach-v3",
    "pusht/keypoints",
    "pusht/pixels",
    "pusht/state",
    "tabletop/stack",
)


def test_every_family_is_measured_beside_its_bare_environment(tmp_path):
    path = bench.run(config(tmp_path, tasks=list(TASK_OF_EACH_FAMILY)))
    rows = json.loads(path.read_text())["timings"]["rows"]
    assert [(row["task"], row["cameras"]) for row in rows] == [
        (task, ["board"] if task == "pusht/pixels" else []) for task in TASK_OF_EACH_FAMILY
    ]
    assert {task.partition("/")[0] for task in TASK_OF_EACH_FAMILY} | {"robosuite"} == set(BARE_ENVIRONMENTS)


def test_cameras_are_measured_beside_those_of_the_task_alone():
    settings = {"gymnasium": {}, "camera_names": {"metaworld": ["corner2"], "pusht": ["board"]}, "camera_size": 32}
    jobs = bench._jobs({**settings, "cameras": True, "tasks": ["metaworld/reach-v3", "pusht/pixels", "adroit/pen"]})
    assert [(job["name"], job.get("cameras"), job.get("camera_size")) for job in jobs] == [
        ("metaworld/reach-v3", [], 96),
        ("metaworld/reach-v3", ["corner2"], 32),
        ("pusht/pixels", ["board"], 96),
        ("adroit/pen", None, None),
    ]


@pytest.mark.parametrize(
    ("name", "cameras", "shown"),
    [
        ("pusht/state", [], {"": (5,)}),
        ("pusht/keypoints", [], {"environment_state": (16,), "agent_pos": (2,)}),
        ("pusht/pixels", ["board"], {"pixels": (32, 32, 3), "agent_pos": (2,)}),
        ("pusht/state", ["board"], {"pixels": (32, 32, 3), "agent_pos": (2,)}),
    ],
)
def test_the_bare_push_t_shows_what_the_task_shows(name, cameras, shown):
    bare = BarePushT({"name": name, "cameras": cameras, "camera_size": 32})
    observation, _ = bare.reset(0)
    parts = observation if isinstance(observation, dict) else {"": observation}
    assert {part: value.shape for part, value in parts.items()} == shown
    bare.close()


def test_results_are_written_by_the_run_and_again_when_it_is_finished(tmp_path):
    settings = {"tasks": ["gymnasium/Pendulum-v1"], "results": str(tmp_path / "first" / "sim")}
    path = bench.run(config(tmp_path, **settings))
    page = (tmp_path / "first" / "sim" / "sim.md").read_text()
    data = json.loads((tmp_path / "first" / "sim" / "sim.json").read_text())
    summary = json.loads(path.read_text())
    assert page == (path.parent / "sim.md").read_text()
    assert f"- machine: {summary['machine']['cpu']}, {summary['machine']['cores']} cores" in page
    assert "- blocks: 1 of 5 control steps, seed 0" in page
    assert data["rows"] == summary["timings"]["rows"] and (data["blocks"], data["block_steps"]) == (1, 5)
    assert bench.run(config(tmp_path, **{**settings, "results": str(tmp_path / "second")})) == path
    assert (tmp_path / "second" / "sim.md").read_text() == page
    assert json.loads((tmp_path / "second" / "sim.json").read_text()) == data


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="to write into .*file/sim; found .*; choose another folder with results="):
        bench.run(config(tmp_path, tasks=["gymnasium/Pendulum-v1"], results=str(tmp_path / "file" / "sim")))


def test_an_episode_that_ends_within_a_block(tmp_path):
    changes = {"tasks": ["gymnasium/InvertedPendulum-v5"], "block_steps": 200}
    with pytest.raises(UserError, match="episodes of gymnasium/InvertedPendulum-v5 that last for a block of 200 steps"):
        bench.run(config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["gymnasium/Pendulun-v1"]}, "task.id; found 'Pendulun-v1'; did you mean 'Pendulum-v1'"),
        ({"tasks": ["gymnasium"]}, "as in gymnasium/Pendulum-v1; found 'gymnasium'"),
        ({"what": "smi"}, "the name of a benchmark; found 'smi'; did you mean 'sim'"),
        ({"tasks": ["robosuite/lfit"]}, "the name of a task; found 'robosuite/lfit'; did you mean 'robosuite/lift'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        bench.run(config(tmp_path, **changes))


@pytest.mark.parametrize("name", [name for name in names(TASKS) if not name.endswith("/*")])
def test_every_task_has_its_settings(name):
    assert task_config(name)["name"] == name
