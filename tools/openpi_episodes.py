"""Episodes of a checkpoint's task, driven through openpi's unmodified client by a server that runs already.

embodied serve RUN refusals=text &
python tools/openpi_episodes.py RUN --openpi-python OPENPI_VENV/bin/python --episodes 5
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from embodied.catalog import make_task
from embodied.policies.policy_file import read_description
from embodied.training.checkpoint import find_checkpoint
from embodied.types import Observation

ROBOT = Path(__file__).with_name("openpi_robot.py")


class OpenpiRobot:
    """The process with openpi's client."""

    def __init__(self, python: str | Path, port: int, key: str = "") -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(python), str(ROBOT), str(port), *([key] if key else [])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.greeting = self._heard()

    def reset(self) -> None:
        """As its user does between episodes: it never reaches the server."""
        self._say("reset")

    def ask(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What `PolicyAgent.get_action` returned, or the `error` that it raised."""
        self._say(_encoded(observation))
        return self._heard()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)

    def _say(self, message: object) -> None:
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _heard(self) -> dict[str, Any]:
        return json.loads(self._process.stdout.readline())


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value)).decode()
        return {"base64": data, "dtype": value.dtype.str, "shape": value.shape}
    if isinstance(value, dict):
        return {key: _encoded(item) for key, item in value.items()}
    return [_encoded(item) for item in value] if isinstance(value, list) else value


def as_message(observation: Observation) -> dict[str, Any]:
    """By the names of our specs."""
    states = {f"state/{name}": value for name, value in observation.state.items()}
    images = {f"images/{name}": value for name, value in observation.images.items()}
    return {**states, **images, "prompt": observation.instruction}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--openpi-python", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--first-start", type=int, default=100_000)
    words = parser.parse_args()
    task = make_task(read_description(find_checkpoint(words.run)).task)
    robot = OpenpiRobot(words.openpi_python, words.port)
    sys.stdout.write(f"{robot.greeting}\n")
    successes = 0
    for start in range(words.first_start, words.first_start + words.episodes):
        robot.reset()
        observation = before = task.reset(start)
        stale = 0
        while True:
            # `earlier` is for policies that see a history; `episode_id` says what openpi's reset() does not.
            about = {"time_s": observation.time_s, "episode_id": start, "deadline_s": 10.0}
            answer = robot.ask({**as_message(observation), "earlier": [as_message(before)], **about})
            if "error" in answer:
                sys.exit(answer["error"])
            stale += answer["stale"]
            before = observation
            step = task.step(np.asarray(answer["actions"], np.float32))
            observation = step.observation
            if step.truncated or step.terminated:
                break
        successes += step.info["success_ever"]
        line = f"start {start}: success {step.info['success_ever']}, stale answers {stale}, {answer['server_timing']}"
        sys.stdout.write(line + "\n")
    task.close()
    robot.close()
    sys.stdout.write(f"{successes}/{words.episodes}\n")


if __name__ == "__main__":
    main()
