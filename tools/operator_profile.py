"""Where ONNX Runtime spends the time of an observation: its operators by kind, and the program beside eager PyTorch.

python tools/operator_profile.py [network] [policy]        transformer_small sdp, for example
"""

from __future__ import annotations

import collections
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from embodied.commands.latency_cells import LatencyCell, built_policy
from embodied.policies.engines.onnx_export import export_onnx
from embodied.policies.exported_programs import ExportedProgram, exported_programs

RUNS = 500


def operator_times(model: bytes, inputs: dict[str, np.ndarray], folder: Path) -> dict[str, tuple[float, float]]:
    """By kind of operator: microseconds and number a run, of `RUNS` runs with ONNX Runtime's own profiler."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    times, counts = collections.Counter(), collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
            counts[event["args"]["op_name"]] += 1
    return {name: (total / RUNS, counts[name] / RUNS) for name, total in times.most_common()}


def median_us(work: Callable[[], object]) -> float:
    samples = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        work()
        samples.append(1e6 * (time.perf_counter() - begun))
    return float(np.median(samples[RUNS // 10 :]))


def profiled(program: ExportedProgram) -> Table:
    inputs = tuple(program.inputs.values())
    file = io.BytesIO()
    export_onnx(program.module, inputs, file, list(program.inputs), program.outputs)
    arrays = {name: x.numpy() for name, x in program.inputs.items()}
    with tempfile.TemporaryDirectory() as folder:
        times = operator_times(file.getvalue(), arrays, Path(folder))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        eager = median_us(lambda: program.module(*inputs))
    whole = median_us(lambda: session.run(None, arrays))
    title = f"{program.name}: {whole:.0f} us on ONNX Runtime, {eager:.0f} us in eager PyTorch"
    table = Table("operator", "us a run, with the profiler on", "a run", title=title)
    for name, (duration, count) in times.items():
        table.add_row(name, f"{duration:.1f}", f"{count:.0f}")
    return table


def main(network: str = "transformer_small", policy: str = "sdp") -> None:
    torch.set_num_threads(1)
    cell = LatencyCell(
        network, policy, {}, "eager", state_size=32, action_size=7, observations=1, threads=1, device="cpu"
    )
    for program in exported_programs(built_policy(cell)):
        Console().print(profiled(program))


if __name__ == "__main__":
    main(*sys.argv[1:])
