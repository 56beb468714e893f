"""Work on a real Ray cluster of two nodes on this machine, one of which is killed on the way."""

from __future__ import annotations

import functools
import os
import sys

import pytest
from pool_workers import make_mortal, make_square, make_suicide, make_waiting
from toy_collection import SlowReachTask, in_catalog
from toy_evaluation import BOTH, LazyPolicy, plan, silent
from toy_specs import toy_settings

from embodied import catalog
from embodied.collection import collect, on_processes, on_ray
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.evaluation.runner import evaluate
from embodied.process_pool import MOST_DEATHS, SerialPool
from embodied.ray_pool import RayPool, import_ray

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")

EPISODES, STARTS = 16, 3


def started_cluster():
    """Two nodes. Anew where Ray's own processes did not start in time: the tests beside these load the machine."""
    for attempt in range(1, STARTS + 1):
        nodes = cluster_utils.Cluster()
        try:
            nodes.add_node(num_cpus=1, include_dashboard=False)
            nodes.add_node(num_cpus=1)
            nodes.wait_for_nodes()
        except Exception:  # Ray raises nothing more special
            ray.shutdown()
            nodes.shutdown()
            if attempt == STARTS:
                raise
        else:
            return nodes


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, in processes of their own. The tests' folder is on the path of their workers."""
    os.environ["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    nodes = started_cluster()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def connected(cluster):
    """Once for several pools: Ray starts new processes for every connection."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    return cluster


def make_refusal():
    def refuse(item):
        raise UserError(expected="less", found=str(item), remedy="ask for less")

    return refuse


def test_results_come_in_order_and_workers_default_to_the_cluster_s_cores(cluster):
    with RayPool(make_square, None, cluster.address) as pool:
        assert pool.workers == 2
        assert list(pool.map(range(12))) == [(item, item * item) for item in range(12)]
    assert not ray.is_initialized(), "the pool ends the connection that it made"


def test_a_user_s_mistake_is_the_same_error_as_without_ray(connected):
    with RayPool(make_refusal, 1, connected.address) as pool, pytest.raises(UserError, match="less; found 3; ask for"):
        list(pool.map([3]))
    assert ray.is_initialized(), "a connection that was there stays"


def test_a_process_that_dies_is_replaced(connected, tmp_path):
    with RayPool(functools.partial(make_mortal, tmp_path), None, connected.address) as pool:
        assert list(pool.map(range(8))) == [(item, item * item) for item in range(8)]


def test_a_result_is_there_before_that_of_an_item_that_takes_longer(connected, tmp_path):
    with RayPool(functools.partial(make_waiting, tmp_path), 2, connected.address) as pool:
        came = []
        for item, result in pool.map_as_completed(range(10)):
            came.append((item, result))
            (tmp_path / str(item)).touch()
    assert sorted(came) == [(item, item * item) for item in range(10)]
    assert came.index((0, 0)) >= 2


def test_an_item_whose_processes_all_die_is_named(connected):
    message = f"a simulation of item 7 that lives to its end; found {MOST_DEATHS + 1} that died"
    with RayPool(make_suicide, 1, connected.address) as pool, pytest.raises(UserError, match=message):
        list(pool.map([7]))


def test_a_node_that_is_killed_changes_nothing(connected, tmp_path, monkeypatch):
    for known in (catalog.TASKS, catalog.EXPERTS):
        monkeypatch.setitem(known, "toy/reach", "")  # forgotten again when `here` has made it known to this process

    def collected(name, engine, report=lambda store: None):
        settings = toy_settings(episodes=EPISODES)
        spec = SlowReachTask().spec
        with EpisodeStore.create(tmp_path / name, spec, expected_episodes=EPISODES, provenance={}) as store:
            collect(store, {"name": "toy/reach"}, settings, engine, report)
        return EpisodeStore.open(tmp_path / name)

    doomed = connected.add_node(num_cpus=2)

    def kill(store):
        if len(store) == 4:
            connected.remove_node(doomed, allow_graceful=False)

    def on_cluster(make_recorder, store, starts):
        known = functools.partial(in_catalog, make_recorder)
        return on_ray(known, store, starts, workers=None, address=connected.address)

    def here(make_recorder, store, starts):
        return on_processes(functools.partial(in_catalog, make_recorder), store, starts, workers=0)

    survived, expected = collected("ray", on_cluster, kill), collected("processes", here)
    assert len(survived) == EPISODES and survived.content_hash() == expected.content_hash()


def test_no_cluster_there_and_too_few_workers(monkeypatch):
    with pytest.raises(UserError, match="workers of at least 1; found 0"):
        RayPool(make_square, 0, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray for engine=ray; found .*; pip install 'embodied-policies\[ray\]'"):
        import_ray()


def test_an_evaluation_ends_the_same_on_ray(connected, tmp_path):
    outcomes = []
    for pool in (SerialPool, functools.partial(RayPool, workers=None, address=connected.address)):
        folder = tmp_path / str(len(outcomes))
        folder.mkdir()
        rows, rollout = evaluate(plan(folder, make_policy=LazyPolicy, **BOTH), folder, pool, silent)
        outcomes.append((rows, rollout.episode.executed.tolist(), sorted(path.name for path in folder.iterdir())))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][2]) == 3, "two recordings, which came here through Ray, and the results"
