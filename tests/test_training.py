"""Training: exact resume, schedules and averages in closed form, fine-tuning, several processes, and its errors."""

import dataclasses
import functools
import json
import shutil
import sys
from multiprocessing import Pipe

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_policies import SDP, TINY
from toy_specs import absolute_spec, toy_episodes, toy_spec
from toy_stores import make_store

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.window_sampler import WindowSampler, split_episodes
from embodied.errors import UserError
from embodied.policies.batch import Batch
from embodied.policies.policy_file import load_policy
from embodied.policies.seeded_noise import mixed_seed
from embodied.summaries import without_timings
from embodied.training.checkpoint import STATE, TENSORS, checkpoint_paths, find_checkpoint, newest_description
from embodied.training.data import DataSettings, TrainingData
from embodied.training.job import TrainingJob, _worker, run_on_processes
from embodied.training.loggers import JsonLines, check_loggers
from embodied.training.loop import TrainingSettings

SETTINGS = TrainingSettings(
    steps=12,
    batch_size=16,
    learning_rate=1e-3,
    betas=(0.9, 0.999),
    weight_decay=1e-6,
    warmup_steps=4,
    ema_decay=0.9,
    ema_power=None,
    gradient_clip=1.0,
    precision="no",
    processes=1,
    validation_share=0.25,
    validation_every=4,
    checkpoint_every=5,
    keep_checkpoints=2,
    loggers=("jsonl",),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("data") / "toy.zarr", toy_episodes(8))


def job(folder, store, settings=SETTINGS, **changes):
    folder.mkdir(exist_ok=True)
    return TrainingJob(
        folder=folder,
        stores=(store,) if not isinstance(store, tuple) else store,
        spec=changes.pop("spec", toy_spec()),
        task={"name": "toy/reach"},
        policy=changes.pop("policy", SDP),
        network=changes.pop("network", TINY),
        settings=settings,
        seed=changes.pop("seed", 0),
        init=changes.pop("init", None),
        allow_partial=changes.pop("allow_partial", False),
        provenance={"config_hash": "0"},
    )


def quiet(step, figures):
    pass


class Killed(Exception):
    pass


def killed_after(step):
    def report(now, figures):
        if now == step:
            raise Killed

    return report


def tensors(folder):
    last = find_checkpoint(folder)
    return {
        f"{name}/{key}": value
        for name in ("policy.safetensors", "training.safetensors")
        for key, value in load_file(last / name).items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, job(folder, store).run(quiet)


@pytest.mark.parametrize("killed_at", [3, 5, 8, 11, 12])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, store, uninterrupted, killed_at):
    folder, expected = uninterrupted
    interrupted = job(tmp_path, store)
    with pytest.raises(Killed):
        interrupted.run(killed_after(killed_at))
    assert find_checkpoint(tmp_path).name == f"step_{killed_at if killed_at == 12 else killed_at // 5 * 5:07d}"
    result = interrupted.run(quiet)
    ours, theirs = tensors(tmp_path), tensors(folder)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert torch.equal(ours[key], theirs[key]), key
    assert without_timings(result) == without_timings(expected) and result["loss"] is not None

    def log(path):
        rows = [json.loads(line) for line in (path / "training.jsonl").read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "steps_per_s"} for row in rows]

    assert log(tmp_path) == log(folder)


def test_a_run_goes_on_only_with_the_store_that_it_began_with(tmp_path, store):
    with pytest.raises(Killed):
        job(tmp_path, store).run(killed_after(6))
    other = tmp_path / "other.zarr"
    with EpisodeStore.create(other, toy_spec(), expected_episodes=7, provenance={}) as changed:
        for episode in toy_episodes(7):
            changed.commit(episode)
    with pytest.raises(UserError, match="other.zarr with the content that .* is trained on, .*another name="):
        job(tmp_path, other).run(quiet)


def test_a_finished_job_run_again_changes_nothing(store, uninterrupted):
    folder, expected = uninterrupted
    before = tensors(folder)
    assert without_timings(job(folder, store).run(quiet)) == without_timings(expected)
    assert all(torch.equal(before[key], value) for key, value in tensors(folder).items())


def test_a_training_that_has_ended_needs_its_policy_alone(tmp_path, store, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    newest = find_checkpoint(folder)
    (newest / TENSORS).unlink()
    state = json.loads((newest / STATE).read_text())
    (newest / STATE).write_text(json.dumps({**state, "device": "NVIDIA of elsewhere"}))
    policy = (newest / "policy.safetensors").read_bytes()
    assert uninterrupted[1]["device"] == "cpu"
    expected = {**without_timings(uninterrupted[1]), "device": "NVIDIA of elsewhere"}
    assert without_timings(job(folder, store).run(quiet)) == expected
    (newest / STATE).write_text(json.dumps({key: value for key, value in state.items() if key != "device"}))
    assert job(folder, store).run(quiet)["device"] is None  # of a version that did not note it
    assert find_checkpoint(folder) == newest and (newest / "policy.safetensors").read_bytes() == policy


def test_the_time_of_earlier_starts_counts(tmp_path, store):
    with pytest.raises(Killed):
        job(tmp_path, store).run(killed_after(6))
    path = find_checkpoint(tmp_path) / STATE
    state = json.loads(path.read_text())
    assert state["timings"]["spent_s"] > 0
    path.write_text(json.dumps({**state, "timings": {"spent_s": 1000.0}}))
    assert job(tmp_path, store).run(quiet)["timings"]["train_s"] > 1000.0


def test_another_seed_gives_other_weights(tmp_path, store, uninterrupted):
    job(tmp_path, store, seed=1).run(quiet)
    ours, theirs = tensors(tmp_path), tensors(uninterrupted[0])
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_the_newest_checkpoints_stay(uninterrupted):
    assert [path.name for path in checkpoint_paths(uninterrupted[0])] == ["step_0000010", "step_0000012"]


def test_a_half_written_checkpoint_is_not_one(tmp_path, store):
    with pytest.raises(Killed):
        job(tmp_path, store).run(killed_after(6))
    partial = tmp_path / "checkpoints" / "step_0000010.partial"
    partial.mkdir()
    (partial / "policy.json").write_text("{}")
    assert find_checkpoint(tmp_path).name == "step_0000005"
    job(tmp_path, store).run(quiet)
    assert find_checkpoint(tmp_path).name == "step_0000012" and not partial.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def rename_a_weight(path):
    weights = load_file(path)
    weights["policy.other"] = weights.pop("policy.network.action_in.weight")
    save_file(weights, path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("training.safetensors", truncate, "the state of this training in .*SafetensorError.*; "),
        ("training.safetensors", rename_a_weight, "the state of this training in .*RuntimeError.*other.*; "),
        ("training.json", truncate, "the state of this training in .*JSONDecodeError.*; "),
        ("training.json", lambda path: path.write_text("{}"), "the state of this training in .*KeyError.*; "),
        ("policy.json", truncate, "a policy description in .*JSONDecodeError.*; if it is damaged, "),
    ],
    ids=["weights torn", "weights of another network", "state torn", "state empty", "description torn"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used_once_it_is_deleted(
    tmp_path, store, uninterrupted, name, damage, message
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    newest = find_checkpoint(folder)
    damage(newest / name)
    with pytest.raises(UserError, match=f"{message}delete {newest}: the previous checkpoint is then used"):
        newest_description(folder)
        job(folder, store).run(quiet)
    shutil.rmtree(newest)
    assert newest_description(folder).step == 10
    assert without_timings(job(folder, store).run(quiet)) == without_timings(uninterrupted[1])


def test_a_checkpoint_without_its_training_state_says_how_to_start_from_its_weights(tmp_path, store, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    (find_checkpoint(folder) / TENSORS).unlink()
    longer = dataclasses.replace(job(folder, store), settings=dataclasses.replace(SETTINGS, steps=13))
    with pytest.raises(UserError, match="to continue its training exactly.*start a new run from its weights with init"):
        longer.run(quiet)


def test_a_torn_last_line_of_the_log_is_dropped_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "training.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 9}\n{"ste')
    JsonLines(path, 2).write(3, {"loss": 0.5})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 0.5}\n'
    for damaged in (b'{"ste', b"\0\0\0\0\0\0", b"\xff{}", b"{}", b"3"):
        path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
        with pytest.raises(UserError, match=f"in line 2 of {path}; found something unreadable .*delete that line"):
            JsonLines(path, 3)


def test_learning_rate_warms_up_and_follows_a_cosine():
    settings = dataclasses.replace(SETTINGS, steps=104, warmup_steps=4)
    assert [settings.learning_rate_at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert settings.learning_rate_at(4) == 1.0
    assert settings.learning_rate_at(54) == pytest.approx(0.5)
    assert settings.learning_rate_at(79) == pytest.approx(0.5 * (1 - 0.5**0.5))
    assert settings.learning_rate_at(104) == pytest.approx(0.0)


def test_averaged_weights_follow_their_recursion(tmp_path, store):
    """Raw weights of every step, read from a checkpoint a step, averaged by hand."""
    settings = dataclasses.replace(SETTINGS, steps=6, checkpoint_every=1, keep_checkpoints=10)
    job(tmp_path, store, settings).run(quiet)
    name = "network.action_in.weight"
    average = None
    for path in checkpoint_paths(tmp_path)[1:]:
        raw = load_file(path / "training.safetensors")[f"policy.{name}"]
        average = raw if average is None else 0.9 * average + 0.1 * raw
        torch.testing.assert_close(load_file(path / "policy.safetensors")[name], average, atol=1e-7, rtol=1e-5)


def test_ema_power_schedule_is_the_paper_s():
    settings = dataclasses.replace(SETTINGS, ema_decay=0.9999, ema_power=0.75)
    assert settings.ema_decay_at(1) == pytest.approx(1 - 2**-0.75)
    assert settings.ema_decay_at(10**9) == 0.9999


def test_training_lowers_the_held_out_loss(tmp_path, store):
    settings = dataclasses.replace(SETTINGS, steps=150, learning_rate=3e-3, validation_every=1, ema_decay=0.9)
    job(tmp_path, store, settings).run(quiet)
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert len(losses) == 150 and losses[-1] < 0.8 * losses[0]


def test_fine_tuning_starts_from_the_weights_and_normalisation_of_the_checkpoint(tmp_path, store, uninterrupted):
    settings = dataclasses.replace(SETTINGS, steps=1, learning_rate=0.0)
    job(tmp_path, store, settings, init=str(uninterrupted[0]), seed=5).run(quiet)
    tuned, _ = load_policy(find_checkpoint(tmp_path))
    initial, _ = load_policy(find_checkpoint(uninterrupted[0]))
    for name, value in initial.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], value), name


def test_fine_tuning_refuses_another_task_and_another_network(tmp_path, store, uninterrupted):
    other = dataclasses.replace(toy_spec(), task="toy/other")
    with pytest.raises(UserError, match="a checkpoint for task toy/other in init=.* found one for toy/reach"):
        job(tmp_path, store, spec=other, init=str(uninterrupted[0]))._make_policy(
            TrainingData([store], toy_spec(), DataSettings())
        )
    with pytest.raises(UserError, match="the network of init=.*'width': 16.*found .*'width': 32"):
        job(tmp_path, store, network={**TINY, "width": 32}, init=str(uninterrupted[0])).run(quiet)
    with pytest.raises(UserError, match="a checkpoint in .* found no such folder"):
        job(tmp_path, store, init=str(tmp_path / "nowhere")).run(quiet)


def trained_in_one_process(job):
    """The weights after the job's steps and the mean loss, with each global batch in one process, slice by slice."""
    store, settings = EpisodeStore.open(job.stores[0]), job.settings
    policy, _ = job._make_policy(TrainingData(job.stores, job.spec, job.data))
    episodes, _ = split_episodes(len(store), settings.validation_share, job.seed)
    windows = WindowSampler.from_store(
        store, history=policy.history, horizon=policy.horizon, past=policy.past, episodes=episodes
    )
    ranks = range(settings.processes)
    slices = [windows.batches(job.seed, settings.batch_size, rank=rank, world=len(ranks)) for rank in ranks]
    optimizer = torch.optim.AdamW(
        policy.parameters(), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
    )
    losses = []
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate * settings.learning_rate_at(step)
        parts = [Batch.from_window(windows.gather(next(slices[rank])), torch.device("cpu")) for rank in ranks]
        generators = [torch.Generator().manual_seed(mixed_seed(job.seed, step, rank)) for rank in ranks]
        loss = torch.stack([policy.loss(*both) for both in zip(parts, generators, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    return policy.state_dict(), np.mean(losses)


@pytest.fixture(scope="module")
def absolute_store(tmp_path_factory):
    """The toy demonstrations, with the point's next place as action."""
    path = tmp_path_factory.mktemp("data") / "absolute.zarr"
    with EpisodeStore.create(path, absolute_spec(), expected_episodes=8, provenance={}) as store:
        for episode in toy_episodes(8):
            place = episode.state["point"] + 0.1 * episode.action[:, :2]
            action = np.concatenate([place, episode.action[:, 2:]], axis=1)
            store.commit(dataclasses.replace(episode, task=absolute_spec().task, action=action, executed=action))
    return path


@pytest.mark.parametrize("representation", ["delta", "chunk_relative"])
def test_the_normaliser_is_fitted_to_the_actions_that_are_learned(tmp_path, absolute_store, representation):
    """Against differences made here, window by window, from the episodes."""
    policy = {**SDP, "actions": {"representation": representation}}
    settings = dataclasses.replace(SETTINGS, steps=2)
    job(tmp_path, absolute_store, settings, spec=absolute_spec(), policy=policy).run(quiet)
    loaded, description = load_policy(find_checkpoint(tmp_path))
    rows = []
    store = EpisodeStore.open(absolute_store)
    for index in range(len(store)):
        episode = store.episode(index)
        for t in range(episode.length):
            window = episode.action[np.minimum(np.arange(t, t + 16), episode.length - 1)].astype(np.float64)
            here = episode.state["point"][t]
            before = np.concatenate([here[None], window[:-1, :2]]) if representation == "delta" else here
            rows.append(np.concatenate([window[:, :2] - before, window[:, 2:]], axis=1))
    rows = np.concatenate(rows)
    written = description.statistics["learned_action"]
    for name, expected in {"minimum": rows.min(0), "maximum": rows.max(0), "mean": rows.mean(0)}.items():
        np.testing.assert_allclose(written[name], expected, atol=1e-6)
    assert written["count"] == len(rows)
    normal = loaded.action_normalizer.normalize(torch.from_numpy(rows).float())
    assert normal.abs().max() == pytest.approx(1.0, abs=1e-4)
    assert loaded.actions.representation == representation


def test_fine_tuning_refuses_another_representation_of_actions(tmp_path, absolute_store):
    """Of the same size, so that the weights alone would fit."""
    run = functools.partial(job, settings=dataclasses.replace(SETTINGS, steps=1), spec=absolute_spec())
    run(tmp_path / "absolute", absolute_store).run(quiet)
    policy = {**SDP, "actions": {"representation": "chunk_relative"}}
    again = run(tmp_path / "relative", absolute_store, policy=policy, init=str(tmp_path / "absolute"))
    with pytest.raises(UserError, match="representation of actions of init=.*: absolute, .* found chunk_relative, "):
        again.run(quiet)


def test_two_processes_train_the_same_policy_together(tmp_path, store):
    """The global batch is shared out: weights and loss are those of one process that sums up both slices."""
    settings = dataclasses.replace(SETTINGS, steps=4, processes=2, checkpoint_every=2, loggers=("jsonl", "tensorboard"))
    together, reports = job(tmp_path, store, settings), []
    result = run_on_processes(together, lambda step, figures: reports.append((step, figures.get("loss"))))
    assert reports == [(1, None), (2, None), (3, None), (4, result["loss"])]
    weights, loss = trained_in_one_process(together)
    assert result["steps"] == 4 and result["loss"] == pytest.approx(loss, rel=1e-5)
    ours = load_file(find_checkpoint(tmp_path) / "training.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(ours[f"policy.{name}"], weight, atol=1e-5, rtol=1e-4)
    assert find_checkpoint(tmp_path).name == "step_0000004"
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 1
    resumed = dataclasses.replace(settings, steps=6, processes=1)
    assert job(tmp_path, store, resumed).run(quiet)["steps"] == 6


def test_an_error_in_one_of_two_processes_is_the_command_s(tmp_path, store):
    """A damaged log is found by the first process alone, while the second waits for it."""
    settings = dataclasses.replace(SETTINGS, processes=2)
    (tmp_path / "training.jsonl").write_text('{"st\n')
    with pytest.raises(UserError, match="in line 1 of .*training.jsonl.*delete that line"):
        run_on_processes(job(tmp_path, store, settings), quiet)


def test_processes_share_the_cores_and_the_first_reports(monkeypatch):
    class Stub:
        settings = dataclasses.replace(SETTINGS, processes=2)

        def run(self, report):
            report(7, {"loss": 0.5})
            threads.append(torch.get_num_threads())
            raise UserError(expected="a", found="b", remedy="c")

    threads, before = [], torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    receiver, sender = Pipe(duplex=False)
    try:
        for rank in ("1", "0"):
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(SystemExit):
                _worker(Stub(), sender)
    finally:
        torch.set_num_threads(before)
    assert threads == [3, 3]
    errors = [receiver.recv()]
    assert receiver.recv() == (7, {"loss": 0.5})
    errors.append(receiver.recv())
    assert [str(error) for error in errors] == ["expected a; found b; c"] * 2 and not receiver.poll()


def test_bf16_trains(tmp_path, store):
    result = job(tmp_path, store, dataclasses.replace(SETTINGS, precision="bf16", steps=3)).run(quiet)
    assert np.isfinite(result["loss"])
    weights = load_file(find_checkpoint(tmp_path) / "policy.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_nothing_is_pickled(uninterrupted):
    files = [path for path in uninterrupted[0].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}


def test_tensorboard_gets_the_figures(tmp_path, store):
    job(tmp_path, store, dataclasses.replace(SETTINGS, loggers=("tensorboard",))).run(quiet)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent)).Reload()
    assert {"loss", "validation_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("validation_loss")] == [4, 8, 12]


def test_unknown_and_missing_loggers_are_named(monkeypatch):
    with pytest.raises(UserError, match="found 'tensorbord'; did you mean 'tensorboard'"):
        check_loggers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package 'wandb' for training.loggers=wandb; found it is not installed"):
        check_loggers(["jsonl", "wandb"])
    assert check_loggers(["jsonl"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "training.precision no or bf16; found fp16"),
        ({"steps": 0}, "training.steps of at least 1; found 0"),
        ({"batch_size": 9, "processes": 2}, "divisible by training.processes; found 9 over 2"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_a_diverging_run_stops_and_says_so(tmp_path, store):
    settings = dataclasses.replace(SETTINGS, learning_rate=1e20, warmup_steps=0, gradient_clip=1e20)
    with pytest.raises(UserError, match="a finite loss; found nan within the 12 steps"):
        job(tmp_path, store, settings).run(quiet)


def test_wrong_and_half_collected_stores_are_refused(tmp_path, store):
    with pytest.raises(UserError, match="no store"):
        job(tmp_path, tmp_path / "nowhere").run(quiet)
    other = dataclasses.replace(toy_spec(), control_hz=50.0)
    with pytest.raises(UserError, match="control_hz"):
        job(tmp_path, store, spec=other).run(quiet)
    half = tmp_path / "half.zarr"
    with EpisodeStore.create(half, toy_spec(), expected_episodes=8, provenance={}) as partial:
        for episode in toy_episodes(4):
            partial.commit(episode)
    with pytest.raises(UserError, match="expected 8 episodes in .* found 4 kept and 0 dropped"):
        job(tmp_path, half).run(quiet)
    allowed = functools.partial(job, tmp_path, half, dataclasses.replace(SETTINGS, steps=1))
    assert allowed(allow_partial=True).run(quiet)["store"]["episodes"] == 4
