"""Evaluation: addressed and repeatable episodes, resumption, errors apart from failures, latency in parts."""

import functools
import json

import numpy as np
import pytest
from toy_policies import DIFFUSION, SDP, toy_policy, toy_stream
from toy_specs import ReachExpert, ReachTask, toy_spec

from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.latency import measure_latency
from embodied.evaluation.runner import RESULTS, EvaluationPlan, ResultFile, evaluate, starts_to_record
from embodied.types import ActionChunk


class ExpertPolicy:
    """The expert behind the policy protocol, so that outcomes are known. It reads the goal from the observation."""

    history, action_steps, label = 1, 4, "expert"

    def __init__(self, spec=None):
        self.spec = spec or toy_spec()

    def initial_state(self, seed):
        return seed

    def step(self, histories, states, executed):
        chunks = []
        for history in histories:
            state = history[-1].state
            point, actions = state["point"].astype(float), []
            for _ in range(self.action_steps):
                towards = np.clip((state["goal"] - point) / 0.1, -1, 1)
                actions.append([*towards, 1.0])
                point = point + 0.1 * towards
            chunks.append(ActionChunk(np.array(actions, np.float32), history[-1].time_s, self.spec.dt_s, 1))
        return chunks, list(states)


class LazyPolicy(ExpertPolicy):
    """Acts on even starts only, by the goal's sign: some episodes fail."""

    def step(self, histories, states, executed):
        chunks, states = super().step(histories, states, executed)
        if histories[0][-1].state["goal"][0] < 0:
            for chunk in chunks:
                chunk.actions[:] = 0
        return chunks, states


class BrokenTask(ReachTask):
    def reset(self, start_id):
        if start_id == 2:
            raise RuntimeError("the simulator broke")
        return super().reset(start_id)


def note(folder, task, rollout):
    (folder / f"{rollout.episode.seed}.txt").write_text(str(rollout.episode.success_ever))
    return f"{rollout.episode.seed}.txt"


def seed_of(start):
    return 10 * start


def plan(folder, make_task=ReachTask, make_policy=ExpertPolicy, starts=range(6), recordings=2):
    return EvaluationPlan(make_task, make_policy, functools.partial(note, folder), seed_of, starts, recordings)


def silent(rows):
    pass


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
        rows, _ = evaluate(plan(folder, make_policy=LazyPolicy), folder, workers, silent)
        results.append(rows)
    assert results[0] == results[1]
    outcomes = [row["success_ever"] for row in results[0]]
    assert outcomes == [bool(np.random.default_rng(start).uniform(-1, 1, 4)[2] >= 0) for start in range(6)]
    assert [row["policy_seed"] for row in results[0]] == [10 * start for start in range(6)]


def test_failures_are_recorded_first(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, make_policy=LazyPolicy, recordings=3), tmp_path, 1, silent)
    failed = [row["start"] for row in rows if not row["success_ever"]]
    recorded = [row["start"] for row in rows if row["recording"]]
    assert set(failed[:3]) <= set(recorded) and len(recorded) == 3
    assert rollout.episode.seed == starts_to_record(rows, 1)[0]
    assert (tmp_path / f"{recorded[0]}.txt").exists()


def test_without_recordings_nothing_is_recorded_and_a_rollout_still_comes(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, recordings=0), tmp_path, 1, silent)
    assert not any(row["recording"] for row in rows) and [path.name for path in tmp_path.iterdir()] == [RESULTS]
    assert rollout.episode.seed in range(6)


def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    expected, _ = evaluate(plan(whole), whole, 1, silent)
    lines = (whole / RESULTS).read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == list(range(6))
    (resumed / RESULTS).write_text("\n".join([*lines[:3], lines[3][:20]]))
    ran = []
    rows, _ = evaluate(plan(resumed), resumed, 1, lambda rows: ran.append(rows[-1]["start"]))
    assert ran == [3, 4, 5] and rows == expected
    assert list(ResultFile(resumed / RESULTS).read()) == list(range(6))


@pytest.mark.parametrize("damaged", [b'{"start": 1, "succ', b"\0\0\0\0", b"\xff", b"{}", b"[1]"])
def test_a_damaged_result_is_named(tmp_path, damaged):
    path = tmp_path / RESULTS
    path.write_bytes(b'{"start": 0}\n' + damaged + b'\n{"start": 2}\n{"sta')
    with pytest.raises(UserError, match=f"in line 2 of {path}; found something unreadable .*its episode runs again"):
        ResultFile(path).read()


def test_an_error_of_the_simulator_is_not_a_failure_of_the_policy(tmp_path):
    rows, _ = evaluate(plan(tmp_path, make_task=BrokenTask), tmp_path, 1, silent)
    assert rows[2]["error"] == "RuntimeError: the simulator broke" and not rows[2]["success_ever"]
    assert all(row["error"] is None and row["success_ever"] for row in rows if row["start"] != 2)


def test_the_maximum_reward_is_that_of_the_best_step(tmp_path):
    rows, rollout = evaluate(plan(tmp_path, make_task=BrokenTask), tmp_path, 1, silent)
    best = {row["start"]: row["max_reward"] for row in rows}
    assert best[rollout.episode.seed] == pytest.approx(float(rollout.episode.reward.max()))
    assert best[2] is None and all(-0.05 < best[start] <= 0 for start in best if start != 2), "minus the distance left"


def test_rows_without_a_maximum_reward_run_again(tmp_path):
    expected, _ = evaluate(plan(tmp_path), tmp_path, 1, silent)
    lines = [json.loads(line) for line in (tmp_path / RESULTS).read_text().splitlines()]
    earlier = [{key: value for key, value in row.items() if key != "max_reward"} for row in lines[:2]]
    (tmp_path / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in [*earlier, *lines[2:]]))
    ran = []
    rows, _ = evaluate(plan(tmp_path), tmp_path, 1, lambda rows: ran.append(rows[-1]["start"]))
    assert ran == [0, 1] and rows == expected


def test_errors_alone_are_named(tmp_path):
    with pytest.raises(UserError, match="at least one episode .* the simulator broke"):
        evaluate(plan(tmp_path, make_task=BrokenTask, starts=[2]), tmp_path, 1, silent)


def other_task_policy():
    spec = toy_spec()
    return ExpertPolicy(type(spec)(**{**spec.__dict__, "task": "toy/other", "control_hz": 50.0}))


def test_a_policy_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="a policy for task toy/reach; found one for toy/other .*control_hz"):
        evaluate(plan(tmp_path, make_policy=other_task_policy), tmp_path, 1, silent)


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
    # 10 first observations, then episodes of 10 acts: the first at its own cost, each later one k calls and a bare one
    episodes = -(-50 // 9)
    first = policy.first_observation_calls
    assert len(calls) == 10 * first + episodes * (first + 9 * (k + 1))


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
