"""The way to a real websocket server: never in the control loop's way, made again when it breaks, its clock known."""

import time

import numpy as np
import pytest
from clock_policy import ClockPolicy
from stand_in_server import policy_server
from toy_specs import toy_spec

from embodied.client import PolicyClient, PolicyServerError, PolicyServerRefusal
from embodied.robot.control_loop import run_episode
from embodied.robot.controller import RobotController
from embodied.robot.messages import ServedPolicy
from embodied.robot.server_link import ServerLink
from embodied.types import Observation

METADATA = {"spec": toy_spec().to_json(), "action_steps": 4, "inference_delay": 2, "history": 1}
SERVERS_CLOCK_S = 5000.0


def server_now():
    return time.monotonic() + SERVERS_CLOCK_S


def answer_to(request):
    """What a `ClockPolicy` with a delay of 2 says, and the server's two time stamps."""
    received_s = server_now()
    asked = round(request["time_s"] / 0.1)
    first = asked if request.get("reset") else asked + 2
    actions = ClockPolicy.wanted(range(first, asked + 6))
    timing = {"received_s": received_s, "sent_s": server_now()}
    return {
        "actions": actions,
        "start_s": first * 0.1,
        "dt_s": 0.1,
        "observed_s": request["time_s"],
        "server_timing": timing,
    }


def linked(address, **settings):
    return ServerLink(lambda: PolicyClient(address, **{"answer_timeout_s": 0.5, **settings}))


def reply_of(link, request, wait_s=5.0):
    ticket = link.ask(request)
    reply = link.poll(wait_s)
    assert reply is not None and reply.ticket == ticket
    return reply


def test_requests_are_answered_and_the_servers_clock_is_found():
    with policy_server(answer_to, METADATA) as address:
        link = linked(address)
        assert ServedPolicy.from_metadata(link.metadata).action_steps == 4
        assert link.poll() is None and link.delay_s == 0.0
        for t in range(5):
            assert reply_of(link, {"time_s": 0.1 * t}).answer["actions"].shape == (4, 3)
        link.close()
    assert abs(link.offset.offset_s - SERVERS_CLOCK_S) <= link.offset.error_s
    assert link.delay_s == pytest.approx(2 * link.offset.error_s) and link.delay_s < 0.5


def test_a_slow_answer_is_waited_for_in_the_background():
    def slow(request):
        time.sleep(0.3)
        return answer_to(request)

    with policy_server(slow, METADATA) as address:
        link = linked(address)
        begun_s = time.monotonic()
        link.ask({"time_s": 0.0})
        assert link.poll() is None and time.monotonic() - begun_s < 0.15
        assert link.poll(5.0).answer is not None and time.monotonic() - begun_s >= 0.3
        link.close()


def test_a_broken_connection_is_made_again_and_says_so():
    asked = []

    def breaks_at_the_second(request):
        asked.append(request)
        if len(asked) == 2:
            raise RuntimeError("it broke")
        return answer_to(request)

    with policy_server(breaks_at_the_second, METADATA) as address:
        link = linked(address)
        assert reply_of(link, {"time_s": 0.0}).connection == 1
        refused = reply_of(link, {"time_s": 0.1})
        assert isinstance(refused.error, PolicyServerRefusal) and "it broke" in str(refused.error)
        gone = reply_of(link, {"time_s": 0.2})
        assert isinstance(gone.error, PolicyServerError)
        assert reply_of(link, {"time_s": 0.3}).connection == 2
        link.close()


def test_a_refusal_of_one_observation_leaves_the_connection_alive():
    said = {"expected": "'state/point' with 2 values", "found": "3", "remedy": "send it as the spec has it"}

    def refuses(request):
        return {"error": said} if request["time_s"] == 0.0 else answer_to(request)

    with policy_server(refuses, METADATA) as address:
        link = linked(address)
        refused = reply_of(link, {"time_s": 0.0})
        assert isinstance(refused.error, PolicyServerRefusal)
        assert str(refused.error) == "expected 'state/point' with 2 values; found 3; send it as the spec has it"
        assert reply_of(link, {"time_s": 0.1}).connection == 1
        link.close()


def test_a_server_that_does_not_answer_and_one_that_is_gone_are_faults_that_come_back_at_once():
    with policy_server(lambda request: time.sleep(1.0) or answer_to(request), METADATA) as address:
        link = linked(address, answer_timeout_s=0.2)
        assert "within 0.2 s; found none" in str(reply_of(link, {"time_s": 0.0}).error)
    reasons = [str(reply_of(link, {"time_s": 0.1}).error) for _ in range(6)]
    assert "none that answers" in reasons[0]
    assert "the next attempt is in" in reasons[1]
    link.close()


class Body:
    """A robot whose time is that of the test."""

    def __init__(self):
        self.commands = []

    def observe(self):
        return Observation({"point": np.zeros(2, np.float32), "goal": np.ones(2, np.float32)})

    def execute(self, action):
        self.commands.append(action)


def test_a_control_loop_goes_on_at_its_rate_while_the_server_sleeps():
    """Ten control steps of 40 ms each around an answer that takes 0.4 s."""
    asked = []

    def sleeps_once(request):
        asked.append(request)
        if len(asked) == 2:
            time.sleep(0.4)
        return answer_to(request)

    with policy_server(sleeps_once, METADATA) as address:
        link = linked(address, answer_timeout_s=2.0)
        controller, body, steps = RobotController(ServedPolicy.from_metadata(link.metadata), link), Body(), []
        begun_s = time.monotonic()
        report = run_episode(body, controller, 30, 0.04, note=lambda _, step: steps.append(step))
        taken_s = time.monotonic() - begun_s
        link.close()
    assert taken_s < 29 * 0.04 + 0.4 and report.longest_step_s < 0.2, "no control step waited for the server"
    sources = "".join(step.source[0] for step in steps)
    assert "f" in sources and sources.rstrip("f").endswith("c"), "it held, and went on"
    assert len(asked) >= 3 and len(body.commands) == len(sources.replace("n", ""))


def test_a_loop_keeps_its_rate_and_skips_what_has_passed():
    """In virtual time: a step takes 1 ms, the seventh 250 ms."""
    now = [100.0]
    seen = []

    class Timed:
        def reset(self, seed):
            pass

        def step(self, observation):
            seen.append((round(now[0] - 100.0, 3), observation.time_s))
            now[0] += 0.25 if len(seen) == 7 else 0.001
            return type("Step", (), {"action": np.zeros(3)})()

    report = run_episode(Body(), Timed(), 12, 0.1, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    assert [at for at, _ in seen] == pytest.approx([*(0.1 * t for t in range(7)), 0.9, 1.0, 1.1])
    assert [time_s for _, time_s in seen] == pytest.approx([at for at, _ in seen])
    assert report.steps == 10 and report.skipped == 2 and report.longest_step_s == pytest.approx(0.25)
