"""Evaluation: addressed and repeatable episodes, resumption, errors apart from failures, latency in parts."""

import json

import numpy as np
import pytest
from toy_evaluation import BOTH, ExpertPolicy, LazyPolicy, VariedTask, plan, processes, silent
from toy_policies import DIFFUSION, SDP, toy_policy, toy_stream
from toy_specs import ReachExpert, ReachTask, absolute_spec, toy_spec

from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.latency import measure_latency
from embodied.evaluation.result_file import RESULTS, EpisodeAddress, ResultFile
from embodied.evaluation.runner import MOST_ERRORS_IN_A_ROW, evaluate
from embodied.executors.holding import hold
from embodied.process_pool import SerialPool


class BrokenTask(VariedTask):
    def reset(self, start_id):
        if start_id == 2:
            raise RuntimeError("the simulator broke")
        return super().reset(start_id)


def base(start):
    return EpisodeAddress("base", start)


def test_an_episode_runs_to_its_horizon_and_knows_both_kinds_of_success():
    rollout = run_episode(ReachTask(), ExpertPolicy(), 1, 0)
    episode = rollout.episode
    assert episode.length == 40 and episode.success_ever and episode.success_last
    distance = np.linalg.norm(episode.state["point"] - episode.state["goal"], axis=1)
    assert episode.first_success == int(np.argmax(distance[1:] < 0.05)) + 1
    assert rollout.chunk_steps.tolist() == list(range(0, 40, 4))
    assert np.array_equal(rollout.chunk_actions.reshape(40, 3)[:5], episode.executed[:5])
    assert rollout.preview_actions.shape == (10, 0, 3)


@pytest.mark.parametrize("settings", [SDP, DIFFUSION], ids=lambda s: s["name"])
def test_the_same_start_and_seed_give_the_same_rollout(settings):
    task, policy = ReachTask(), toy_policy(settings)
    once = run_episode(task, policy, 5, 1)
    run_episode(task, policy, 6, 1)
    again, other = run_episode(task, policy, 5, 1), run_episode(task, policy, 5, 2)
    assert np.array_equal(once.chunk_actions, again.chunk_actions)
    assert np.array_equal(once.episode.state["point"], again.episode.state["point"])
    assert not np.array_equal(once.chunk_actions, other.chunk_actions)
    assert once.network_calls.tolist() == [policy.first_observation_calls] + [policy.calls_per_observation] * 9


def test_outcomes_do_not_depend_on_the_number_of_processes(tmp_path):
    results = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        rows, _ = evaluate(plan(folder, make_policy=LazyPolicy, **BOTH), folder, processes(workers), silent)
        results.append(rows)
    assert results[0] == results[1]
    outcomes = [row["success_ever"] for row in results[0][:6]]
    assert outcomes == [bool(np.random.default_rng(start).uniform(-1, 1, 4)[2] >= 0) for start in range(6)]
    assert [row["policy_seed"] for row in results[0]] == [10 * start for start in range(6)] * 2


def test_failures_are_recorded_first(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, make_policy=LazyPolicy, recordings=3), tmp_path, SerialPool, silent)
    failed = [row["start"] for row in rows if not row["success_ever"]]
    recorded = [row["start"] for row in rows if row["recording"]]
    assert set(failed[:3]) <= set(recorded) and len(recorded) == 3
    assert rollout.episode.seed == failed[0]
    assert (tmp_path / f"base-{recorded[0]}.txt").read_text() == str(recorded[0] not in failed)


def test_without_recordings_nothing_is_recorded_and_a_rollout_still_comes(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, recordings=0), tmp_path, SerialPool, silent)
    assert not any(row["recording"] for row in rows) and [path.name for path in tmp_path.iterdir()] == [RESULTS]
    assert rollout.episode.seed in range(6)


def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    expected, _ = evaluate(plan(whole), whole, SerialPool, silent)
    lines = (whole / RESULTS).read_text().splitlines()
    assert json.loads(lines[0]) == {"version": 2}
    assert [json.loads(line)["start"] for line in lines[1:]] == list(range(6))
    (resumed / RESULTS).write_text("\n".join([*lines[:4], lines[4][:20]]))
    ran = []
    rows, _ = evaluate(plan(resumed), resumed, SerialPool, lambda rows: ran.append(rows[-1]["start"]))
    assert ran == [3, 4, 5] and rows == expected
    assert list(ResultFile(resumed / RESULTS).read()) == [base(start) for start in range(6)]


@pytest.mark.parametrize("damaged", [b'{"start": 1, "succ', b"\0\0\0\0", b"\xff", b"{}", b"[1]"])
def test_a_damaged_result_is_named(tmp_path, damaged):
    path = tmp_path / RESULTS
    good = b'{"variant": "base", "start": 0, "error": null}\n'
    path.write_bytes(b'{"version": 2}\n' + good + damaged + b"\n" + good + b'{"sta')
    with pytest.raises(UserError, match=f"in line 3 of {path}; found something unreadable .*its episode runs again"):
        ResultFile(path).read()


def test_an_error_of_the_simulator_is_not_a_failure_of_the_policy(tmp_path):
    rows, _ = evaluate(plan(tmp_path, make_task=BrokenTask), tmp_path, SerialPool, silent)
    assert rows[2]["error"] == "RuntimeError: the simulator broke" and not rows[2]["success_ever"]
    assert all(row["error"] is None and row["success_ever"] for row in rows if row["start"] != 2)


def test_the_maximum_reward_is_that_of_the_best_step(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, make_task=BrokenTask), tmp_path, SerialPool, silent)
    best = {row["start"]: row["max_reward"] for row in rows}
    assert best[rollout.episode.seed] == pytest.approx(float(rollout.episode.reward.max()))
    assert best[2] is None and all(-0.05 < best[start] <= 0 for start in best if start != 2), "minus the distance left"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            b'{"version": 3}',
            "results of version 2 in .*; found version 3; finish this run with the version of embodied",
        ),
        (b'{"start": 0, "success_ever": true}', "results of version 2 in .*; found version 1; .*force=true"),
        (b"\0\0", "the version in line 1 of .*; found something else; delete that file"),
        (b"[]", "the version in line 1 of .*; found something else; delete that file"),
    ],
    ids=["newer", "older", "damaged", "no object"],
)
def test_results_of_another_version_are_named(tmp_path, first, message):
    (tmp_path / RESULTS).write_bytes(first + b"\n")
    with pytest.raises(UserError, match=message):
        evaluate(plan(tmp_path), tmp_path, SerialPool, silent)
    assert (tmp_path / RESULTS).read_bytes() == first + b"\n"


def test_an_episode_that_could_not_be_run_is_tried_again(tmp_path):
    evaluate(plan(tmp_path, make_task=BrokenTask), tmp_path, SerialPool, silent)
    ran = []
    rows, _ = evaluate(plan(tmp_path), tmp_path, SerialPool, lambda rows: ran.append(rows[-1]["start"]))
    assert ran == [2] and [row["error"] for row in rows] == [None] * 6


def test_errors_alone_are_named(tmp_path):
    with pytest.raises(UserError, match="at least one episode .* the simulator broke"):
        evaluate(plan(tmp_path, make_task=BrokenTask, starts=[2]), tmp_path, SerialPool, silent)


class BrokenWorld(VariedTask):
    def step(self, action):
        raise RuntimeError("the simulator is gone")


def test_errors_one_after_another_end_the_evaluation(tmp_path):
    with pytest.raises(UserError, match=f"{MOST_ERRORS_IN_A_ROW} errors in a row, the last: RuntimeError: .* is gone"):
        evaluate(plan(tmp_path, make_task=BrokenWorld, starts=range(40)), tmp_path, SerialPool, silent)
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 1 + MOST_ERRORS_IN_A_ROW


class ErrorsFirstPool(SerialPool):
    """Episodes that end in an error are over before the others, and late starts before early ones."""

    def map_as_completed(self, items):
        ran = [(item, self._worker(item)) for item in items]
        yield from sorted(ran, key=lambda pair: (pair[1].row["error"] is None, -pair[0].address.start))


class OddlyBrokenTask(VariedTask):
    def reset(self, start_id):
        if start_id % 2:
            raise RuntimeError("the simulator broke")
        return super().reset(start_id)


def test_errors_in_a_row_are_of_starts_in_a_row_and_not_of_what_ends_first(tmp_path):
    starts = range(2 * MOST_ERRORS_IN_A_ROW + 2)
    make = {"make_task": OddlyBrokenTask, "starts": starts, "recordings": 0}
    rows, _ = evaluate(plan(tmp_path, **make), tmp_path, ErrorsFirstPool, silent)
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()[1:]]
    assert [line["start"] for line in lines] == [*reversed(starts[1::2]), *reversed(starts[::2])]  # as they ended
    (tmp_path / "in order").mkdir()
    in_order, _ = evaluate(plan(tmp_path, **make), tmp_path / "in order", SerialPool, silent)
    assert rows == in_order
    with pytest.raises(UserError, match=f"{MOST_ERRORS_IN_A_ROW} errors in a row"):
        evaluate(plan(tmp_path, make_task=BrokenWorld, starts=range(100, 140)), tmp_path, ErrorsFirstPool, silent)


class NanPolicy(ExpertPolicy):
    """Where the goal is at the left, actions are not finite."""

    def step(self, histories, states, executed):
        chunks, states = super().step(histories, states, executed)
        if histories[0][-1].state["goal"][0] < 0:
            chunks[0].actions[1, 0] = np.nan
        return chunks, states


def test_actions_that_are_not_finite_are_an_error_and_no_failure(tmp_path):
    rows, _ = evaluate(plan(tmp_path, make_policy=NanPolicy), tmp_path, SerialPool, silent)
    lefts = [bool(np.random.default_rng(start).uniform(-1, 1, 4)[2] < 0) for start in range(6)]
    assert [row["error"] is not None for row in rows] == lefts and any(lefts) and not all(lefts)
    errors = {row["error"] for row in rows if row["error"]}
    assert errors == {
        "expected finite actions; found nan in 'dx' of action 1; look for NaN or infinity in the observation, or train "
        "again"
    }


def test_each_variant_is_run_from_each_start(tmp_path):
    rows, _ = evaluate(plan(tmp_path, make_policy=LazyPolicy, **BOTH), tmp_path, SerialPool, silent)
    assert [(row["variant"], row["axis"], row["start"]) for row in rows] == [
        (variant, axis, start) for variant, axis in (("base", "base"), ("near", "place")) for start in range(6)
    ]
    assert all(row["first_success"] == 1 for row in rows[6:]) and not all(row["success_ever"] for row in rows[:6])


@pytest.mark.parametrize(("recordings", "count"), [("all", 6), ("failures", None), (0, 0)])
def test_all_failures_or_none_are_recorded(tmp_path, recordings, count):
    rows, _ = evaluate(plan(tmp_path, make_policy=LazyPolicy, recordings=recordings), tmp_path, SerialPool, silent)
    failed = [row["start"] for row in rows if not row["success_ever"]]
    recorded = [row["start"] for row in rows if row["recording"]]
    assert recorded == (failed if count is None else list(range(count))) and 0 < len(failed) < 6
    assert all((tmp_path / row["recording"]).exists() for row in rows if row["recording"])
    again, _ = evaluate(plan(tmp_path, make_policy=LazyPolicy, recordings=recordings), tmp_path, SerialPool, silent)
    assert again == rows, "the recordings of episodes that ran before are not forgotten"


def test_without_delay_a_policy_that_thinks_no_time_acts_as_ever():
    at_once = run_episode(ReachTask(), ExpertPolicy(), 1, 0, delay_steps=0)
    assert at_once.chunk_steps.tolist() == list(range(0, 40, 4))


def test_while_a_policy_thinks_the_world_goes_on_and_the_robot_holds():
    """Chunks of 4 with 3 steps of thinking: 4 actions, 3 steps still, 4 actions that were computed 3 steps before."""
    rollout = run_episode(ReachTask(), ExpertPolicy(), 1, 0, delay_steps=3)
    assert rollout.chunk_steps.tolist() == [0, 7, 14, 21, 28, 35]
    executed, point = rollout.episode.executed, rollout.episode.state["point"]
    assert np.array_equal(executed[4:7, :2], np.zeros((3, 2))) and (executed[4:7, 2] == executed[3, 2]).all()
    assert np.array_equal(point[4:8], np.repeat(point[4:5], 4, axis=0)), "it stands still"
    assert np.array_equal(executed[7:11], rollout.chunk_actions[1])
    delayed, prompt = rollout.episode, run_episode(ReachTask(), ExpertPolicy(), 1, 0).episode
    assert delayed.first_success > prompt.first_success


def test_noise_on_the_execution_is_addressed_and_moves_the_robot_otherwise_than_it_was_told():
    def episode(noise, start=3):
        return run_episode(ReachTask(), ExpertPolicy(), start, 0, action_noise=noise).episode

    clean, noisy, again = episode(0.0), episode(0.4), episode(0.4)
    assert np.array_equal(clean.action, clean.executed)
    assert np.array_equal(noisy.executed, again.executed)
    differences = noisy.executed - noisy.action
    assert (differences[:, 2] == 0).all()  # the gripper has two ends
    assert 0 < np.abs(differences).max() <= 0.8  # cut at twice the deviation
    moved = np.diff(noisy.state["point"], axis=0)
    assert np.allclose(moved, 0.1 * noisy.executed[:-1, :2], atol=1e-6)
    assert not np.array_equal(noisy.executed - noisy.action, (one := episode(0.4, 4)).executed - one.action)


def test_a_robot_that_takes_targets_holds_the_last_one():
    last = np.array([0.3, -0.2, 1.0], np.float32)
    assert np.array_equal(hold(absolute_spec().action, last), last)
    assert np.array_equal(hold(toy_spec().action, last), np.array([0, 0, 1], np.float32))


class StagedTask(ReachTask):
    def step(self, action):
        step = super().step(action)
        self.halfway = getattr(self, "halfway", False) or abs(self.point - self.goal).max() < 0.5
        step.info["stages"] = {"halfway": self.halfway, "there": step.info["success_ever"]}
        return step


def test_sub_stages_are_those_of_the_episodes_end():
    assert run_episode(StagedTask(), ExpertPolicy(), 1, 0).stages == {"halfway": True, "there": True}
    assert run_episode(ReachTask(), ExpertPolicy(), 1, 0).stages == {}


def other_task_policy():
    spec = toy_spec()
    return ExpertPolicy(type(spec)(**{**spec.__dict__, "task": "toy/other", "control_hz": 50.0}))


def test_a_policy_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="a policy for task toy/reach; found one for toy/other .*control_hz"):
        evaluate(plan(tmp_path, make_policy=other_task_policy), tmp_path, SerialPool, silent)


@pytest.mark.parametrize(("settings", "k"), [({**SDP, "k": 3}, 3), (DIFFUSION, 4)], ids=["sdp", "diffusion"])
def test_latency_counts_every_network_call(settings, k, monkeypatch):
    """On a clock that only networks move on: 1 ms a call of the denoiser, 0.25 ms an encoding."""
    policy = toy_policy(settings)
    calls, now_ms = [], [0.0]
    monkeypatch.setattr("embodied.evaluation.latency.time.perf_counter", lambda: now_ms[0] / 1000)

    def takes(ms):
        now_ms[0] += ms

    policy.network.register_forward_hook(lambda *_: calls.append(takes(1.0)))
    policy.encoder.register_forward_hook(lambda *_: takes(0.25))
    figures = measure_latency(policy, toy_stream(0, 40), observations=20)
    assert figures["observation_ms"]["n"] == figures["network_call_ms"]["n"] == 20
    means = {name: pytest.approx(value["mean"]) for name, value in figures.items() if isinstance(value, dict)}
    assert means == {
        "observation_ms": k + 0.25,
        "encode_ms": 0.25,
        "denoise_ms": k,
        "action_ms": (k + 0.25) / 4,
        "network_call_ms": 1.0,
    }
    assert figures["first_observation_ms"] == pytest.approx(policy.first_observation_calls + 0.25)
    assert figures["overhead_ratio"] == pytest.approx((k + 0.25) / k)
    # 10 first observations; then acts until 5 blocks of 11 are full, in episodes of 10 acts of which the first is not
    # counted; and 11 bare calls for each block
    acts = 5 * 11
    first = policy.first_observation_calls
    episodes = -(-acts // 9)
    assert len(calls) == 10 * first + episodes * (first + 9 * k) + 5 * 11


def test_latency_needs_a_second_chunk():
    with pytest.raises(UserError, match="a horizon above the 4 actions of a chunk.*found an episode of 4 steps"):
        measure_latency(toy_policy(SDP), toy_stream(0, 4), observations=5)


def test_the_expert_of_the_toy_succeeds():
    task = ReachTask()
    for start in range(20):
        task.reset(start)
        for _ in range(40):
            step = task.step(ReachExpert(task).act(None)[0])
        assert step.info["success_ever"]
