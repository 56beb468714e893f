"""CUDA graphs: the program's kernels are recorded once a batch size and launched together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embodied.errors import MisfitError
from embodied.policies.engines.engine import Program, cannot_run, checked_parity

WARM_UP = 3  # runs before the recording, as torch.cuda.graph asks for


class CudaGraphEngine:
    """For small networks on a GPU, where launching kernels takes longer than running them."""

    name = "cuda_graph"

    def compile(self, module: nn.Module, inputs: Sequence[Tensor]) -> Program:
        if not torch.cuda.is_available() or any(x.device.type != "cuda" for x in inputs):
            raise MisfitError(
                expected="a policy on a CUDA device for policy.engine=cuda_graph",
                found=f"one on {inputs[0].device.type}" if torch.cuda.is_available() else "no CUDA device",
                remedy="use policy.engine=onnxruntime or compile on a CPU",
            )
        program = _GraphProgram(module)
        try:
            checked_parity(self.name, module, program, inputs)
        except RuntimeError as error:  # it cannot be captured: a wait for the device, another stream, too little memory
            raise cannot_run(self.name, module, error) from error
        return program


class _GraphProgram:
    """One recorded graph a batch size; inputs are copied into its own memory, outputs out of it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(inputs)
        graph, own_inputs, own_outputs = self._graphs[shapes]
        for own, x in zip(own_inputs, inputs, strict=True):
            own.copy_(x, non_blocking=True)
        graph.replay()
        return tuple(x.clone() for x in own_outputs)

    def _record(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], tuple[Tensor, ...]]:
        own_inputs = [x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._module(*own_inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._module(*own_inputs)
        return graph, own_inputs, outputs
