"""Runs in an environment of its own with openpi's client, unmodified, from the package index; imports nothing of ours.

Prints what it saw as one JSON object: python openpi_robot.py PORT REQUESTS KEY
"""

import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, websocket_client_policy
from openpi_client.runtime.agents import policy_agent


def main(port: int, requests: int, key: str) -> dict:
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key=key or None)
    metadata = policy.get_server_metadata()
    steps = metadata["action_steps"]
    agent = policy_agent.PolicyAgent(action_chunk_broker.ActionChunkBroker(policy, action_horizon=steps))
    agent.reset()
    point, goal, dt_s = np.zeros(2, np.float32), np.array([0.5, -0.5], np.float32), 1 / metadata["control_hz"]
    executed, stale = [], 0
    for step in range(requests * steps):
        observation = {"state/point": point, "state/goal": goal, "prompt": "reach", "time_s": step * dt_s}
        answer = agent.get_action(observation)
        stale += answer["stale"]
        executed.append(answer["actions"].tolist())
        point = (point + 0.1 * np.clip(answer["actions"][:2], -1, 1)).astype(np.float32)
    try:
        policy.infer({"state/point": np.zeros(5, np.float32)})
        refused = None
    except RuntimeError as error:
        refused = str(error)
    after = policy.infer({"state/point": point, "state/goal": goal})
    return {
        "metadata": {name: metadata[name] for name in ("name", "action_steps", "control_hz")},
        "numpy": np.__version__,
        "executed": executed,
        "stale": stale,
        "timing": {name: after[name] for name in ("server_timing", "policy_timing")},
        "refused": refused,
        "answered_after_the_refusal": after["actions"].shape[0],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
