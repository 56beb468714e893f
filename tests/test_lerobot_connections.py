"""Who may connect by LeRobot's protocol, keeps a place, and how long; and what a server that ends does."""

import contextlib
import socket
import threading
import time

import grpc
import pytest
from lerobot_client import Client, refused, serving
from serving_policies import TellingPolicy, toy_observation

from embodied.errors import UserError
from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings
from embodied.serving.lerobot_peers import SILENT_S, LeRobotPeers, NobodyNew
from embodied.serving.registry import SessionsFull
from embodied.serving.sessions import Sessions, SessionSettings


@contextlib.contextmanager
def peers(now_s, most=2, idle_s=120.0):
    """Connections without the network, by a clock of the test's own."""
    sessions = Sessions(TellingPolicy(), SessionSettings())
    sessions.start(toy_observation())
    try:
        yield LeRobotPeers(sessions, most, idle_s, 10.0, clock=lambda: now_s[0]), sessions
    finally:
        sessions.stop()


def test_connections_are_limited_and_forgotten_when_idle():
    with serving(most_connections=1, idle_s=0.8) as (port, sessions, _), Client(port) as one, Client(port) as other:
        one.begin()
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "at most 1 connections of LeRobot's protocol"):
            other.begin()
        deadline_s = time.monotonic() + 10
        while sessions.open_sessions and time.monotonic() < deadline_s:
            time.sleep(0.05)
        other.begin()
        assert sessions.open_sessions == 1


def called(connections, *names):
    for name in names:
        with connections.calling(name):
            pass


def test_a_new_connection_takes_the_place_of_the_one_that_is_silent_longest():
    now_s = [0.0]
    with peers(now_s) as (connections, sessions):
        called(connections, "first")
        now_s[0] = 1.0
        called(connections, "second")
        now_s[0] = SILENT_S - 0.1
        with pytest.raises(SessionsFull):
            called(connections, "third")
        now_s[0] = SILENT_S
        called(connections, "third")
        with pytest.raises(SessionsFull):
            called(connections, "first")  # it is the one that was forgotten; the second one's time is not yet over
        called(connections, "second", "third")
        assert sessions.open_sessions == 2


def test_a_robot_that_asks_keeps_its_place_however_long_its_call_takes():
    now_s = [0.0]
    with peers(now_s, most=1, idle_s=100.0) as (connections, sessions):
        with connections.calling("robot") as robot:
            now_s[0] = 1000.0
            connections.look()
            with pytest.raises(SessionsFull):
                called(connections, "other")
        now_s[0] += SILENT_S - 0.1
        with pytest.raises(SessionsFull):
            called(connections, "other")
        with connections.calling("robot") as same:
            assert same is robot and sessions.open_sessions == 1


def test_who_has_no_key_is_refused_and_a_public_address_needs_one():
    with serving(api_key="secret") as (port, _, _):
        for metadata in ((), (("authorization", "Api-Key guess"),)):
            with Client(port, metadata) as client, refused(grpc.StatusCode.UNAUTHENTICATED, "Api-Key"):
                client.begin()
        with Client(port, (("authorization", "Api-Key secret"),)) as client:
            client.begin()
    with pytest.raises(UserError, match="an API key for the public address 0.0.0.0"):
        LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(host="0.0.0.0"))


def test_a_server_that_ends_lets_its_robots_finish_and_nobody_new_in():
    with serving() as (port, sessions, server), Client(port) as robot, Client(port) as other:
        robot.begin()
        draining = threading.Thread(target=server.drain, args=(3.0,))
        begun_s = time.monotonic()
        draining.start()
        time.sleep(0.2)
        with refused(grpc.StatusCode.UNAVAILABLE, "found one that is about to end"):
            other.begin()
        robot.send(1000.0, 0)
        assert len(robot.actions()) == 4 and draining.is_alive()
        draining.join()
        assert time.monotonic() - begun_s >= 3.0 and sessions.open_sessions == 0
        with pytest.raises(grpc.RpcError):
            robot.actions()


def test_a_server_that_ends_does_not_wait_for_robots_that_are_silent():
    now_s = [0.0]
    with peers(now_s) as (connections, _):
        with connections.calling("robot"):
            pass
        now_s[0] = SILENT_S
        connections.drain(1e9)  # the clock stands still: it would wait for ever
        with pytest.raises(NobodyNew), connections.calling("other"):
            pass


def test_an_ipv6_address_is_listened_on():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(host="::1", port=0))
    try:
        with socket.create_connection(("::1", server.start()), timeout=10):
            pass
    finally:
        server.stop()


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = LeRobotServer(Sessions(TellingPolicy(), SessionSettings()), LeRobotSettings(port=port))
        with pytest.raises(UserError, match=f"127.0.0.1:{port} to be free"):
            server.start()
