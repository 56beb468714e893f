"""Write conf/task/metaworld: one configuration for each environment of the installed Meta-World package.

python tools/metaworld_configs.py
"""

from __future__ import annotations

from pathlib import Path

from embodied.sim.metaworld_world import environment_names

FOLDER = Path(__file__).parents[1] / "conf" / "task" / "metaworld"


def file_name(environment: str) -> str:
    return f"{environment}.yaml"


def config_text(environment: str) -> str:
    """The configuration; the instruction is the environment's name in words."""
    instruction = environment.rpartition("-v")[0].replace("-", " ")
    return f"""# Written by tools/metaworld_configs.py.
name: metaworld/${{.environment}}
environment: {environment}
instruction: {instruction}
horizon: 200  # control steps of one episode, at 80 Hz; at most 500
cameras: []  # for example [corner2, gripperPOV]; needs OpenGL
camera_size: 96  # pixels, both sides
"""


def main() -> None:
    for stale in FOLDER.glob("*.yaml"):
        stale.unlink()
    for environment in environment_names():
        (FOLDER / file_name(environment)).write_text(config_text(environment), encoding="utf-8")


if __name__ == "__main__":
    main()
