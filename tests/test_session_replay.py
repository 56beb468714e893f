"""Served sessions as Rerun recordings: what was predicted, executed, missed and refused, read back; and live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rerun as rr
from made_rollouts import RecordingReader
from omegaconf import OmegaConf
from rerun.chunk import RrdReader
from test_session_recording import NoisyPolicy, Recorded, header_of
from toy_specs import image_spec

from embodied.commands import replay
from embodied.errors import UserError
from embodied.replay import viewer
from embodied.replay.live_sessions import SessionFollower
from embodied.replay.session_recording import write_session
from embodied.serving.answers import Answer, Timings
from embodied.serving.recorder import ExecutedActions, RecordedRequest, RecordedSend, SessionEnd
from embodied.serving.session_recorder import SessionRecorder
from embodied.session_files.reader import read_session
from embodied.summaries import validate_summary
from embodied.types import ActionChunk, Observation, Preview

HZ, TA = 10.0, 4
POLICY = NoisyPolicy(spec=image_spec("front"))


def answered(number, *, stale=False, late=False, reported=True):
    """The request at control step 3 * number, which got a chunk of Ta actions there, all of this number; 3 executed."""
    asked_s = 3 * number / HZ
    source = number - 1 if stale else number
    preview = Preview(np.full((2, 3), 0.5, np.float32), np.array([0.25, 0.75], np.float32))
    chunk = ActionChunk(np.full((TA, 3), source, np.float32), 3 * source / HZ, 1 / HZ, 2, preview)
    received_s = 100.0 + asked_s
    seen = Observation(
        {"point": np.full(2, number, np.float32), "goal": np.zeros(2, np.float32)},
        {"front": np.full((24, 24, 3), 40 * number, np.uint8)},
    )
    times = Timings(received_s, 1.0, 5.0, 1)
    answer = Answer(
        *("arm", 1, chunk, chunk.start_s, asked_s),
        stale=stale,
        late=late,
        reason="deadline" if stale else "",
        history_repeated=False,
        policy="abc",
        timings=times,
    )
    executed = None
    if reported and number:
        at_s = asked_s + np.arange(-3, 0) / HZ
        executed = ExecutedActions(np.full((3, 3), number - 1.1, np.float32), at_s)
    return RecordedRequest(
        "arm", 1, seen, asked_s, received_s, received_s + 0.006, received_s + 0.02, 3, executed, answer, ""
    )


def refused(number):
    received_s = 100.0 + 3 * number / HZ
    why = "expected finite values in 'state/point'; found nan; check the robot's sensors"
    return RecordedRequest("arm", None, None, None, received_s, received_s, None, None, None, None, why)


def write(folder, events, close=True):
    recorder = SessionRecorder(folder, header_of(POLICY), 2**30)
    for event in events:
        if isinstance(event, int):
            recorder.lost("arm", event)
        else:
            recorder.write(event)
        if isinstance(event, RecordedRequest) and event.answer is not None:
            recorder.write(RecordedSend("arm", event.received_s, event.received_s + 0.008))
    if close:
        recorder.write(SessionEnd("arm"))
    return recorder


EVENTS = [answered(0), answered(1), refused(1), answered(2, stale=True), 7, answered(3, late=True)]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    write(folder, EVENTS)
    path = write_session(folder / "a.rrd", read_session(folder / "arm-1.session"), "arm")
    return RecordingReader(path, HZ)


def test_predicted_and_executed_actions_stand_on_one_time_line(recording):
    predicted = recording.scalars("/action/dx/predicted")
    assert predicted[0] == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12], "up to the next chunk; the stale answer brought none"
    assert predicted[1] == [0] * 3 + [1] * 4 + [3] * 4
    executed = recording.scalars("/action/dx/executed")
    assert executed[0] == list(range(9))
    assert executed[1] == pytest.approx([-0.1] * 3 + [0.9] * 3 + [1.9] * 3)


def test_latency_deadline_and_misses_stand_where_they_were_asked(recording):
    assert recording.scalars("/policy/latency_ms/total") == ([0, 3, 6, 9], pytest.approx([8.0] * 4))
    assert recording.scalars("/policy/latency_ms/deadline")[1] == pytest.approx([20.0] * 4)
    assert recording.scalars("/policy/latency_ms/inference") == ([0, 3, 9], [5.0] * 3)
    assert recording.scalars("/policy/latency_ms/stale")[0] == [6]
    assert recording.scalars("/policy/latency_ms/late")[0] == [9]


def test_noise_by_slot_cameras_and_states_are_there(recording):
    steps, levels = recording.rows("/policy/noise_level", "BarChart:values")
    assert steps == [0, 3, 9] and "0.25, 0.75" in str(levels[0])
    assert recording.rows("/cameras/front", "EncodedImage:blob")[0] == [0, 3, 6, 9]
    assert recording.scalars("/state/point/x") == ([0, 3, 6, 9], [0, 1, 2, 3])


def test_refusals_misses_and_drops_are_told_in_words(recording):
    steps, texts = recording.rows("/events", "TextLog:text")
    told = list(zip(steps, [text[0] for text in texts], strict=True))
    assert [step for step, _ in told] == [3, 6, 6, 9]
    words = " | ".join(text for _, text in told)
    for expected in (
        "refused: expected finite values",
        "an earlier chunk",
        "7 records are missing",
        "after its deadline",
    ):
        assert expected in words
    facts = recording.static("/__properties/session")
    assert (facts["requests"], facts["refused"], facts["stale"], facts["late"]) == ([5], [1], [1], [1])
    assert (facts["lost_records"], facts["executed_actions"]) == ([7], [9])


def test_rerun_itself_finds_the_file_sound(recording):
    program = Path(sys.executable).with_name("rerun")
    for verb in ("verify", "stats"):
        done = subprocess.run([program, "rrd", verb, recording.path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_robot_that_reports_nothing_is_said_to(tmp_path):
    write(tmp_path, [answered(0, reported=False), answered(1, reported=False)])
    path = write_session(tmp_path / "a.rrd", read_session(tmp_path / "arm-1.session"), "arm")
    found = RecordingReader(path, HZ)
    assert "did not report what it executed" in str(found.static("/about"))
    assert found.scalars("/action/dx/predicted")[0] == [0, 1, 2, 3, 4, 5, 6]


def test_what_is_followed_live_is_in_the_end_what_is_replayed_afterwards(tmp_path):
    streams, folder = {}, tmp_path / "sessions"

    def open_stream(name, session):
        stream = rr.RecordingStream("test", recording_id=name)
        streams[name] = stream, stream.binary_stream()
        stream.set_log_time_enabled(False)
        stream.set_log_tick_enabled(False)
        return stream

    recorder = SessionRecorder(folder, header_of(POLICY), 2**30)
    (folder / "empty-1.session.part").touch()
    follower = SessionFollower(folder, open_stream)
    counts = [follower.look()]
    for event in EVENTS:
        recorder.lost("arm", event) if isinstance(event, int) else recorder.write(event)
        if isinstance(event, RecordedRequest) and event.answer is not None:
            recorder.write(RecordedSend("arm", event.received_s, event.received_s + 0.008))
        counts.append(follower.look())
    recorder.close()
    follower.look()
    assert counts == [0, 1, 1, 1, 1, 0, 1]
    stream, sink = streams["arm-1"]
    stream.flush()
    (tmp_path / "live.rrd").write_bytes(sink.read())
    stream.disconnect()
    live = RecordingReader(tmp_path / "live.rrd", HZ)
    whole = RecordingReader(write_session(tmp_path / "whole.rrd", read_session(folder / "arm-1.session"), "arm"), HZ)
    for entity in ("/action/dx/predicted", "/action/dy/executed", "/policy/latency_ms/total", "/state/goal/goal_x"):
        if entity in whole.entities:
            assert live.scalars(entity) == whole.scalars(entity), entity
    assert live.rows("/events", "TextLog:text") == whole.rows("/events", "TextLog:text")
    assert live.rows("/policy/noise_level", "BarChart:values") == whole.rows("/policy/noise_level", "BarChart:values")


def _config(tmp_path, run, **changes):
    base = {"run_root": str(tmp_path / "outputs"), "name": None, "force": False, "resume": None, "episode": None}
    base |= {"session": None, "live": False, "live_s": None, "viewer": None, "open": False}
    return OmegaConf.create({**base, "run": str(run), **changes})


@pytest.fixture
def served_run(tmp_path):
    run = tmp_path / "outputs" / "serve" / "arm"
    write(run / "sessions", EVENTS)
    (run / "config.yaml").write_text("run: x\n")
    return run


def test_the_command_replays_a_session_of_a_run_by_its_name_or_its_file(tmp_path, served_run):
    for run in (served_run, Path("arm"), served_run / "sessions" / "arm-1.session"):
        path = replay.run(_config(tmp_path, run))
        summary = json.loads(path.read_text())
        validate_summary("replay", summary)
        assert (summary["kind"], summary["steps"], summary["recording"]) == ("session", 9, "arm-1.rrd")
        assert summary["session"]["lost_records"] == 7 and summary["session"]["end"] == "the session was closed"
        assert RrdReader(path.parent / "arm-1.rrd").stream().to_chunks()


def test_what_is_not_there_is_said(tmp_path, served_run):
    with pytest.raises(UserError, match="found session=leg-1; recorded, the newest first: arm-1"):
        replay.run(_config(tmp_path, served_run, session="leg-1"))
    with pytest.raises(UserError, match="a viewer for live=true; found open=false"):
        replay.run(_config(tmp_path, served_run, live=True))
    (served_run / "sessions" / "arm-1.session").unlink()
    with pytest.raises(UserError, match="recorded sessions in .*; found none; serve with record=on"):
        replay.run(_config(tmp_path, served_run))
    with pytest.raises(UserError, match="does not exist"):
        replay.run(_config(tmp_path, tmp_path / "absent", live=True))
    (tmp_path / "outputs/serve/none").mkdir()
    (tmp_path / "outputs/serve/none/config.yaml").write_text("run: x\n")
    with pytest.raises(UserError, match="sessions in .*none; found none; serve with record=on"):
        replay.run(_config(tmp_path, "none", live=True))


def test_without_a_screen_live_says_how_to_name_a_viewer(tmp_path, served_run, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UserError, match="no screen here; .*viewer=rerun\\+http://HOST:9876/proxy"):
        replay.run(_config(tmp_path, served_run, live=True, open=None))


def test_live_follows_a_server_into_a_viewer_and_keeps_the_recordings(tmp_path, served_run, capsys):
    """Rerun's own server stands for the viewer."""
    with Recorded(served_run / "sessions") as server:
        from test_policy_server import Robot

        stand_in = rr.RecordingStream("viewer")
        address = stand_in.serve_grpc(grpc_port=_free_port())
        with Robot(server) as robot:
            robot.ask(session="leg")
            path = replay.run(_config(tmp_path, served_run, live=True, live_s=1.0, viewer=address, open=None))
        stand_in.disconnect()
    summary = json.loads(path.read_text())
    validate_summary("replay", summary)
    assert (summary["kind"], summary["recording"]) == ("live", "sessions")
    found = sorted(file.name for file in (path.parent / "sessions").glob("*.rrd"))
    assert found == ["arm-1.rrd", "leg-1.rrd"] and "session leg-1" in capsys.readouterr().out


def _free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_viewer_that_does_not_come_up_is_said(monkeypatch):
    monkeypatch.setattr(viewer, "_viewer_program", lambda: "/bin/false")
    with pytest.raises(UserError, match="found one that does not answer"):
        viewer.start_viewer(_free_port())
    monkeypatch.setattr(viewer, "_viewer_program", lambda: None)
    with pytest.raises(UserError, match="Rerun's viewer; found none"):
        viewer.start_viewer()
