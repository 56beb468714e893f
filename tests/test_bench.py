"""The simulation benchmark: what it measures, its page, and its mistakes."""

from __future__ import annotations

import functools
import json
import time

import pytest
from omegaconf import OmegaConf

from embodied.benchmarks.simulation import BareProcess, SimulationBenchmark, measure
from embodied.catalog import TASKS, names, task_config
from embodied.commands import bench
from embodied.errors import UserError
from embodied.sim.gymnasium_adapter import from_gymnasium

HORIZON = 40


class SlowEnvironment:
    """Sleeps through every step."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def reset(self, seed: int) -> None:
        time.sleep(0.2)  # must not count

    def step(self, action) -> None:
        time.sleep(self._step_s)

    def close(self) -> None:
        pass


class BrokenEnvironment:
    def __init__(self) -> None:
        raise RuntimeError("no such robot")


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
        **{"blocks": 1, "block_steps": 5, "seed": 0},
    }
    return OmegaConf.create({**settings, **changes})


def test_the_command_measures_lift_beside_robosuite(tmp_path, capsys):
    path = bench.run(config(tmp_path))
    (row,) = json.loads(path.read_text())["timings"]["rows"]
    assert (row["task"], row["cameras"]) == ("robosuite/lift", [])
    page = (path.parent / "sim.md").read_text()
    assert page.startswith("| task |") and "| robosuite/lift | none |" in page
    assert "robosuite/lift" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
