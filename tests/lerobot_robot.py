"""A simulated robot of LeRobot's kind, driven by LeRobot's own async robot client: run as a program of its own.

python lerobot_robot.py ADDRESS CONTROL_STEPS_A_SECOND START  ->  one line of JSON
"""

from __future__ import annotations

import json
import sys
import threading
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


class PointRobot(Robot):
    """`ReachTask` with a motor an element, and a camera that nobody looks at."""

    config_class, name = PointRobotConfig, "point"
    motors = ("x", "y", "goal_x", "goal_y")

    def __init__(self, config):
        super().__init__(config)
        self.task = ReachTask(horizon=10_000)
        self.seen = self.task.reset(config.start)
        self.commands, self.success, self.is_connected_now = [], False, False

    @property
    def observation_features(self):
        return {**{f"{motor}.pos": float for motor in self.motors}, "front": (48, 64, 3)}

    @property
    def action_features(self):
        return {f"{name}.pos": float for name in ("dx", "dy", "grip")}

    def get_observation(self):
        values = np.concatenate([self.seen.state["point"], self.seen.state["goal"]])
        motors = {f"{motor}.pos": float(value) for motor, value in zip(self.motors, values, strict=True)}
        return {**motors, "front": np.full((48, 64, 3), 7, np.uint8)}

    def send_action(self, action):
        self.commands.append([action[name] for name in self.action_features])
        step = self.task.step(np.array(self.commands[-1], np.float32))
        self.seen, self.success = step.observation, self.success or step.info["success"]
        return action

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
        robot=PointRobotConfig(start=start),
        actions_per_chunk=4,
        task="reach the goal",
        server_address=address,
        chunk_size_threshold=0.0,
        fps=fps,
        aggregate_fn_name="latest_only",
    )
    client = RobotClient(config)
    assert client.start(), "the server refused the stock client"
    client.robot.get_observation()
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
