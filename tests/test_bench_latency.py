"""`embodied bench latency`: the table's figures belong together, and what cannot run is a row that says why."""

import pytest
from test_commands import embodied, summary


def bench(capsys, tmp_path, *words):
    return embodied(capsys, "bench", "latency", f"run_root={tmp_path}", *words)


def test_rows_say_what_was_measured_and_what_was_refused(capsys, tmp_path):
    words = ["latency.networks=[transformer_small]", "latency.policies=[{name: sdp, k: 1, initial_calls: 2}]"]
    words += ["latency.engines=[eager,cuda_graph]", "latency.observations=8", "latency.sessions=3"]
    words += [f"results={tmp_path / 'results'}"]
    status, path, printed = bench(capsys, tmp_path, *words)
    assert status == 0, printed
    eager, refused = summary(path)["rows"]
    timings = eager["timings"]
    assert (eager["label"], eager["calls"], eager["refused"]) == ("sdp k=1", 1, None)
    assert timings["observation_ms"]["n"] == 8 and timings["threads"] == 1
    assert timings["observation_ms"]["p50"] <= timings["observation_ms"]["p95"] <= timings["observation_ms"]["p99"]
    share = timings["network_call_ms"]["p50"] / timings["observation_ms"]["p50"]
    assert timings["network_share"] == pytest.approx(share) and timings["memory_mb"] > 0
    assert "found no CUDA device" in refused["refused"] and refused["timings"] == {}
    page = (tmp_path / "results" / "latency.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1 and lines[2].endswith(
        f"| 1.00 | 1.00 | {timings['sessions_ms']['p50']:.2f} |"
    )
    assert "| transformer_small | sdp k=1 | eager | 1 |" in page and "found no CUDA device" in page


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("latency.engines=[onnx]", "'onnx'; did you mean 'onnxruntime'?"),
        ("latency.networks=[transformer]", "file of conf/network; found 'transformer'; did you mean 'transformer_"),
        ("latency.policies=[{name: sdb}]", "file of conf/policy; found 'sdb'; did you mean 'sdp'?"),
        ("latency.threads=999", "latency.threads between 1 and the"),
    ],
)
def test_mistakes_are_one_line(word, message, capsys, tmp_path):
    status, _, printed = bench(capsys, tmp_path, word)
    assert status == 2 and message in printed and "Traceback" not in printed
