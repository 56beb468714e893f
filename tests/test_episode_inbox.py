"""The inbox of a store: whole episodes, from many processes, or none."""

from __future__ import annotations

import dataclasses
import logging
from multiprocessing import get_context

import numpy as np
import pytest
from made_episodes import SPEC, assert_same_episode, make_episode

from embodied.datasets.episode_inbox import FOLDER, EpisodeInbox
from embodied.errors import UserError


@pytest.fixture
def inbox(tmp_path):
    return EpisodeInbox(tmp_path, SPEC)


def test_an_episode_comes_back_as_it_was_put(inbox):
    for seed, physics_size in ((3, 5), (4, 0)):
        episode = make_episode(seed, physics_size=physics_size)
        inbox.put(episode)
        taken = inbox.take(seed)
        assert_same_episode(taken, episode)
        assert (taken.task, taken.seed, taken.variant) == (episode.task, seed, "base")
        assert (taken.instruction, taken.provenance) == (episode.instruction, episode.provenance)


def test_what_was_never_put_or_was_discarded_is_not_there(inbox, tmp_path):
    assert inbox.take(3) is None
    inbox.put(make_episode(3))
    assert inbox.take(3, variant="dark") is None
    inbox.discard(3)
    inbox.discard(3)
    assert inbox.take(3) is None
    inbox.put(make_episode(3))
    inbox.close()
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("damage", ["truncated", "bits", "not one", "no metadata"])
def test_a_damaged_file_counts_as_never_put(inbox, tmp_path, caplog, damage):
    inbox.put(make_episode(3))
    (path,) = (tmp_path / FOLDER).iterdir()
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-9:]
    elif damage == "bits":
        content[-5] ^= 4
    elif damage == "not one":
        content = bytearray(b"episode")
    else:
        content = content.replace(b'"episode"', b'"epizode"')
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert inbox.take(3) is None
    assert "is damaged" in caplog.text and not path.exists()


def test_an_episode_that_a_store_would_refuse_is_not_put(inbox, tmp_path):
    episode = make_episode(3)
    broken = episode.action.copy()
    broken[1, 0] = np.nan
    with pytest.raises(UserError, match="finite values of 'action' in the episode of seed 3; found nan at step 1"):
        inbox.put(dataclasses.replace(episode, action=broken))
    assert not (tmp_path / FOLDER).exists()


def _put(folder, seeds):
    for seed in seeds:
        EpisodeInbox(folder, SPEC).put(make_episode(seed))


def test_many_processes_put_at_once(inbox, tmp_path):
    context = get_context("spawn")
    processes = [context.Process(target=_put, args=(tmp_path, range(first, 20, 2))) for first in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for seed in range(20):
        assert_same_episode(inbox.take(seed), make_episode(seed))
