"""`python toy_collection.py STORE EPISODES WORKERS`: the toy task, collected by processes that tests can kill."""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path

from toy_specs import ReachExpert, ReachTask, toy_settings

from embodied import catalog
from embodied.collection import collect, on_processes
from embodied.datasets.episode_store import EpisodeStore

STEP_S = 0.002  # so that a kill can come in the middle of an episode


class SlowReachTask(ReachTask):
    def step(self, action):
        time.sleep(STEP_S)
        return super().step(action)


# At import: the worker processes import this file, too.
catalog.TASKS["toy/reach"] = f"{__name__}:SlowReachTask"
catalog.EXPERTS["toy/reach"] = f"{ReachExpert.__module__}:ReachExpert"


def in_catalog(make_recorder):
    """The recorder, in a process that came to know the toy task by importing this file."""
    return make_recorder()


def main(path: Path, episodes: int, workers: int) -> None:
    settings = toy_settings(episodes=episodes)
    plan = {"expected_episodes": episodes, "provenance": {"collection": vars(settings)}}
    with EpisodeStore.create(path, SlowReachTask().spec, **plan) as store:
        collect(
            store, {"name": "toy/reach"}, settings, functools.partial(on_processes, workers=workers), lambda store: None
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
