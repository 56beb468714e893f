"""A teacher that comes as a TorchScript file, which brings its own code: load only files that you trust."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch

from embodied.policies.teacher import StateTeacher, wrong_kind


class TorchScriptTeacher(StateTeacher):
    """A module that maps float32 [1 S] to [1 A]; runs on the CPU, in evaluation mode."""

    def _load(self, path: Path) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have torch.export
                self._module = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise wrong_kind(path, "a TorchScript file", error) from error
        try:
            answer = self.predict(np.zeros(self._state.size, np.float32))
        except (RuntimeError, TypeError) as error:
            raise self._wrong_sizes(f"a module that refuses {[1, self._state.size]} ({_reason(error)})") from error
        self._require_sizes(self._state.size, answer.size, f"an answer of {answer.size} values")

    @torch.inference_mode()
    def predict(self, state_S: np.ndarray) -> np.ndarray:
        answer = self._module(torch.from_numpy(state_S)[None])
        if not isinstance(answer, torch.Tensor):
            raise TypeError(f"it returns a {type(answer).__name__}, not a tensor")
        return answer.reshape(-1).numpy()


def _reason(error: Exception) -> str:
    """TorchScript puts the reason last, below a trace of its code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
