"""Training from several stores: what is mixed, what a run records, and each window once with several processes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pusht_data import made_arrays, write_zarr_v2
from safetensors.torch import load_file
from test_training import job, quiet
from toy_policies import SDP, toy_policy
from toy_specs import toy_episodes, toy_spec
from toy_stores import make_store

from embodied.cli import main
from embodied.commands import train
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.window_sampler import WindowSampler
from embodied.errors import UserError
from embodied.policies.policy_file import load_policy
from embodied.training.checkpoint import find_checkpoint
from embodied.training.data import DataSettings, TrainingData


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder, episodes = tmp_path_factory.mktemp("data"), toy_episodes(8)
    return make_store(folder / "a.zarr", episodes[:3]), make_store(folder / "b.zarr", episodes[3:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "whole.zarr", toy_episodes(8))


def weights_of(run):
    return load_file(find_checkpoint(run) / "policy.safetensors")


def test_windows_hold_executed_actions_for_the_policies_that_learn_from_them(stores):
    data = TrainingData(stores, toy_spec(), DataSettings())
    for settings, is_wanted in ((SDP, False), ({**SDP, "largest_delay": 2}, True)):
        train, validation = data.split(toy_policy(settings), 0.3, seed=0)
        for source in (train, validation):
            window = source.gather(np.arange(len(source)))
            assert (window.executed is not None) == is_wanted
            if is_wanted:
                assert window.executed.shape == window.action.shape


def test_the_run_records_every_store(tmp_path, stores):
    mixed = dataclasses.replace(job(tmp_path, stores), data=DataSettings(weights=(3, 1)))
    result = mixed.run(quiet)
    parts = [EpisodeStore.open(path) for path in stores]
    recorded = [
        {
            "path": str(store.path),
            "episodes": len(store),
            "steps": store.total_steps,
            "content_hash": store.content_hash(),
            "weight": weight,
        }
        for store, weight in zip(parts, (3, 1), strict=True)
    ]
    assert result["store"]["parts"] == recorded and result["store"]["episodes"] == 8
    _, description = load_policy(find_checkpoint(tmp_path))
    assert description.provenance["stores"] == recorded
    assert description.provenance["store_content_hash"] == result["store"]["content_hash"]
    assert result["store"]["content_hash"] not in [part["content_hash"] for part in recorded]


def test_one_store_in_two_halves_has_the_statistics_of_the_whole(tmp_path, stores, whole):
    job(tmp_path / "halves", stores).run(quiet)
    job(tmp_path / "whole", whole).run(quiet)
    ours, theirs = (load_policy(find_checkpoint(tmp_path / name))[1].statistics for name in ("halves", "whole"))
    for key, expected in theirs.items():
        for name, values in expected.items():
            np.testing.assert_allclose(ours[key][name], values, rtol=1e-9, err_msg=f"{key} {name}")


def test_a_killed_training_on_a_mixture_goes_on_bit_for_bit(tmp_path, stores):
    data = DataSettings(weights=(0.7, 0.3))

    def killed(step, figures):
        if step == 8:
            raise KeyboardInterrupt

    dataclasses.replace(job(tmp_path / "one", stores), data=data).run(quiet)
    again = dataclasses.replace(job(tmp_path / "two", stores), data=data)
    with pytest.raises(KeyboardInterrupt):
        again.run(killed)
    again.run(quiet)
    ours, theirs = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_store_of_another_task_is_named_with_the_difference(tmp_path, stores):
    other = make_store(tmp_path / "other.zarr", toy_episodes(2), dataclasses.replace(toy_spec(), control_hz=7.0))
    with pytest.raises(UserError, match=r"at .*other.zarr; found differences.*control_hz: 7.0 against"):
        TrainingData([*stores, other], toy_spec(), DataSettings())
    partial = make_store(tmp_path / "partial.zarr", toy_episodes(2), complete=False)
    with pytest.raises(UserError, match="3 episodes in .*partial.zarr; found 2 kept"):
        TrainingData([*stores, partial], toy_spec(), DataSettings())
    with pytest.raises(UserError, match="at least one store; found none"):
        TrainingData((), toy_spec(), DataSettings())
    with pytest.raises(UserError, match="2 weights, one for each store"):
        TrainingData(stores, toy_spec(), DataSettings(weights=(1,)))


def write_indices(store: str, folder: str, batch: int, steps: int) -> None:
    """One of several processes: the windows that Accelerate's rank gets, into a file."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    windows = WindowSampler.from_store(EpisodeStore.open(store), history=2, horizon=8)
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = windows.batches(0, batch, rank=rank, world=world)
    (Path(folder) / f"{rank}.json").write_text(json.dumps([next(batches).tolist() for _ in range(steps)]))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def test_two_processes_see_each_window_exactly_once_an_epoch(tmp_path, whole):
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    total, epochs, batch = EpisodeStore.open(whole).total_steps, 3, 10
    steps = -(-total * epochs // batch)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="windows",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="spawn",
    )
    elastic_launch(config, write_indices)(str(whole), str(tmp_path), batch, steps)
    halves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    stream = np.concatenate(halves, axis=1).ravel()[: total * epochs].reshape(epochs, total)
    assert [sorted(epoch) for epoch in stream] == [list(range(total))] * epochs


SMALL = ["training.steps=2", "training.batch_size=8", "network.width=16", "network.depth=1", "network.heads=2"]
EVALUATED = {"k": 0, "n": 1, "rate": 0.0, "low": 0.0, "high": 1.0}


def command(tmp_path, *words):
    with pytest.raises(SystemExit) as stop:
        main(["train", "task=pusht/state", f"run_root={tmp_path}", *SMALL, *words])
    return stop.value.code or 0


@pytest.fixture
def human_stores(tmp_path):
    paths = tmp_path / "a.zarr", tmp_path / "b.zarr"
    for path in paths:
        write_zarr_v2(path, made_arrays())
    return paths


def test_the_command_mixes_several_stores(tmp_path, human_stores, monkeypatch, capsys):
    result = {"path": "../eval", "setting": "made", "success": {"ever": EVALUATED, "last": EVALUATED}}
    monkeypatch.setattr(train, "evaluate_last", lambda directory: result)  # a simulation of minutes
    stores = ",".join(map(str, human_stores))
    assert command(tmp_path, f"data.store=[{stores}]", "data.weights=[0.75,0.25]") == 0
    summary = json.loads(Path(capsys.readouterr().out.strip().splitlines()[-1]).read_text())
    parts = [(part["path"], part["weight"]) for part in summary["store"]["parts"]]
    assert parts == [(str(human_stores[0]), 0.75), (str(human_stores[1]), 0.25)]


def test_the_command_names_weights_that_do_not_fit(tmp_path, human_stores, capsys):
    assert command(tmp_path, f"data.store={human_stores[0]}", "data.weights=[1]") != 0
    assert "expected several stores to weight" in capsys.readouterr().err
    assert command(tmp_path, f"data.store=[{human_stores[0]},{human_stores[1]}]", "data.weights=[1]") != 0
    assert "expected 2 weights, one for each store of data.store; found 1" in capsys.readouterr().err
