"""Classes of the names and fields of LeRobot's messages, so that pickles name what its own would.

LeRobot takes long to import; `lerobot_robot.py` is where its own classes are.
"""

from __future__ import annotations

import contextlib
import sys
import types
from dataclasses import dataclass, field

HELPERS = "lerobot.async_inference.helpers"


@dataclass
class TimedData:
    timestamp: float
    timestep: int


@dataclass
class TimedAction(TimedData):
    action: object


@dataclass
class TimedObservation(TimedData):
    observation: dict
    must_go: bool = False


@dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict = field(default_factory=dict)


@contextlib.contextmanager
def lerobots_names():
    """Inside, these classes are what pickle finds under LeRobot's names."""
    module = types.ModuleType(HELPERS)
    classes = (TimedAction, TimedObservation, RemotePolicyConfig)
    for cls in classes:
        cls.__module__ = HELPERS
        setattr(module, cls.__name__, cls)
    stand_ins = {name: types.ModuleType(name) for name in ("lerobot", "lerobot.async_inference")} | {HELPERS: module}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, found in before.items():
            if found is None:
                del sys.modules[name]
            else:
                sys.modules[name] = found
