"""Policies behind a server: the same episodes as in this process, and each way in which a server can fail, named."""

import functools
import re
import socket
import time

import numpy as np
import pytest
from stand_in_server import policy_server
from toy_evaluation import ExpertPolicy, VariedTask, note, outcome, processes, seed_of, silent
from toy_specs import image_spec, toy_spec

from embodied.client import PolicyClient, PolicyServerError, PolicyServerRefusal
from embodied.errors import UserError
from embodied.evaluation.episodes import run_episode
from embodied.evaluation.remote_policy import RemotePolicy, ServerSettings
from embodied.evaluation.runner import EvaluationPlan, evaluate
from embodied.process_pool import SerialPool
from embodied.types import Observation


def towards_the_goal(observation, steps=6):
    state = {key: np.asarray(observation[f"state/{key}"], np.float32) for key in ("point", "goal")}
    chunks, _ = ExpertPolicy().step([[Observation(state)]], [None], [4])
    return {"actions": np.concatenate([chunks[0].actions, np.zeros((steps - 4, 3), np.float32)])}


def remote(address, **settings):
    return RemotePolicy(toy_spec(), ServerSettings(address, **{"action_steps": 4, **settings}))


def test_an_episode_is_the_same_through_a_server():
    with policy_server(towards_the_goal) as address:
        far = run_episode(VariedTask(), remote(address), 1, 0)
    near = run_episode(VariedTask(), ExpertPolicy(), 1, 0)
    assert np.array_equal(far.episode.executed, near.episode.executed)
    assert far.chunk_actions.shape == (10, 4, 3)


def test_each_episode_is_a_connection_of_its_own():
    asked = []
    with policy_server(lambda observation: asked.append(observation) or towards_the_goal(observation)) as address:
        policy = remote(address)
        for start in (1, 2):
            run_episode(VariedTask(), policy, start, 0)
    assert len(asked) == 20
    assert set(asked[0]) == {"state/point", "state/goal", "prompt"} and asked[0]["prompt"] == "reach the goal"


def test_keys_are_renamed_as_the_server_wants_them():
    seen = []

    def answer(observation):
        seen.append(observation)
        return {"actions": np.zeros((4, 3))}

    keys = {"state": "observation/state", "instruction": "prompt", "time_s": "t"}
    with policy_server(answer) as address:
        run_episode(VariedTask(), remote(address, keys=keys), 1, 0)
    task = VariedTask()
    first = task.reset(1)
    assert set(seen[0]) == {"observation/state", "prompt", "t"} and seen[0]["t"] == 0.0
    assert np.array_equal(seen[0]["observation/state"], np.concatenate([first.state["point"], first.state["goal"]]))


def test_cameras_are_sent_as_they_are():
    seen = []
    spec = image_spec("front")
    image = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3)
    with policy_server(lambda observation: seen.append(observation) or {"actions": np.zeros((4, 3))}) as address:
        policy = RemotePolicy(spec, ServerSettings(address, 4, {"images/front": "observation/image"}))
        policy.step([[Observation({}, {"front": image})]], [policy.initial_state(0)], [4])
    assert np.array_equal(seen[0]["observation/image"], image)


def test_a_server_that_states_its_spec_is_checked_against_the_task(tmp_path):
    other = toy_spec().to_json() | {"task": "toy/other", "control_hz": 50.0}
    with policy_server(towards_the_goal, {"spec": other, "action_steps": 4}) as address:
        with pytest.raises(UserError, match="a policy for task toy/reach; found one for toy/other .*control_hz"):
            evaluate(far_plan(tmp_path, address, action_steps=None), tmp_path, SerialPool, silent)
        assert remote(address, action_steps=None).action_steps == 4


@pytest.mark.parametrize("metadata", [{}, {"action_steps": 0}, {"action_steps": "four"}, {"spec": 3}, [1]])
def test_how_many_actions_to_execute_must_be_known(metadata):
    with (
        policy_server(towards_the_goal, metadata) as address,
        pytest.raises(UserError, match="how many actions of an answer to execute .*; set server.action_steps"),
    ):
        remote(address, action_steps=None)


def test_a_key_that_the_task_does_not_have_is_named():
    with pytest.raises(UserError, match="observations of toy/reach in server.keys; found 'state/pint'; did you mean"):
        remote("ws://127.0.0.1:1", keys={"state/pint": "state"})


def policy_of(address, settings, task):
    return RemotePolicy(task.spec, ServerSettings(address, **settings))


def far_plan(folder, address, starts=range(6), **settings):
    make = functools.partial(policy_of, address, {"action_steps": 4, "answer_timeout_s": 0.3, **settings})
    return EvaluationPlan(VariedTask, make, outcome, functools.partial(note, folder), seed_of, starts, 0)


def fails_on_the_left(how):
    def answer(observation):
        return how() if observation["state/goal"][0] < 0 else towards_the_goal(observation)

    return answer


def hang():
    time.sleep(0.6)
    return {"actions": np.zeros((4, 3))}


def refuse():
    raise KeyError("observation/image")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (hang, "an answer of ws://.* within 0.3 s; found none"),
        (refuse, "found an error of the server: .*KeyError: 'observation/image'"),
        (lambda: {"actions": np.full((4, 3), np.nan)}, "expected finite actions; found nan"),
        (lambda: {"actions": np.zeros((4, 7))}, r"at least 4 actions of 3 values .*; found shape \[4, 7\]"),
        (lambda: {"actions": np.zeros((2, 3))}, r"at least 4 actions .*; found shape \[2, 3\]"),
        (lambda: {"actions": "none"}, r"at least 4 actions .*; found shape \[\]"),
        (lambda: {"chunk": 1}, "an answer with 'actions' from .*; found chunk"),
        (lambda: b"\xc1", "a MessagePack message of numbers"),
    ],
    ids=["hang", "refusal", "nan", "other size", "too few", "text", "no actions", "damaged"],
)
def test_what_a_server_gets_wrong_is_an_error_of_that_episode_alone(tmp_path, how, message):
    with policy_server(fails_on_the_left(how)) as address:
        rows, _ = evaluate(far_plan(tmp_path, address), tmp_path, SerialPool, silent)
    lefts = [bool(np.random.default_rng(start).uniform(-1, 1, 4)[2] < 0) for start in range(6)]
    assert [row["error"] is not None for row in rows] == lefts and any(lefts) and not all(lefts)
    assert all(row["success_ever"] for row in rows if row["error"] is None)
    assert all(re.search(message, row["error"]) for row in rows if row["error"])


def test_a_server_that_dies_ends_the_evaluation_which_goes_on_with_another(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    with policy_server(towards_the_goal) as address:
        expected, _ = evaluate(far_plan(whole, address, range(14)), whole, SerialPool, silent)
        evaluate(far_plan(resumed, address, range(3)), resumed, SerialPool, silent)
    with pytest.raises(PolicyServerError, match="a policy server at ws://.*; found none that answers"):
        evaluate(far_plan(resumed, address, range(14)), resumed, SerialPool, silent)
    with policy_server(towards_the_goal) as address:
        rows, _ = evaluate(far_plan(resumed, address, range(14)), resumed, processes(2), silent)
    assert rows == expected


def test_an_address_that_is_none_is_refused():
    for address in ("http://127.0.0.1:8000", "127.0.0.1:8000", "ws://", "robot"):
        with pytest.raises(UserError, match=f"such as ws://127.0.0.1:8000; found '{address}'"):
            PolicyClient(address)


def test_a_port_where_nobody_speaks_the_protocol_is_named():
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        address = f"ws://127.0.0.1:{silent_server.getsockname()[1]}"
        with pytest.raises(PolicyServerError, match="found none that answers .*start it, or correct the address"):
            PolicyClient(address, connect_timeout_s=0.2)


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with policy_server(towards_the_goal, {"name": "toy"}) as address:
        client = PolicyClient(address)
        assert client.metadata == {"name": "toy"}
        client.close()


def test_a_refusal_says_the_end_of_the_servers_traceback():
    with policy_server(fails_on_the_left(refuse)) as address:
        client = PolicyClient(address)
        with pytest.raises(PolicyServerRefusal, match="KeyError: 'observation/image'"):
            client.infer({"state/goal": np.array([-1.0, 0.0])})
        with pytest.raises(PolicyServerError, match="to live on; found a connection that it closed"):
            client.infer({"state/goal": np.array([1.0, 0.0]), "state/point": np.zeros(2)})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "no such\n camera"}, "found an error of it: no such camera; compare"),
        ({"expected": "a camera", "found": "none", "remedy": "send it"}, "expected a camera; found none; send it"),
        ({"code": 3}, "found an error of it: {'code': 3}"),
    ],
    ids=["message", "parts", "neither"],
)
def test_a_refusal_without_actions_says_what_the_server_said(error, expected):
    with policy_server(lambda observation: {"error": error}) as address:
        client = PolicyClient(address)
        with pytest.raises(PolicyServerRefusal, match=expected):
            client.infer({"state": 1})
        client.close()
