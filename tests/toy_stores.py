"""Episode stores of the toy task."""

import dataclasses

from toy_specs import toy_spec

from embodied.datasets.episode_store import EpisodeStore


def make_store(path, episodes, spec=None, complete=True):
    """`episodes` as those of the task of `spec`, or the toy task's; `complete` or with one still to come."""
    spec = toy_spec() if spec is None else spec
    planned = len(episodes) + (not complete)
    with EpisodeStore.create(path, spec, expected_episodes=planned, provenance={}) as store:
        for episode in episodes:
            store.commit(dataclasses.replace(episode, task=spec.task))
    return path
