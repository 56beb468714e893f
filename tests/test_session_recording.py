"""Served sessions on disk: everything that was said is read back, whatever ends the server or damages the file."""

from __future__ import annotations

import errno
import json
import struct
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from serving_policies import TellingPolicy, toy_observation
from test_policy_server import Robot, get, message
from test_serve_command import checkpoint, serving
from toy_specs import image_spec

from embodied.client import PolicyClient
from embodied.errors import UserError
from embodied.run_directory import RunDirectory
from embodied.serving import session_recorder
from embodied.serving.metrics import ServingMetrics
from embodied.serving.observation_reader import ObservationReader
from embodied.serving.openpi_server import ListeningSettings
from embodied.serving.policy_server import PolicyServer
from embodied.serving.recorder import RecordingQueue
from embodied.serving.served_session import Frame
from embodied.serving.session_recorder import SessionRecorder
from embodied.serving.sessions import Sessions, SessionSettings
from embodied.serving.warm_up import made_observation
from embodied.session_files.layout import session_files
from embodied.session_files.reader import SessionReader, read_session
from embodied.session_files.saved_session import SessionHeader
from embodied.session_files.writer import SessionWriter
from embodied.summaries import validate_summary
from embodied.types import ActionChunk, Preview


class NoisyPolicy(TellingPolicy):
    """With a preview whose levels rise."""

    def step(self, histories, states, executed):
        chunks, states = super().step(histories, states, executed)
        preview = Preview(np.full((2, 3), 0.5, np.float32), np.array([0.25, 0.75], np.float32))
        chunks = [ActionChunk(c.actions, c.start_s, c.dt_s, c.network_calls, preview) for c in chunks]
        return chunks, states


def header_of(policy):
    def header(session, episode, began):
        return SessionHeader(policy.spec, session, episode, policy.label, "abc", policy.action_steps, 0, began)

    return header


class Recorded:
    """A server that records into a folder."""

    def __init__(self, folder, policy=None, *, most_bytes=2**30, started=True, **sessions):
        self.policy = policy or NoisyPolicy()
        self.recorder = SessionRecorder(folder, header_of(self.policy), most_bytes)
        metrics = ServingMetrics()
        self.queue = RecordingQueue(self.recorder, 1000, metrics.record_dropped)
        self.server = PolicyServer(
            self.policy,
            ObservationReader(self.policy.spec),
            SessionSettings(**{"deadline_periods": 100.0, **sessions}),
            ListeningSettings(port=0),
            weights="abc",
            metrics=metrics,
            recording=self.queue,
        )

    def __enter__(self):
        self.server.start(made_observation(self.policy.spec, {}))
        return self.server

    def __exit__(self, *error):
        self.server.drain(0.0)
        self.queue.close()


def test_a_session_is_read_back_as_it_was(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    executed = {"executed_actions": np.ones((2, 3), np.float32), "executed_at_s": np.array([0.0, 0.1])}
    with Recorded(tmp_path, NoisyPolicy(spec=image_spec("front"))) as server, Robot(server) as robot:
        say = {"session": "arm/1", "images/front": image}
        first = robot.ask(**say, prompt="lift")
        second = robot.ask(**say, executed=2, **executed)
        refused = robot.ask(**say, **{"state/point": np.array([np.nan, 0], np.float32)})
        robot.ask(**say, time_s=0.3, observe_only=True)
        robot.ask(**say, reset=True)
    files = session_files(tmp_path)
    assert [file.name.rpartition("-")[2] for file in files] == ["1.session", "2.session"]
    assert all(file.name.startswith("arm-1-") for file in files), "no slash of a client's leads anywhere"
    session, other = (read_session(file) for file in files)
    assert (session.header.session, session.header.episode, session.header.spec) == ("arm/1", 1, image_spec("front"))
    assert session.end == "a new episode began" and other.end in ("the session was closed", "the server ended")
    assert len(other.requests) == 1 and not session.is_damaged and session.lost == []
    one, two, three, four = session.requests
    assert np.array_equal(one.chunk.actions, first["actions"]) and np.array_equal(two.chunk.actions, second["actions"])
    assert one.chunk.preview.levels.tolist() == [0.25, 0.75] and two.executed == 2
    assert np.array_equal(one.observation.images["front"], image) and one.observation.instruction == "lift"
    assert one.observation.state["goal"].dtype == np.float32 and two.observation.time_s == pytest.approx(0.2)
    assert session.executed_s == [0.0, 0.1] and np.array_equal(session.executed, executed["executed_actions"])
    assert three.refusal == refused["error"]["message"] and "finite values" in three.refusal and three.chunk is None
    assert (four.chunk, four.refusal, four.asked_s) == (None, "", 0.3)
    for request, answer in ((one, first), (two, second)):
        timing = answer["server_timing"]
        assert request.queue_ms == timing["queue_ms"] and request.infer_ms == timing["infer_ms"]
        assert request.received_at_s == timing["received_s"] <= request.given_at_s <= timing["sent_s"]
        assert request.sent_at_s >= timing["sent_s"] and request.deadline_at_s == pytest.approx(
            request.received_at_s + 10.0
        )


def test_deadline_misses_are_recorded_as_they_were_answered(tmp_path):
    recorder = SessionRecorder(tmp_path, header_of(TellingPolicy()), 2**30)
    queue = RecordingQueue(recorder, 100)
    sessions = Sessions(TellingPolicy(), SessionSettings(), recording=queue)
    sessions.start(toy_observation())
    sessions.open("a", "robot")
    sessions.act("a", "robot", Frame(toy_observation(), 0.0), deadline_s=0.0)  # nothing to say before: late
    with pytest.raises(UserError):
        sessions.act("a", "robot", Frame(toy_observation(), 0.1), executed=9)
    sessions.stop()
    queue.close()
    late, refused = read_session(tmp_path / "a-1.session").requests
    assert late.late and not late.stale and "between 0 and 4" in refused.refusal
    assert recorder.counts == {"files": 1, "requests": 2, "refused": 1, "stale": 0, "late": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"executed_actions": np.zeros((2, 3), np.float32)}, "'executed_at_s' as float64 [2]"),
        ({"executed_at_s": np.zeros(2)}, "'executed_actions' as float32 [n 3], beside 'executed_at_s'; found None"),
        ({"executed_actions": np.zeros((2, 2), np.float32), "executed_at_s": np.zeros(2)}, "found 'float32 [2, 2]'"),
        ({"executed_actions": np.zeros((2, 3), np.int8), "executed_at_s": np.zeros(2)}, "found 'int8 [2, 3]'"),
        ({"executed_actions": np.full((1, 3), np.inf, np.float32), "executed_at_s": np.zeros(1)}, "3 finite numbers"),
        (
            {"executed_actions": np.zeros((1001, 3), np.float32), "executed_at_s": np.zeros(1001)},
            "at most 1000 actions",
        ),
        ({"executed_actions": np.zeros((1, 3), np.float32), "executed_at_s": np.array([np.nan])}, "finite times, in s"),
        ({"executed_actions": "none", "executed_at_s": np.zeros(1)}, "found 'none'"),
    ],
    ids=range(8),
)
def test_reports_of_executed_actions_that_make_no_sense_are_refused_and_the_session_goes_on(changes, reason, tmp_path):
    with Recorded(tmp_path) as server, Robot(server) as robot:
        assert reason in robot.ask(**changes)["error"]["message"]
        nothing = {"executed_actions": np.zeros((0, 3), np.float32), "executed_at_s": np.zeros(0)}
        assert "actions" in robot.ask(**nothing)


def test_sessions_of_lerobots_protocol_are_recorded_too(tmp_path):
    from lerobot_client import Client as LeRobotClient

    from embodied.serving.lerobot_grpc import LeRobotServer, LeRobotSettings

    with Recorded(tmp_path) as server:
        lerobot = LeRobotServer(server.sessions, LeRobotSettings(port=0, poll_s=0.3))
        with LeRobotClient(lerobot.start()) as client:
            client.begin()
            client.send(1000.0, 0)
            given = client.actions()
            with pytest.raises(grpc.RpcError, match="finite values"):
                client.send(1000.4, 4, **{"x.pos": float("nan")})
        lerobot.stop(0.0)
    (file,) = [file for file in session_files(tmp_path) if "-2." in file.name]
    answered, refused = read_session(file).requests
    assert answered.chunk.actions.tolist() == [action.action.tolist() for action in given]
    assert answered.received_at_s <= answered.given_at_s <= answered.sent_at_s and "finite values" in refused.refusal


def test_clients_that_take_a_name_again_get_files_of_their_own(tmp_path):
    with Recorded(tmp_path) as server:
        for _ in range(2):
            with Robot(server) as robot:
                robot.ask(session="left")
            while server.sessions.open_sessions:
                time.sleep(0.01)
    assert sorted(file.name for file in session_files(tmp_path)) == ["left-1.2.session", "left-1.session"]


def written(folder, requests=3):
    with Recorded(folder) as server, Robot(server) as robot:
        for _ in range(requests):
            robot.ask(session="a")
    return folder / "a-1.session"


def test_a_file_that_was_cut_anywhere_is_read_as_far_as_it_is_whole(tmp_path):
    data = written(tmp_path / "whole").read_bytes()
    cut, counts = tmp_path / "cut.session.part", []
    for size in range(0, len(data), 7):
        cut.write_bytes(data[:size])
        try:
            session = read_session(cut)
        except UserError as error:
            assert "another kind of file" in str(error) or "ends before its header" in str(error)
            continue
        assert session.end is None and not session.is_damaged
        counts.append(len(session.requests))
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3}


def test_damage_ends_the_reading_with_what_came_before(tmp_path):
    file = written(tmp_path)
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    session = read_session(file)
    assert session.is_damaged and len(session.requests) == 3 and session.end is None


def test_other_files_are_refused_with_what_they_are(tmp_path):
    with pytest.raises(UserError, match="none that can be read at .*absent"):
        read_session(tmp_path / "absent.session")
    (tmp_path / "a.session").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(UserError, match="found another kind of file"):
        read_session(tmp_path / "a.session")
    (tmp_path / "b.session").write_bytes(b"EMBSESS\x02")
    with pytest.raises(UserError, match="of version 1 .*; found version 2 of it"):
        read_session(tmp_path / "b.session")
    huge = written(tmp_path / "whole").read_bytes() + struct.pack("<II", 2**32 - 1, 0)
    (tmp_path / "c.session").write_bytes(huge)
    assert read_session(tmp_path / "c.session").is_damaged


def test_a_reader_follows_a_file_that_grows(tmp_path):
    policy = TellingPolicy()
    writer = SessionWriter(tmp_path / "a.session", header_of(policy)("a", 1, "now"))
    reader = SessionReader(tmp_path / "a.session.part")
    assert reader.session.requests == []
    writer.append({"kind": "lost", "records": 2})
    reader.poll()
    assert reader.session.lost == [(0, 2)]
    writer.finish("done")
    reader.poll()
    assert reader.session.end == "done" and not (tmp_path / "a.session.part").exists()


def test_at_the_limit_recording_stops_and_serving_goes_on(tmp_path):
    recorded = Recorded(tmp_path, most_bytes=4000)
    with recorded as server, Robot(server) as robot:
        for _ in range(50):
            assert "actions" in robot.ask(session="a")
        recorded.queue.close()
        _, text = get(server, "/metrics")
    assert "recording.most_mb allows no more" in recorded.recorder.stopped
    dropped = recorded.queue.dropped["recorder_stopped"]
    assert dropped > 10 and f'embodied_dropped_records_total{{reason="recorder_stopped"}} {dropped:.1f}' in text
    (file,) = session_files(tmp_path)
    session = read_session(file)
    assert file.name == "a-1.session.part" and len(session.requests) >= 3 and not session.is_damaged
    assert 4000 <= file.stat().st_size == recorded.recorder.bytes < 6000


def test_a_full_disk_stops_the_recording_with_one_line_and_whole_records(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(session_recorder.LOG, "error", lambda event, extra: said.append((event, extra["why"])))
    recorded = Recorded(tmp_path)

    class Full:
        """A disk with room for 3000 bytes, which takes what fits of the last ones."""

        def __init__(self, file):
            self.file, self.left = file, 3000

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.file.write(data[: self.left])
            self.left -= taken
            return taken

        def __getattr__(self, name):
            return getattr(self.file, name)

    class OnFullDisk(SessionWriter):
        def _write(self, data):
            if not isinstance(self._file, Full):
                self._file = Full(self._file)
            super()._write(data)

    monkeypatch.setattr(session_recorder, "SessionWriter", OnFullDisk)
    with recorded as server, Robot(server) as robot:
        for _ in range(30):
            assert "actions" in robot.ask(session="a")
    assert recorded.recorder.stopped == f"No space left on device in {tmp_path}"
    assert said == [("recording has stopped, serving goes on", recorded.recorder.stopped)]
    session = read_session(tmp_path / "a-1.session.part")
    assert len(session.requests) >= 1 and not session.is_damaged


def test_the_command_records_into_a_run_with_a_summary(tmp_path):
    folder = checkpoint(tmp_path / "policy")
    with serving(folder, "record=on", f"run_root={tmp_path}") as server:
        run = Path(server.address.removesuffix("/sessions"))  # the first line says where
        client = PolicyClient(server.process.stdout.readline().strip().rpartition(" ")[2])
        for _ in range(3):
            client.infer({**message(), "session": "arm", "deadline_s": 10.0})
        written, deadline_s = run / "sessions/arm-1.session.part", time.monotonic() + 10
        while time.monotonic() < deadline_s and not (written.exists() and len(read_session(written).requests) == 3):
            time.sleep(0.05)
        server.process.terminate()
        server.log("ended")
        assert server.process.wait(20) == 0
    summary = json.loads((run / "summary.json").read_text())
    validate_summary("serve", summary)
    assert summary["requests"] == {"requests": 3, "refused": 0, "stale": 0, "late": 0}
    assert (summary["files"], summary["dropped_records"], summary["recording_stopped"]) == (1, {}, None)
    session = read_session(run / "sessions" / "arm-1.session")
    assert session.header.policy == "sdp k=2" and session.header.weights == summary["weights"]
    assert session.requests[0].chunk.preview is not None and len(session.requests) == 3


def test_a_killed_server_leaves_what_it_had_answered(tmp_path):
    folder = checkpoint(tmp_path / "policy")
    with serving(folder, "record=on", f"run_root={tmp_path}") as server:
        run = Path(server.address.removesuffix("/sessions"))
        client = PolicyClient(server.process.stdout.readline().strip().rpartition(" ")[2])
        for _ in range(5):
            client.infer({**message(), "session": "arm"})
        time.sleep(0.5)
        server.process.kill()
        server.process.wait(20)
    session = read_session(run / "sessions" / "arm-1.session.part")
    assert len(session.requests) == 5 and session.end is None and not session.is_damaged
    assert not (run / "summary.json").exists()


def test_two_servers_do_not_write_into_one_run(tmp_path, capsys):
    from omegaconf import OmegaConf
    from test_commands import embodied

    folder = checkpoint(tmp_path / "policy")
    words = [folder, "record=on", f"run_root={tmp_path}", "name=one", "port=0"]
    base = {"run_root": str(tmp_path), "name": "one", "force": False, "resume": None}
    with RunDirectory.open("serve", "x", OmegaConf.create(base)).lock():
        status, _, printed = embodied(capsys, "serve", *words)
    assert status == 2 and "serve/one to hold a run of this configuration" in printed


@pytest.mark.parametrize(
    ("word", "expected"),
    [("record=maybe", "record on or off; found maybe"), ("recording.queue=0", "recording.queue above 0; found 0")],
)
def test_settings_that_make_no_sense_are_one_line(word, expected, capsys, tmp_path):
    from test_commands import embodied

    status, _, printed = embodied(capsys, "serve", checkpoint(tmp_path / "policy"), word)
    assert status == 2 and expected in printed


def test_connections_that_were_only_refused_leave_no_file_open(tmp_path, monkeypatch):
    monkeypatch.setattr(session_recorder, "MOST_OPEN_FILES", 2)
    recorded = Recorded(tmp_path)
    with recorded as server:
        for _ in range(3):
            with Robot(server) as robot:
                assert "error" in robot.send({})
        with Robot(server) as robot:
            robot.ask(session="arm")
    assert recorded.queue.dropped == {}
    assert sorted(read_session(path).header.session[:10] for path in session_files(tmp_path)) == ["arm"] + 3 * [
        "connection"
    ]
    assert all(path.name.endswith(".session") for path in session_files(tmp_path))
