"""Where training figures go: JSON lines in the run directory, and trackers by name through Accelerate."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from embodied.catalog import nearest
from embodied.errors import UserError

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}  # name -> module it needs


def check_loggers(names: Sequence[str]) -> list[str]:
    """The Accelerate trackers among `names`.

    Raises:
        UserError: an unknown name, or a tracker whose package is not installed.
    """
    for name in names:
        if name != "jsonl" and name not in TRACKERS:
            known = ["jsonl", *TRACKERS]
            raise UserError(expected="known names in training.loggers", found=f"'{name}'", remedy=nearest(name, known))
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            raise UserError(
                expected=f"the package '{TRACKERS[name]}' for training.loggers={name}",
                found="it is not installed",
                remedy=f"pip install {TRACKERS[name]}, or drop the logger",
            )
    return [name for name in names if name in TRACKERS]


class JsonLines:
    """A log with one JSON object a line, each with its step."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Lines past `resumed_step` belong to steps that will be trained again: they are dropped."""
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= resumed_step]
        path.write_text("".join(line + "\n" for line in kept))

    def write(self, step: int, figures: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")
