"""A Gymnasium environment named on the command line, with its success signal and its expert."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from embodied.catalog import make_expert, make_task
from embodied.cli import main
from embodied.collection import CollectionSettings, collect_episode
from embodied.errors import UserError
from embodied.sim.gymnasium_task import NamedGymnasiumTask

CORRIDOR = "test/Corridor-v0"
QUIET = CollectionSettings(episodes=1, first_start=0, noise=0.0, noise_bound=0.0, steps_after_success=10, seed=0)


class Corridor(gymnasium.Env):
    """Walk to the end, where the episode terminates."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, length: float = 3.0) -> None:
        self.length, self.place = length, 0.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(0.0, 1.0))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += float(action[0])
        arrived = self.place >= self.length - 1e-6
        return np.array([self.place], np.float32), float(self.place), arrived, False, {"arrived": arrived}


class Forward:
    """An expert that a user brings."""

    def __init__(self, task) -> None:
        self._corridor = task.env.unwrapped

    def infer_memory(self) -> None:
        return None

    def act(self, memory):
        rest = self._corridor.length - self._corridor.place
        return np.clip([rest], -1.0, 1.0).astype(np.float32), None


class Broken:
    def __init__(self, task) -> None:
        raise AttributeError("something within")


@pytest.fixture(autouse=True)
def corridor():
    gymnasium.register(CORRIDOR, entry_point=Corridor, max_episode_steps=20)
    yield
    del gymnasium.registry[CORRIDOR]


def task(**settings) -> NamedGymnasiumTask:
    return NamedGymnasiumTask(**({"id": CORRIDOR, "control_hz": 10, "success_key": "arrived"} | settings))


def test_the_environments_own_limit_is_the_horizon_unless_another_is_given():
    assert task().spec.horizon == 20
    assert task().spec.task == f"gymnasium/{CORRIDOR}"
    longer = task(horizon=30, arguments={"length": 100.0})
    longer.reset(0)
    steps = [longer.step(np.zeros(1)) for _ in range(30)]
    assert [step.truncated for step in steps] == [False] * 29 + [True]


def test_arguments_reach_the_environment():
    assert task(arguments={"length": 5.0}).env.unwrapped.length == 5.0


@pytest.mark.parametrize("signal", [{"success_key": "arrived"}, {"success_key": None, "success_reward": 3.0}])
def test_success_is_a_key_or_a_reward(signal):
    walked = task(**signal)
    start = float(walked.reset(0).state["observation"][0])
    assert 0.0 < start < 0.9
    successes = [walked.step(np.array([0.7])).info["success"] for _ in range(3)]
    assert successes == [False] * 3
    assert walked.step(np.array([1.0])).info["success"]


def test_a_success_exactly_at_the_reward_counts():
    walked = task(success_key=None, success_reward=2.5, arguments={"length": 100.0})
    walked.reset(0)
    walked.env.unwrapped.place = 1.5
    assert not walked.step(np.array([0.5])).info["success"]
    assert walked.step(np.array([0.5])).info["success"]


def test_the_named_expert_demonstrates_until_the_environment_terminates():
    named = make_task(
        {"name": f"gymnasium/{CORRIDOR}", "id": CORRIDOR, "control_hz": 10, "success_key": "arrived"}
        | {"expert": f"{__name__}:Forward"}
    )
    episode = collect_episode(named, make_expert(named), 4, QUIET)
    assert episode.success_ever and episode.success_last and episode.length == episode.first_success == 3


def test_collects_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "swing.py").write_text(
        "import numpy as np\n"
        "class Still:\n"
        "    def __init__(self, task): self.env = task.env.unwrapped\n"
        "    def infer_memory(self): return None\n"
        "    def act(self, memory): return np.full(1, -2.0 if self.env.g > 9 else 2.0, np.float32), None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # the simulation processes inherit it
    words = ["task=gymnasium", "task.id=Pendulum-v1", "task.control_hz=20", "task.success_reward=-100"]
    words += ["task.expert=swing:Still", "task.arguments={g: 4.0}", "episodes=2", "noise=0", "workers=1"]
    with pytest.raises(SystemExit) as exit_of:
        main(["collect", *words])
    assert exit_of.value.code == 0
    summary = json.loads(Path(capsys.readouterr().out.splitlines()[-1]).read_text())
    assert summary["task"] == "gymnasium/Pendulum-v1" and summary["episodes"] == 2
    assert summary["mean_steps_to_success"] == 1


def test_what_gymnasium_does_not_say_is_asked_for(capsys):
    with pytest.raises(SystemExit) as exit_of:
        main(["collect", "task=gymnasium"])
    assert exit_of.value.code != 0
    assert "expected a value for task.control_hz, task.id; found none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "Pendulm-v1"}, r"environment for task\.id; found 'Pendulm-v1'; did you mean 'Pendulum-v1'"),
        ({"id": "Pendulum-v7"}, r"found 'Pendulum-v7'; did you mean 'Pendulum-v1'"),
        ({"id": "no_such_package:Thing-v0"}, r"found 'no_such_package:Thing-v0'; install the package"),
        ({"success_key": None}, r"a success signal for gymnasium/test/Corridor-v0; found none; set task\.success_key"),
        ({"success_reward": 1.0}, r"a success signal for .*; found two"),
        ({"arguments": {"width": 2}}, r"arguments that test/Corridor-v0 takes; found \{'width': 2\}"),
        ({"control_hz": 0}, r"task\.control_hz above 0; found 0"),
        ({"horizon": 0}, r"a horizon of gymnasium/test/Corridor-v0 from 1"),
        ({"id": "CartPole-v1"}, r"bounded Box of actions for gymnasium/CartPole-v1; found Discrete"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        task(**settings)


def test_an_environment_without_a_limit_needs_a_horizon():
    gymnasium.register("test/Endless-v0", entry_point=Corridor)
    try:
        with pytest.raises(UserError, match=r"a horizon for gymnasium/test/Endless-v0; .* set task\.horizon"):
            task(id="test/Endless-v0")
        assert task(id="test/Endless-v0", horizon=7).spec.horizon == 7
    finally:
        del gymnasium.registry["test/Endless-v0"]


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (None, r"an expert for gymnasium/test/Corridor-v0; found task\.expert=null; name one with task\.expert"),
        (f"{__name__}:Backward", r"task\.expert=module:Class .* no attribute 'Backward'"),
        ("no_such_module:Forward", r"'no_such_module:Forward' \(No module named 'no_such_module'\)"),
        (f"{__name__}", r"task\.expert=module:Class that can be imported"),
        (":Forward", r"task\.expert=module:Class that can be imported"),
    ],
)
def test_an_expert_that_is_not_there_is_named(expert, message):
    with pytest.raises(UserError, match=message):
        make_expert(task(expert=expert))


def test_a_mistake_in_the_experts_own_code_is_not_hidden():
    with pytest.raises(AttributeError, match="something within"):
        make_expert(task(expert=f"{__name__}:Broken"))


def test_the_global_random_state_is_left_alone_by_the_constructor():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    task()
    assert np.array_equal(np.random.get_state()[1], before)
