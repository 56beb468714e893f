"""Pickles on the wire: those of LeRobot's robot client are read, whatever else is in one is refused and never run."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_pickles import HELPERS, RemotePolicyConfig, TimedAction, TimedObservation, lerobots_names

from embodied.errors import UserError
from embodied.serving import lerobot_pickle
from embodied.serving.lerobot_reply import timed_actions
from embodied.serving.lerobot_values import ALLOWED_NAMES, read_instructions, read_observation


@pytest.fixture(autouse=True)
def names():
    with lerobots_names():
        yield


def observed(protocol=4, **values):
    return pickle.dumps(TimedObservation(12.5, 7, values, must_go=True), protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_observation_is_read_value_by_value(protocol):
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    values = {
        "arm.pos": 1.5,
        "hand.pos": np.float32(0.25),
        "count": np.int64(-3),
        "front": image,
        "flipped": np.asfortranarray(image[..., 0]),
        "tensor": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
        "part": torch.arange(10)[4:7],
        "flags": [True, False],
        "empty": torch.zeros(0, 3),
        "task": "put it down",
    }
    if protocol == 2:  # which has no form for bytes
        values = {name: value for name, value in values.items() if not isinstance(value, np.ndarray | np.generic)}
        values = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
    read = read_observation(observed(protocol, **values))
    assert (read.timestamp, read.timestep, read.must_go) == (12.5, 7, True)
    assert list(read.observation) == list(values)
    for name, value in values.items():
        expected = value.numpy() if isinstance(value, torch.Tensor) else value
        assert np.array_equal(read.observation[name], expected), name
        assert np.asarray(read.observation[name]).dtype == np.asarray(expected).dtype


def test_big_endian_values_keep_their_order():
    read = read_observation(observed(a=np.array([1.0, 2.0], ">f4")))
    assert read.observation["a"].tolist() == [1.0, 2.0]


def test_what_the_robot_client_asks_for_is_read():
    features = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]}}
    read = read_instructions(pickle.dumps(RemotePolicyConfig("act", "/some/where", features, 8)))
    assert read.features == features and read.actions_per_chunk == 8 and read.rename_map == {}


def test_the_reply_is_what_the_robot_client_reads():
    actions = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    data = timed_actions(actions, 100.25, 300, 0.05)
    read = pickle.loads(data)
    assert [type(one) for one in read] == [TimedAction] * 5
    assert [one.timestep for one in read] == [300, 301, 302, 303, 304]
    assert [one.timestamp for one in read] == [100.25 + i * 0.05 for i in range(5)]
    for one, row in zip(read, actions, strict=True):
        assert one.action.dtype == torch.float32 and one.action.device.type == "cpu" and one.action.ndim == 1
        assert np.array_equal(one.action.numpy(), row)
    pickletools.dis(data, out=io.StringIO())


class Runs:
    """What a hostile pickle would call if anybody ran it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Sets:
    def __getstate__(self):
        return {"timestep": Runs(os.system, "true")}


def raw(*operations):
    return b"\x80\x04" + b"".join(operations) + b"."


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module, name):
    return text(module) + text(name) + b"\x93"


MADE = named(HELPERS, "TimedObservation") + b")\x81"
DTYPE = named("numpy", "dtype")


def laughs(opening):
    """A billion laughs: 40 containers, each with the one before twice, in a list; the last one is at place 40."""
    body = b"](" + (b"]" if opening == "list" else b")") + b"q\x00"
    for place in range(40):
        got = b"h" + bytes([place])
        body += (b"](" + got + got + b"e" if opening == "list" else got + got + b"\x86") + b"q" + bytes([place + 1])
    return body + b"e"


def in_observation(value):
    return (
        raw(MADE, b"}(", text("timestamp"), b"G" + bytes(8), text("timestep"), b"K\x00", text("observation"))[:-1]
        + b"}"
        + text("a")
        + value
        + b"sub."
    )


def torch_storage(description):
    data = pickle.dumps(torch.zeros(3))
    (storage,) = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, bytes)]
    return (
        named("torch.storage", "_load_from_bytes")
        + b"B"
        + (len(changed := storage.replace(b"ctorch\nFloatStorage\n", description))).to_bytes(4, "little")
        + changed
        + b"\x85R"
    )


HOSTILE = {
    "os.system": (lambda: pickle.dumps(Runs(os.system, "true")), r"the name posix.system"),
    "eval": (lambda: pickle.dumps(Runs(eval, "1")), "the name builtins.eval"),
    "exec, protocol 0": (lambda: pickle.dumps(Runs(exec, "1"), 0), "the name __builtin__.exec"),
    "getattr": (
        lambda: pickle.dumps(Runs(getattr, os, "system")) if 0 else raw(named("builtins", "getattr")),
        "getattr",
    ),
    "import": (lambda: raw(named("builtins", "__import__")), "the name builtins.__import__"),
    "Popen": (lambda: pickle.dumps(Runs(subprocess.Popen, ["true"])), "the name subprocess.Popen"),
    "nested": (lambda: observed(a=Runs(Runs, os.system)), "the name .*Runs"),
    "a state with a call": (lambda: observed(a=Sets()), "the name"),
    "a submodule of an allowed one": (lambda: raw(named("numpy", "load")), "the name numpy.load"),
    "a dotted name": (lambda: raw(named("numpy", "dtype.__class__")), "the name numpy.dtype.__class__"),
    "torch.load": (lambda: raw(named("torch", "load")), "the name torch.load"),
    "lerobot's other names": (lambda: raw(named(HELPERS, "os")), f"the name {HELPERS}.os"),
    "a name that is a number": (lambda: raw(b"K\x01K\x01\x93"), "a name that is no text"),
    "INST": (lambda: raw(b"(ios\nsystem\n"), "the operation INST"),
    "OBJ": (lambda: raw(b"(", named("numpy", "dtype"), b"o"), "the operation OBJ"),
    "NEWOBJ_EX": (lambda: raw(named("numpy", "dtype"), b")}\x92"), "the operation NEWOBJ_EX"),
    "EXT1": (lambda: raw(b"\x82\x01"), "the operation EXT1"),
    "a persistent id": (lambda: raw(b"K\x01Q"), "a reference to something outside"),
    "an out-of-band buffer": (lambda: raw(b"\x97"), "the operation NEXT_BUFFER"),
    "a call of a text": (lambda: raw(text("f"), b")R"), "a call of a str"),
    "a call of a message": (lambda: raw(MADE, b")R"), "a call of a _Record"),
    "another number of values": (lambda: raw(DTYPE, b"K\x01\x85R"), "numpy.dtype with 1 values instead of 3"),
    "an array of objects": (lambda: pickle.dumps(np.array([None])), "an array of dtype O8"),
    "an array of records": (lambda: pickle.dumps(np.zeros(2, "i4,i4")), "an array of dtype V8"),
    "an array of texts": (lambda: observed(a=np.array(["x"])), "an array of dtype U1"),
    "__setstate__ of a list": (lambda: raw(b"]}b"), "a state for a list"),
    "BUILD on a map": (lambda: raw(b"}}b"), "a state for a dict"),
    "BUILD on a function": (lambda: raw(DTYPE, b"}b"), "a state for numpy.dtype"),
    "fields twice": (lambda: raw(MADE, b"}b}b"), "a dict as the fields of a TimedObservation"),
    "slots": (lambda: raw(MADE, b"}}\x86b"), "a tuple as the fields"),
    "a huge place in the memo": (lambda: raw(b"Nr\xff\xff\xff\x7f"), "a NoneType"),
    "a place that nobody filled": (lambda: raw(b"h\x09"), "a value from its memo that was never put there"),
    "a huge text": (lambda: raw(b"X\xff\xff\xff\x7f"), "bytes that are no pickle"),
    "a huge byte array": (lambda: raw(b"\x96" + (2**62).to_bytes(8, "little")), "bytes that are no pickle"),
    "a huge frame": (lambda: raw(b"\x95" + b"\xff" * 8, b"N"), "a NoneType"),
    "a huge number in digits": (lambda: b"I" + b"9" * 100_000 + b"\n.", "bytes that are no pickle|INT"),
    "a set of tuples": (lambda: raw(b"\x8f"), "the operation EMPTY_SET"),
    "billion laughs": (lambda: in_observation(laughs("list")), "nested more than 8 deep|more than 10000 values"),
    "billion laughs of tuples": (lambda: in_observation(laughs("tuple")), "more than 8 deep|more than 10000 values"),
    "a tuple of tuples as a key": (lambda: raw(laughs("tuple"), b"}h\x28Ns\x86"), "a tuple as a key"),
    "wide laughs": (
        lambda: in_observation(b"](](" + b"N" * 300 + b"eq\x00" + b"h\x00" * 300 + b"e"),
        "more than 10000 values",
    ),
    "a list in itself": (lambda: in_observation(b"]q\x00h\x00a"), "nested more than 8 deep"),
    "deep lists": (lambda: raw(b"]" * 500 + b"a" * 499), "nested more than 8 deep"),
    "many operations": (lambda: raw(b"N0" * 30_000), "more than 20000 operations|the operation POP"),
    "many values": (lambda: raw(b"](" + b"N" * 15_000 + b"e"), "more than 10000 values"),
    "no end": (lambda: b"\x80\x04N", "no end|bytes that are no pickle"),
    "nothing": (lambda: b"", "no end|bytes that are no pickle"),
    "two values": (lambda: raw(b"NN"), "more than one value"),
    "something behind its end": (lambda: observed() + b"N", "1 bytes behind its end"),
    "an operation without operands": (lambda: raw(b"\x87"), "without its operands"),
    "an operation without its mark": (lambda: raw(b"t"), "without its mark"),
    "a dtype with fields": (
        lambda: raw(DTYPE, text("i4"), b"\x89\x88\x87R(K\x03", text("<"), b"}NNK\x00K\x00K\x00tb"),
        "a dtype with fields",
    ),
    "more values than bytes": (
        lambda: raw(named("numpy._core.multiarray", "scalar"), DTYPE, text("f8"), b"\x89\x88\x87R", b"C\x01a\x86R"),
        r"an array \[\] of float64 with 1 bytes",
    ),
    "a storage with a global": (lambda: raw(torch_storage(b"cos\nsystem\n")), "the name os.system"),
    "a storage of another kind": (lambda: raw(torch_storage(b"ctorch\nQInt8Storage\n")), "torch.QInt8Storage"),
    "a storage without a persistent id": (
        lambda: raw(torch_storage(b"ctorch\nFloatStorage\n").replace(b"q\x04Q.", b"\x85\x85\x85.")),
        "a torch storage that is described by a tuple",
    ),
    "a storage of nonsense": (
        lambda: raw(named("torch.storage", "_load_from_bytes"), b"C\x01N\x85R"),
        "no end|no pickle",
    ),
    "a pickle in a storage": (
        lambda: raw(named("torch.storage", "_load_from_bytes"), b"C\x20", pickle.dumps(eval)[:32].ljust(32), b"\x85R"),
        "the name builtins.eval",
    ),
}


WATCHED = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "exec", "compile", "import", "open"),
    *("pickle.find_class", "marshal.loads", "socket.connect", "ctypes.dlopen"),
}
watching: list[list[str]] = []


def audit(event, arguments):
    """Python's own report of what is run, imported or opened; a hook cannot be taken away again."""
    if watching and event in WATCHED:
        watching[-1].append(f"{event} {arguments}"[:200])


sys.addaudithook(audit)


@contextlib.contextmanager
def nothing_runs():
    """Fails where anything is imported, evaluated, opened or started on behalf of a pickle."""
    ran: list[str] = []
    watching.append(ran)
    try:
        yield
    finally:
        watching.remove(ran)
    assert ran == []


def test_the_watch_sees_what_the_standard_library_would_run():
    with pytest.raises(AssertionError, match=r"pickle.find_class"), nothing_runs():
        pickle.loads(pickle.dumps(Runs(os.system, "true")))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_with_the_reason_and_at_once(name):
    make, reason = HOSTILE[name]
    data = make()
    begun = time.perf_counter()
    with nothing_runs(), pytest.raises(UserError) as caught:
        read_observation(data)
    assert re.search(reason, caught.value.found), caught.value
    assert time.perf_counter() - begun < 2.0


def test_names_are_pairs_and_none_of_them_can_run_anything():
    assert {name for _, name in ALLOWED_NAMES} == {
        *("TimedObservation", "RemotePolicyConfig", "OrderedDict", "dtype", "ndarray", "_reconstruct", "scalar"),
        *("_frombuffer", "_rebuild_tensor_v2", "_load_from_bytes"),
    }
    source = Path(lerobot_pickle.__file__).read_text()
    assert "import pickle\n" not in source and "import_module" not in source and "__import__" not in source


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((2, 3), (3, 1), 1), ((4,), (2,), 0), ((10**12,), (0,), 0), ((3,), (1,), 4)]
)
def test_a_tensor_reaches_no_further_than_its_storage(size, stride, offset):
    class Beyond:
        def __reduce__(self):
            storage = torch.zeros(6).untyped_storage()
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            hooks = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, (typed, offset, size, stride, False, hooks)

    with pytest.raises(UserError, match="beyond its storage of 6"):
        read_observation(observed(a=Beyond()))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (lambda: pickle.dumps(5), "found a int"),
        (lambda: pickle.dumps(RemotePolicyConfig("act", "x", {}, 8)), "found a RemotePolicyConfig"),
        (lambda: raw(MADE), "found a TimedObservation"),
        (lambda: pickle.dumps(TimedObservation("now", 1, {})), "found a str as 'timestamp'"),
        (lambda: pickle.dumps(TimedObservation(float("nan"), 1, {})), "timestamp nan"),
        (lambda: pickle.dumps(TimedObservation(1.0, -1, {})), "timestep -1"),
        (lambda: pickle.dumps(TimedObservation(1.0, 1, [])), "a list as 'observation'"),
        (lambda: observed(a={"b": 1}), "a dict among the observed values"),
        (lambda: observed(a=[[1]]), "a list among the observed values"),
        (lambda: observed(a=None), "a NoneType among the observed values"),
    ],
)
def test_a_message_of_another_kind_is_named(message, reason):
    with pytest.raises(UserError, match=reason):
        read_observation(message())


def test_instructions_of_another_kind_are_named():
    for config, reason in (
        (RemotePolicyConfig("act", "x", {}, 0), "actions_per_chunk 0"),
        (RemotePolicyConfig("act", "x", {}, 8, rename_map={"a": 1}), "names in rename_map that are no texts"),
        (RemotePolicyConfig("act", "x", [], 8), "a list as 'lerobot_features'"),
    ):
        with pytest.raises(UserError, match=reason):
            read_instructions(pickle.dumps(config))
