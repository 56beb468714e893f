"""Ways to damage a store on the disk, and `embodied data` on it as a user would call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zarr
from made_episodes import make_episode

from embodied.commands.data import run as run_command
from embodied.configuration import check, quote
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import FaultsFound
from embodied.summaries import validate_summary
from embodied.types import Json


def data(what: str, store: Path, **settings: Any) -> Json:
    """Run a verb beside the store, and return its checked summary."""
    words = [f"what={what}", f"store={quote(str(store))}", f"run_root={quote(str(store.parent / 'outputs'))}"]
    try:
        path = run_command(check("data", words + [f"{key}={str(value).lower()}" for key, value in settings.items()]))
    except FaultsFound as found:
        path = found.summary
        assert not json.loads(path.read_text())["sound"]
    summary = json.loads(path.read_text())
    validate_summary("data", summary)
    return summary


def faults(store: Path) -> list[tuple]:
    """Kind, episode, key and files of each fault that `verify` finds."""
    found = data("verify", store)["faults"]
    return [(fault["kind"], fault["episode"], fault["key"], *fault["files"]) for fault in found]


def flip(file: Path, place: int = 100, bit: int = 2) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def set_value(store: Path, key: str, place: tuple, value: float) -> None:
    zarr.open_array(store / "data" / key, mode="r+")[place] = value


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_line(store: Path, number: int, **changes: Any) -> None:
    """Change values of a line of the manifest, counted from 1."""
    file = store / "manifest.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = json.dumps({**json.loads(lines[number - 1]), **changes})
    file.write_text("".join(f"{line}\n" for line in lines))


def abandon(store: Path, *seeds: int, in_flight: int) -> None:
    """Commit episodes as a writer that is killed in a last one, before its line is in the manifest."""
    writer = EpisodeStore.open(store, writable=True)
    for seed in seeds:
        writer.commit(make_episode(seed))
    manifest = (store / "manifest.jsonl").read_bytes()
    writer.commit(make_episode(in_flight))
    assert writer._lock is not None
    writer._lock.release()
    (store / "manifest.jsonl").write_bytes(manifest)


@pytest.fixture
def small_shards(monkeypatch):
    """Several files an array."""
    from embodied.datasets import episode_layout

    monkeypatch.setattr(episode_layout, "CHUNK_ROWS", 4)
    monkeypatch.setattr(episode_layout, "SHARD_BYTES", 64)
    monkeypatch.setattr(episode_layout, "IMAGE_SHARD_BYTES", 1)
