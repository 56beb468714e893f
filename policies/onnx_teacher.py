"""A teacher that comes as an ONNX file, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embodied.errors import UserError
from embodied.policies.teacher import StateTeacher, wrong_kind


class OnnxTeacher(StateTeacher):
    """A graph of one input, float32 [1 S], whose first output is [1 A]."""

    def _load(self, path: Path) -> None:
        runtime = _import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a process a core: threads would fight
        options.log_severity_level = 4  # errors arrive as exceptions
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a dozen kinds without a common parent
            raise wrong_kind(path, "an ONNX file", error) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise self._wrong_sizes(f"inputs {found}")
        self._input, self._output = inputs[0].name, self._session.get_outputs()[0].name
        try:
            answer = self.predict(np.zeros(self._state.size, np.float32))
        except Exception as error:
            raise self._wrong_sizes(f"an input of shape {inputs[0].shape}") from error
        self._require_sizes(self._state.size, answer.size, f"an answer of {answer.size} values")

    def predict(self, state_S: np.ndarray) -> np.ndarray:
        (answer,) = self._session.run([self._output], {self._input: state_S[None]})
        return np.asarray(answer).reshape(-1)


def _import_onnxruntime():
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise UserError(
            expected="onnxruntime, which runs teachers that come as ONNX files",
            found=str(error),
            remedy="pip install 'embodied-policies[tasks]'",
        ) from error
    return onnxruntime
