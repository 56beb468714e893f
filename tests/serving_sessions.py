"""Sessions of a server in this process, and a robot that asks."""

from contextlib import contextmanager

from serving_policies import TellingPolicy, WaitingPolicy, toy_observation

from embodied.serving.served_session import Frame
from embodied.serving.sessions import Sessions, SessionSettings

LONG_S = 10.0  # a deadline that nobody misses


@contextmanager
def serving(policy, **settings):
    sessions = Sessions(policy, SessionSettings(**settings), weights="abc")
    sessions.start(toy_observation())
    if isinstance(policy, TellingPolicy):
        policy.batches.clear()
    if isinstance(policy, WaitingPolicy):
        policy.begun.clear()
    try:
        yield sessions
    finally:
        if isinstance(policy, WaitingPolicy):
            policy.go.set()
        sessions.stop()


def ask(sessions, name="a", owner="robot", time_s=None, **words):
    sessions.open(name, owner)
    return sessions.act(name, owner, Frame(toy_observation(), time_s), **{"deadline_s": LONG_S, **words})
