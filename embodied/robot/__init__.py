"""The robot's side of a policy server. Needs numpy, msgpack and websockets alone."""
