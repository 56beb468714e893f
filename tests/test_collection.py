"""Collection: content that depends on seeds alone, bounded noise, dropped failures, resumption."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from omegaconf import OmegaConf
from toy_specs import ReachExpert, ReachTask, toy_settings

from embodied import catalog, collection
from embodied.action_noise import bounded_noise
from embodied.catalog import TASK_EXPERT
from embodied.collection import collect, collect_episode, on_processes
from embodied.commands import collect as collect_command
from embodied.commands import train as train_command
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.process_pool import SerialPool
from embodied.run_directory import RunDirectory, without_timings


@pytest.fixture
def toy_catalog(monkeypatch):
    """The toy task by name; worker processes import nothing of this, so the pool is run in this process."""
    monkeypatch.setitem(catalog.TASKS, "toy/reach", "toy_specs:ReachTask")
    monkeypatch.setitem(catalog.EXPERTS, "toy/reach", "toy_specs:ReachExpert")
    monkeypatch.setattr(collection, "pool_of", lambda make_worker, workers: SerialPool(make_worker))


THIS_PROCESS = functools.partial(on_processes, workers=0)


def collect_into(path, settings, report=lambda store: None):
    task = ReachTask()
    with EpisodeStore.create(path, task.spec, expected_episodes=settings.episodes, provenance={}) as store:
        collect(store, {"name": "toy/reach"}, settings, THIS_PROCESS, report)
        return store.content_hash()


def test_noise_is_bounded_addressed_and_leaves_binary_elements_alone():
    spec = ReachTask().spec.action
    noise = bounded_noise(spec, 0.3, 0.5, 0, 7, 5000)
    assert (noise[:, 2] == 0).all() and np.abs(noise).max() == pytest.approx(0.5)
    assert 0.22 < noise[:, :2].std() < 0.3  # a Gaussian of deviation 0.3, cut at 0.5
    assert np.array_equal(noise, bounded_noise(spec, 0.3, 0.5, 0, 7, 5000))
    assert not np.array_equal(noise, bounded_noise(spec, 0.3, 0.5, 0, 8, 5000))
    assert not np.array_equal(noise, bounded_noise(spec, 0.3, 0.5, 1, 7, 5000))


def test_labels_are_the_expert_s_clean_actions_at_the_states_that_noise_reached():
    task, settings = ReachTask(), toy_settings()
    episode = collect_episode(task, ReachExpert(task), 3, settings)
    noise = bounded_noise(task.spec.action, settings.noise, settings.noise_bound, 0, 3, task.spec.horizon)
    for t in range(episode.length):
        task.point, task.goal = episode.physics[t, :2].copy(), episode.physics[t, 2:].copy()
        assert np.array_equal(episode.action[t], ReachExpert(task).act(None)[0])
        expected = np.clip(episode.action[t] + noise[t], -1, 1)
        np.testing.assert_array_equal(episode.executed[t], expected.astype(np.float32))
    np.testing.assert_allclose(np.diff(episode.state["point"], axis=0), 0.1 * episode.executed[:-1, :2], atol=1e-6)


def test_a_demonstration_goes_on_after_success():
    task = ReachTask()
    episode = collect_episode(task, ReachExpert(task), 0, toy_settings(steps_after_success=5, noise=0.0))
    assert episode.first_success is not None and episode.length == episode.first_success + 5
    assert episode.instruction == "reach the goal"


def test_a_demonstration_ends_where_the_task_ends_it():
    class TerminatingTask(ReachTask):
        """Ends after 7 steps; to step on from there is an error."""

        def step(self, action):
            assert self.t < 7
            return dataclasses.replace(super().step(action), terminated=self.t == 7)

    task = TerminatingTask()
    episode = collect_episode(task, ReachExpert(task), 0, toy_settings(noise=0.0))
    assert episode.length == 7 and not episode.success_ever


def test_interrupted_and_resumed_collection_equals_an_uninterrupted_one(tmp_path, toy_catalog):
    settings = toy_settings(episodes=6)

    def interrupt(store):
        if len(store) == 3:
            raise KeyboardInterrupt

    expected = collect_into(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        collect_into(tmp_path / "resumed", settings, interrupt)
    assert collect_into(tmp_path / "resumed", settings) == expected


def test_failed_demonstrations_are_dropped_and_counted(tmp_path, toy_catalog, monkeypatch):
    monkeypatch.setattr(ReachTask, "step", fail_on_odd_starts(ReachTask.step))
    monkeypatch.setattr(ReachTask, "reset", remember_start(ReachTask.reset))
    collect_into(tmp_path / "store", toy_settings(episodes=3))
    store = EpisodeStore.open(tmp_path / "store")
    assert [row.seed for row in store.rows] == [0, 2, 4]
    assert [(row.seed, row.reason) for row in store.dropped] == [(n, "no success within 40 steps") for n in (1, 3)]


def remember_start(reset):
    @functools.wraps(reset)
    def wrapped(self, start_id):
        self.start = start_id
        return reset(self, start_id)

    return wrapped


def fail_on_odd_starts(step):
    @functools.wraps(step)
    def wrapped(self, action):
        result = step(self, action)
        if self.start % 2:
            result.info["success"] = False
        return result

    return wrapped


def test_an_expert_that_never_succeeds_ends_the_collection(tmp_path, toy_catalog, monkeypatch):
    monkeypatch.setattr(ReachExpert, "act", lambda self, memory: (np.zeros(3, np.float32), None))
    with pytest.raises(UserError, match="an expert that succeeds on task toy/reach; found 25 failures in a row"):
        collect_into(tmp_path / "store", toy_settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": 0}, "episodes of at least 1; found 0"),
        ({"noise": 0.5, "noise_bound": 0.4}, "0 <= noise <= noise_bound"),
        ({"noise": -0.1}, "0 <= noise <= noise_bound"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        toy_settings(**changes)


class TestCommand:
    """`embodied collect`, and `train` that calls it: a collection is finished only with its store."""

    @pytest.fixture
    def config(self, tmp_path, toy_catalog):
        where = {"run_root": str(tmp_path), "name": None, "force": False, "resume": None, "workers": 1, "store": None}
        return OmegaConf.create(
            {
                **where,
                "task": {"name": "toy/reach"},
                "expert": TASK_EXPERT,
                **vars(toy_settings(episodes=2)),
                "engine": "processes",
                "ray_address": None,
                "hang_after_s": 60,
            }
        )

    def test_a_finished_collection_is_found_again(self, config, capsys):
        summary = collect_command.run(config)
        before = summary.read_bytes()
        assert collect_command.run(config) == summary and summary.read_bytes() == before
        assert "is finished already" in capsys.readouterr().out

    def test_the_engine_is_no_part_of_what_a_run_is(self, config):
        assert collect_command.open_run(OmegaConf.merge(config, {"engine": "ray"})).path == (
            collect_command.open_run(config).path
        )
        with pytest.raises(UserError, match="engine processes or ray; found rays; did you mean 'ray'"):
            collect_command.run(OmegaConf.merge(config, {"engine": "rays"}))

    @pytest.mark.parametrize("damage", ["deleted", "begun again"])
    def test_without_its_store_it_is_collected_again(self, config, capsys, damage):
        summary = collect_command.run(config)
        before = without_timings(json.loads(summary.read_text()))
        store = summary.parent / "demonstrations.zarr"
        if damage == "deleted":
            shutil.rmtree(store)
        else:
            manifest = store / "manifest.jsonl"
            manifest.write_text(manifest.read_text().splitlines(keepends=True)[0])
        capsys.readouterr()
        assert collect_command.run(config) == summary
        assert f"{store} is not whole any more: collecting again" in capsys.readouterr().out
        assert EpisodeStore.open(store).is_complete
        assert without_timings(json.loads(summary.read_text())) == before

    def test_train_collects_again_too(self, config, tmp_path, capsys):
        keys = ("run_root", "workers", "task", "expert")
        collection = {name: config[name] for name in (*vars(toy_settings()), *collect_command.WHERE)}
        values = {**{key: config[key] for key in keys}, "data": {"store": None}, "collect": collection}
        directory = RunDirectory(tmp_path, "train", OmegaConf.create(values))
        (store,) = train_command.demonstrations(directory)
        shutil.rmtree(store)
        assert train_command.demonstrations(directory) == (store,) and EpisodeStore.open(store).is_complete
        capsys.readouterr()
        train_command.demonstrations(directory)
        assert capsys.readouterr().out == ""

    def test_a_named_store_of_other_settings_is_refused(self, config, tmp_path):
        config.store = str(tmp_path / "named.zarr")
        collect_command.run(config)
        with pytest.raises(
            UserError, match=r"collection.first_start: 0 against 50; collection.noise: 0.2 against 0.1;"
        ):
            collect_command.run(OmegaConf.merge(config, {"noise": 0.1, "first_start": 50}))
