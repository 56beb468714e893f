"""Stores from which a committed episode was dropped: what is kept reads as if the other had never been."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from made_episodes import assert_same_episode, make_episode

from embodied.datasets import episode_layout
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.manifest import DroppedRow, Manifest
from embodied.datasets.window_sampler import WindowSampler
from embodied.errors import UserError


def drop_committed(folder: Path, *seeds: int, next_start: int | None = None) -> None:
    manifest = Manifest(folder / "manifest.jsonl")
    for seed in seeds:
        manifest.append(DroppedRow(seed, "damaged", "base", episode=f"base-{seed:08d}", next_start=next_start))


@pytest.fixture(params=[(2,), (0,), (5,), (0, 1, 4)], ids=str)
def dropped(request):
    return request.param


def test_what_is_kept_reads_as_if_the_other_had_never_been(make_store, tmp_path, dropped, monkeypatch):
    monkeypatch.setattr(episode_layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(episode_layout, "SHARD_BYTES", 64)  # several blocks
    folder = make_store(6)
    drop_committed(folder, *dropped)
    kept = [seed for seed in range(6) if seed not in dropped]
    with EpisodeStore.create(
        tmp_path / "kept.zarr", EpisodeStore.open(folder).spec, expected_episodes=6, provenance={}
    ) as reference:
        for seed in kept:
            reference.commit(make_episode(seed))
    store = EpisodeStore.open(folder)
    assert store.ignored == ()
    assert [row.seed for row in store.rows] == kept
    assert [row.seed for row in store.dropped] == list(dropped)
    assert store.attempted_seeds == set(range(6))
    assert not store.is_complete
    assert store.total_steps == reference.total_steps
    assert store.content_hash() == reference.content_hash()
    np.testing.assert_array_equal(store.episode_ends, reference.episode_ends)
    for key in store.keys:
        whole = reference.read(key)
        np.testing.assert_array_equal(store.read(key), whole)
        for start in range(0, store.total_steps, 3):
            np.testing.assert_array_equal(store.read_rows(key, start, start + 7), whole[start : start + 7])
        for rows in (np.arange(0, store.total_steps, 2), np.array([1, store.total_steps - 1])):
            np.testing.assert_array_equal(store.read_at(key, rows), whole[rows], strict=True)
        np.testing.assert_array_equal(store.statistics([key])[key].maximum, reference.statistics([key])[key].maximum)
    for index, seed in enumerate(kept):
        assert_same_episode(store.episode(index, verify=True), make_episode(seed))
    windows = [WindowSampler.from_store(each, history=2, horizon=4) for each in (store, reference)]
    np.testing.assert_array_equal(*(each.gather(np.arange(len(each))).action for each in windows))


def test_a_writer_goes_on_behind_what_was_dropped(make_store, dropped):
    folder = make_store(6, expected=7)
    drop_committed(folder, *dropped, next_start=40)
    with EpisodeStore.open(folder, writable=True) as store:
        with pytest.raises(UserError, match=f"found seed {dropped[0]} again"):
            store.commit(make_episode(dropped[0]))
        assert store.commit(make_episode(6)).start == 40
    store = EpisodeStore.open(folder)
    assert_same_episode(store.episode(len(store) - 1, verify=True), make_episode(6))
    assert store.episode_ends[-1] == store.total_steps
    np.testing.assert_array_equal(store.read("action")[-9:], make_episode(6).action)


def test_an_episode_is_dropped_only_after_it_was_committed(make_store):
    folder = make_store(2)
    with (folder / "manifest.jsonl").open("ab") as file:
        file.write(json.dumps(asdict(DroppedRow(9, "damaged", "base", episode="base-00000009"))).encode() + b"\n")
    with pytest.raises(UserError, match="line 3 that drops episode base-00000009, which no line before it commits"):
        EpisodeStore.open(folder)


def as_version_1(folder: Path) -> None:
    """What this store would be had the first version written it."""
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"]["version"] = 1
    (folder / "zarr.json").write_text(json.dumps(metadata))
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("checksums", "episode", "next_start"):
            row.pop(name, None)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_store_of_the_first_version_is_read_and_continued(make_store):
    folder = make_store(2, expected=4)
    with EpisodeStore.open(folder, writable=True) as store:
        store.drop(2, "no success")
        content = store.content_hash()
    as_version_1(folder)
    assert EpisodeStore.open(folder).content_hash() == content
    EpisodeStore.open(folder, writable=True).close()
    assert json.loads((folder / "zarr.json").read_text())["attributes"]["version"] == 1
    with EpisodeStore.open(folder, writable=True) as store:
        store.commit(make_episode(3))
    assert json.loads((folder / "zarr.json").read_text())["attributes"]["version"] == 2
    store = EpisodeStore.open(folder)
    assert store.rows[0].checksums == {} and store.rows[2].checksums.keys() == set(store.keys)
    for index, seed in enumerate((0, 1, 3)):
        assert_same_episode(store.episode(index, verify=True), make_episode(seed))
