"""`embodied bench serve`: each part measures what it says, in small."""

import numpy as np
import pytest
from test_commands import embodied, summary
from test_policy_server import served
from toy_policies import SDP, toy_policy

from embodied.benchmarks.serving_load import SentRequest, load, missed_share, percentiles, replayed, soak
from embodied.benchmarks.wake_ups import wake_ups
from embodied.types import Observation

SMALL = [
    "serve.engine=eager",
    "serve.policy={name: sdp, k: 1, history: 1, initial_calls: 1}",
    "serve.state_size=4",
    "serve.cameras=1",
    "serve.camera_size=32",
    "serve.blocks=2",
    "serve.block_requests=10",
    "serve.loads=[{sessions: 2, rate_hz: 5, seconds: 1}]",
    "serve.soak_requests=200",
    "serve.fuzz_frames=100",
]


def message():
    return {"state/point": np.zeros(2, np.float32), "state/goal": np.ones(2, np.float32)}


@pytest.mark.heavy
def test_every_part_has_its_rows_and_its_section(capsys, tmp_path):
    words = [*SMALL, f"run_root={tmp_path}", f"results={tmp_path / 'results'}"]
    status, path, printed = embodied(capsys, "bench", "serve", *words)
    assert status == 0, printed
    rows = summary(path)["rows"]
    pairs = [part for part in ("round_trip", "added", "recording") for _ in range(2)]
    assert [row["measurement"] for row in rows] == [*pairs, "load", "soak", "fuzz"]
    trip = rows[0]["timings"]
    assert trip["server_ms"]["n"] == trip["bare_ms"]["n"] == 20
    assert trip["ratio"]["p50"] == pytest.approx(trip["server_ms"]["p50"] / trip["bare_ms"]["p50"])
    added = rows[2]["timings"]
    assert added["added_ms"]["n"] == added["bare_added_ms"]["n"] == 20
    assert min(added["bare_added_ms"]["p50"], added["bare_infer_ms"]["p50"]) > 0
    recorded = rows[5]["figures"]
    assert recorded["requests"] == 70 and recorded["dropped"] == 0  # 50 of them to warm up
    assert recorded["bytes"] > 70 * 32 * 32 * 3 / 4  # with the images, which are noise
    figures = rows[-1]["figures"]
    assert figures["frames"] == sum(figures[name] for name in ("refused", "answered", "closed")) == 100
    assert figures["without_reason"] == figures["witness_differing"] == 0 and figures["peers_that_stayed"] == []
    text = (tmp_path / "results" / "serve.md").read_text()
    assert text.count("## ") == 6 and "| 2 sessions at 5 Hz, 1 s, batches of up to 1 | 10 |" in text


def test_a_wake_up_is_measured_as_often_as_wanted():
    took_ms = wake_ups(20, idle_s=0.001)
    assert took_ms.shape == (20,) and (took_ms > 0).all()


def test_a_part_that_is_none_is_one_line(capsys, tmp_path):
    status, _, printed = embodied(capsys, "bench", "serve", "serve.parts=[lode]", f"run_root={tmp_path}")
    assert status == 2 and "the name of a part; found 'lode'; did you mean 'load'" in printed


@pytest.mark.parametrize(
    "load_words",
    ["{sessions: 8, rate_hz: 50}", "{sessions: 8, rate_hz: 0, seconds: 1}", "{sessions: 8, rate: 5, seconds: 1}"],
)
def test_a_load_says_how_many_sessions_at_what_rate_for_how_long(capsys, tmp_path, load_words):
    status, _, printed = embodied(capsys, "bench", "serve", f"serve.loads=[{load_words}]", f"run_root={tmp_path}")
    assert (
        status == 2 and "a load of serve.loads as sessions, rate_hz, seconds, all above 0; found {'sessions'" in printed
    )
    assert "for example {sessions: 8, rate_hz: 50, seconds: 600}" in printed


def test_a_load_asks_at_its_rate_and_its_trace_is_replayed_request_by_request():
    policy = toy_policy({**SDP, "history": 1})
    with served(policy) as server:
        trace = load(server.address, message(), 3, 10.0, 1.0)
    assert len(trace) == 30 and [row.session for row in trace[:3]] == [0, 1, 2]
    apart_s = np.diff([row.sent_s for row in trace if row.session == 1])
    assert np.median(apart_s) == pytest.approx(0.1, abs=0.02)
    observation = Observation({"point": np.zeros(2, np.float32), "goal": np.ones(2, np.float32)})
    took_ms = replayed(policy, observation, trace)
    assert len(took_ms) == 30 and min(took_ms) > 0


def test_a_replay_that_is_overrun_waits_in_line():
    class Slow:
        history, action_steps, inference_delay, label = 1, 4, 0, "slow"
        spec = toy_policy({**SDP, "history": 1}).spec

        def initial_state(self, seed):
            return None

        def step(self, histories, states, executed):
            import time

            time.sleep(0.05)
            return [None], [None]

    trace = [SentRequest(index, 0.0, 0.0, False, False) for index in range(4)]
    took_ms = replayed(Slow(), Observation({}), trace)
    assert took_ms == sorted(took_ms) and took_ms[3] >= 200
    assert missed_share(took_ms, 120.0) >= 0.5


def test_memory_is_read_after_a_tenth_and_at_the_end():
    readings = iter([10 * 2**20, 12 * 2**20])
    done = []
    with served() as server:
        from embodied import wire

        found = soak(server.address, wire.pack(message()), 200, lambda: next(readings), done.append)
    assert found["growth_mb"] == 2.0 and found["before_mb"] == 10.0 and sum(done) <= 200


def test_percentiles_of_known_values():
    assert percentiles(np.arange(101)) == {"n": 101, "p50": 50.0, "p99": 99.0}
