"""A robot whose computer has openpi's client, unmodified, and nothing of ours.

Runs in an environment of its own (numpy below 2). Reads observations and writes actions, one JSON object a line:
python openpi_robot.py PORT [KEY]
"""

import base64
import json
import sys

import numpy as np
from openpi_client import action_chunk_broker, websocket_client_policy
from openpi_client.runtime.agents import policy_agent


def decoded(value):
    """Arrays come as base64, everything else as it is."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "base64" not in value:
        return {key: decoded(item) for key, item in value.items()}
    data = base64.b64decode(value["base64"])
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def say(message):
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(port, key=None):
    policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", int(port), api_key=key)
    metadata = policy.get_server_metadata()
    agent = policy_agent.PolicyAgent(action_chunk_broker.ActionChunkBroker(policy, metadata["action_steps"]))
    say({name: metadata[name] for name in ("name", "policy", "action_steps", "history")} | {"numpy": np.__version__})
    for line in sys.stdin:
        observation = decoded(json.loads(line))
        if observation == "reset":
            agent.reset()
            continue
        try:
            answer = agent.get_action(observation)
        except RuntimeError as error:
            say({"error": str(error)})
        else:
            answer["actions"] = answer["actions"].tolist()
            say(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
