"""A simulated robot of LeRobot's kind, driven by LeRobot's own async robot client: run as a program of its own.

python lerobot_robot.py ADDRESS CONTROL_STEPS_A_SECOND START  ->  one line of JSON
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.async_inference.robot_client import RobotClient
from lerobot.robots import Robot, RobotConfig
from toy_specs import ReachTask


@RobotConfig.register_subclass("point")
@dataclass
class PointRobotConfig(RobotConfig):
    start: int = 0
    period_s: float = 0.05


class PointRobot(Robot):
    """`ReachTask` with a motor an element, and a camera that nobody looks at."""

    config_class, name = PointRobotConfig, "point"
    motors = ("x", "y", "goal_x", "goal_y")

    def __init__(self, config):
        super().__init__(config)
        self.task = ReachTask(horizon=10_000)
        self.seen = self.task.reset(config.start)
        self.commands, self.success, self.is_connected_now = [], False, False
        self.period_s, self.running, self.sent_s = config.period_s, None, 0.0

    @property
    def observation_features(self):
        return {**{f"{motor}.pos": float for motor in self.motors}, "front": (48, 64, 3)}

    @property
    def action_features(self):
        return {f"{name}.pos": float for name in ("dx", "dy", "grip")}

    def get_observation(self):
        self.finish()
        values = np.concatenate([self.seen.state["point"], self.seen.state["goal"]])
        motors = {f"{motor}.pos": float(value) for motor, value in zip(self.motors, values, strict=True)}
        return {**motors, "front": np.full((48, 64, 3), 7, np.uint8)}

    def send_action(self, action):
        self.finish()
        self.commands.append([action[name] for name in self.action_features])
        self.running, self.sent_s = np.array(self.commands[-1], np.float32), time.monotonic()
        return action

    def finish(self):
        """A command takes a control period: what is observed in the same control step does not show it yet."""
        if self.running is not None and time.monotonic() - self.sent_s > self.period_s / 2:
            step = self.task.step(self.running)
            self.seen, self.success, self.running = step.observation, self.success or step.info["success"], None

    def connect(self, calibrate=True):
        self.is_connected_now = True

    def disconnect(self):
        self.is_connected_now = False

    def calibrate(self):
        pass

    def configure(self):
        pass

    @property
    def is_connected(self):
        return self.is_connected_now

    @property
    def is_calibrated(self):
        return True


def main(address: str, fps: int, start: int) -> None:
    config = RobotClientConfig(
        policy_type="act",
        pretrained_name_or_path="/another/policy/that/is/not/loaded",
        robot=PointRobotConfig(start=start, period_s=1 / fps),
        actions_per_chunk=4,
        task="reach the goal",
        server_address=address,
        chunk_size_threshold=0.0,
        fps=fps,
        aggregate_fn_name="latest_only",
    )
    client = RobotClient(config)
    assert client.start(), "the server refused the stock client"
    receiver = threading.Thread(target=client.receive_actions, daemon=True)
    receiver.start()
    threading.Timer(12.0, client.shutdown_event.set).start()

    def ends_with_success():
        while client.running and not client.robot.success:
            threading.Event().wait(0.02)
        client.shutdown_event.set()

    threading.Thread(target=ends_with_success, daemon=True).start()
    client.control_loop(task=config.task)
    commands, success = client.robot.commands, client.robot.success
    client.stop()
    sys.stdout.write(json.dumps({"success": success, "commands": commands}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
