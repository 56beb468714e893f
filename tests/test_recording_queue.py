"""What sessions hand over to a recorder, and what they do not wait for."""

import threading
import time

import pytest
from serving_policies import TellingPolicy, toy_observation
from serving_sessions import ask

from embodied.errors import UserError
from embodied.serving.recorder import RecordingQueue, SessionEnd
from embodied.serving.sessions import Sessions, SessionSettings


class Notes:
    """A recorder that notes; it waits for `go`, and fails at a session called "broken"."""

    def __init__(self):
        self.go, self.noted, self.losses, self.is_closed = threading.Event(), [], [], False
        self.go.set()
        self.begun = threading.Event()  # a record has come

    def write(self, event):
        self.begun.set()
        assert self.go.wait(10)
        if event.session == "broken":
            raise OSError("no space")
        self.noted.append(event)

    def lost(self, session, events):
        self.losses.append((session, events))

    def close(self):
        self.is_closed = True


def recorded_sessions(recorder, capacity, drops):
    recording = RecordingQueue(recorder, capacity, drops.append)
    sessions = Sessions(TellingPolicy(), SessionSettings(), recording=recording)
    sessions.start(toy_observation())
    return sessions, recording


def test_a_recorder_is_told_of_answers_and_refusals_and_its_failures_are_counted():
    recorder, drops = Notes(), []
    sessions, recording = recorded_sessions(recorder, 100, drops)
    for name in ("a", "broken", "a"):
        ask(sessions, name, executed=2)
    with pytest.raises(UserError):
        ask(sessions, time_s=-9.0)
    sessions.stop()
    recording.close()
    assert [record.session for record in recorder.noted] == ["a", "a", "a"] and recorder.is_closed
    assert [record.executed for record in recorder.noted] == [2, 2, None]
    assert recorder.noted[1].answer.asked_s == pytest.approx(0.2) and recorder.noted[1].refusal == ""
    assert recorder.noted[2].answer is None and "order of time" in recorder.noted[2].refusal
    assert drops == ["recorder_failed"] and recording.dropped == {"recorder_failed": 1}


def test_a_recorder_that_is_too_slow_costs_records_and_no_time():
    recorder, drops = Notes(), []
    recorder.go.clear()
    sessions, recording = recorded_sessions(recorder, 2, drops)
    ask(sessions)
    assert recorder.begun.wait(10)
    began_s = time.monotonic()
    for _ in range(9):
        ask(sessions)
    assert time.monotonic() - began_s < 5.0
    assert recording.dropped["recorder_queue"] == 7 and drops == 7 * ["recorder_queue"]
    recorder.go.set()
    sessions.stop()
    recording.close()
    assert len(recorder.noted) == 3 and recorder.losses == [("a", 7)]


def test_what_a_recorder_does_not_finish_in_time_is_counted():
    class Slow(Notes):
        def write(self, event):
            time.sleep(0.02)
            super().write(event)

    recorder, drops = Slow(), []
    recording = RecordingQueue(recorder, 100, drops.append)
    events = [SessionEnd("a") for _ in range(40)]
    for event in events:
        recording.put(event)
    recording.close(0.1)
    lost = recording.dropped["recorder_closed"]
    assert lost > 20 and len(recorder.noted) + lost == len(events)
    assert recorder.losses == [("a", lost)] and recorder.is_closed
    assert set(drops) == {"recorder_closed"}
