"""Hostile clients of LeRobot's protocol: pickles that would run code, messages that are none, endless senders."""

import contextlib
import os
import pickle
import random
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from lerobot_client import INSTRUCTIONS, INVALID, MOTORS, Client, refused, serving
from lerobot_pickles import RemotePolicyConfig, TimedObservation, lerobots_names

from embodied.errors import UserError
from embodied.serving import lerobot_messages as messages
from embodied.serving.lerobot_values import read_instructions, read_observation

FUZZED = int(os.environ.get("EMBODIED_FUZZ", "300"))  # mutated pickles in a test; 100000 for the long run


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/this_must_not_exist",)


def test_a_hostile_pickle_is_refused_over_the_wire_and_others_go_on():
    with serving() as (port, _, _), Client(port) as client, Client(port) as other:
        client.begin()
        other.begin()
        for data in (pickle.dumps(Evil()), b"", b"\x80\x04", pickle.dumps({"a": eval})):
            with refused(INVALID, "nothing of it was run"):
                client.send_bytes(data or b"\x00")
        with refused(INVALID, "the name posix.system"):
            client.call("SendPolicyInstructions", messages.PolicySetup(data=pickle.dumps(Evil())))
        other.send(1.0, 0)
        assert len(other.actions()) == 4
    assert not Path("/tmp/this_must_not_exist").exists()


def chunk(state, data=b"x"):
    return messages.Observation(transfer_state=state, data=data)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ([], "no last chunk"),
        ([chunk(messages.BEGIN)], "no last chunk"),
        ([chunk(messages.MIDDLE)], "chunk 0 as TRANSFER_MIDDLE"),
        ([chunk(messages.BEGIN), chunk(messages.BEGIN)], "chunk 1 as TRANSFER_BEGIN"),
        ([chunk(0)], "chunk 0 as TRANSFER_UNKNOWN"),
        ([chunk(9)], "chunk 0 as 9"),
        ([chunk(messages.BEGIN, bytes(800)), *[chunk(messages.MIDDLE, bytes(800))] * 3], "more than 2000 bytes"),
        ([chunk(messages.BEGIN, b""), *[chunk(messages.MIDDLE, b"")] * 1100], "or 1024 chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_chunks_that_make_no_message_are_refused(stream, reason):
    with serving(largest_observation_bytes=2000) as (port, _, _), Client(port) as client:
        client.begin()
        with refused(INVALID, reason):
            client.call("SendObservations", iter(stream))


def test_a_slow_sender_is_ended_and_one_that_sends_too_many_is_refused():
    go = threading.Event()

    def slow():
        yield chunk(messages.BEGIN)
        go.wait(20)

    def send_slowly(outcomes):
        try:
            client.call("SendObservations", slow())
        except grpc.RpcError as error:
            outcomes.append(error.code())

    with serving(observation_s=1.0) as (port, _, _), Client(port) as client:
        client.begin()
        outcomes, begun_s = [], time.monotonic()
        threads = [threading.Thread(target=send_slowly, args=(outcomes,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        with refused(INVALID, "at most 2 observations of a client at a time"):
            client.send(1.0, 0)
        for thread in threads:
            thread.join()
        assert outcomes == [grpc.StatusCode.CANCELLED] * 2 and time.monotonic() - begun_s < 10
        go.set()
        client.send(1.0, 0)
        assert len(client.actions()) == 4


def mutated(data, rng):
    """One to eight changes: bits, bytes, cuts, insertions, repeated pieces."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(5)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            begin = rng.randrange(len(data)) if data else 0
            data[at:at] = data[begin : begin + rng.randrange(1, 60)]
    return bytes(data)


@pytest.mark.timeout(0 if FUZZED > 10_000 else 120)
def test_mutated_pickles_are_read_or_refused_and_nothing_else_happens():
    values = {"a": 1.0, "b": np.float32(2), "c": np.zeros((2, 3), np.uint8), "d": torch.zeros(3), "e": [1, 2], "f": "x"}
    with lerobots_names():
        seeds = [
            (read_observation, pickle.dumps(TimedObservation(1.0, 2, values, True), protocol)) for protocol in (4, 5)
        ]
        seeds += [(read_instructions, pickle.dumps(RemotePolicyConfig("act", "x", INSTRUCTIONS, 8)))]
    rng, read, slowest_s = random.Random(0), 0, 0.0
    for index in range(FUZZED):
        function, data = seeds[index % len(seeds)]
        begun_s = time.perf_counter()
        with contextlib.suppress(UserError):
            function(mutated(data, rng))
            read += 1
        slowest_s = max(slowest_s, time.perf_counter() - begun_s)
    assert 0 < read < FUZZED / 2 and slowest_s < 2.0


def test_mutated_observations_over_the_wire_leave_the_server_as_it_was():
    rng = random.Random(1)
    with lerobots_names():
        data = pickle.dumps(TimedObservation(1.0, 2, dict.fromkeys(MOTORS, 0.0), True))
    codes = []
    with serving(most_connections=4) as (port, _, _), Client(port) as client, Client(port) as other:
        client.begin()
        other.begin()
        for index in range(100):
            try:
                client.send_bytes(mutated(data, rng))
            except grpc.RpcError as error:
                codes.append(error.code())
            if index % 20 == 0:
                other.send(10.0 + index, index)
                assert len(other.actions()) == 4
    assert set(codes) == {INVALID} and len(codes) > 50
