"""`python toy_collection.py STORE EPISODES WORKERS`: the toy task, collected by processes that tests can kill."""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

from toy_specs import ReachExpert, ReachTask, toy_settings

from embodied import catalog
from embodied.collection import collect, on_processes
from embodied.datasets.episode_store import EpisodeStore

STEP_S = 0.002  # so that a kill can come in the middle of an episode
HANGS = "TOY_HANGS"  # in the environment: a folder; start 5 hangs while it has no file


class SlowReachTask(ReachTask):
    def reset(self, start_id):
        self._hangs = start_id == 5 and HANGS in os.environ and not any(Path(os.environ[HANGS]).iterdir())
        return super().reset(start_id)

    def step(self, action):
        if self._hangs:
            Path(os.environ[HANGS], "hung").touch()
            time.sleep(3600)
        time.sleep(STEP_S)
        return super().step(action)


def register() -> None:
    catalog.TASKS["toy/reach"] = f"{__name__}:SlowReachTask"
    catalog.EXPERTS["toy/reach"] = f"{ReachExpert.__module__}:ReachExpert"


if __name__ in ("__main__", "__mp_main__"):  # the worker processes import this file, too
    register()


def in_catalog(make_recorder):
    """The recorder, in a process of somebody else's that does not know the toy task yet."""
    register()
    return make_recorder()


def main(path: Path, episodes: int, workers: int) -> None:
    settings = toy_settings(episodes=episodes)
    plan = {"expected_episodes": episodes, "provenance": {"collection": vars(settings)}}
    with EpisodeStore.create(path, SlowReachTask().spec, **plan) as store:
        engine = functools.partial(on_processes, workers=workers)
        collect(store, {"name": "toy/reach"}, settings, engine, lambda store: None, hang_after_s=0.5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
