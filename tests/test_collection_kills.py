"""Collection whose processes are killed at random points: nothing committed is lost, doubled or torn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from toy_collection import HANGS

from embodied.benchmarks.collection_kills import CommittedEpisodes, collect_under_kills
from embodied.datasets.episode_inbox import FOLDER
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.manifest import MANIFEST_NAME
from embodied.errors import UserError

SCRIPT = Path(__file__).with_name("toy_collection.py")


def command(store: Path, episodes: int, workers: int = 2) -> list[str]:
    return [sys.executable, str(SCRIPT), str(store), str(episodes), str(workers)]


@pytest.mark.parametrize(("kills", "episodes"), [(3, 24), pytest.param(10, 60, marks=pytest.mark.heavy)])
def test_kills_leave_what_nobody_had_disturbed(tmp_path, kills, episodes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, episodes, workers=0), check=True, capture_output=True)
    committed = CommittedEpisodes(killed)
    # Of this seed the first three victims are of both kinds.
    counts = collect_under_kills(
        command(killed, episodes), committed.grew, kills=kills, longest_wait_s=0.3, seed=1, log=tmp_path / "log"
    )
    # On a machine that is busy with other things the collection may end before the last kill.
    assert counts.committers and counts.workers and counts.committers + counts.workers <= kills
    assert counts.starts == counts.committers + 1
    expected, store = EpisodeStore.open(whole), EpisodeStore.open(killed)
    assert [row.seed for row in store.rows] == [row.seed for row in expected.rows]
    for index in range(len(store)):
        store.episode(index, verify=True)
    assert store.content_hash() == expected.content_hash() and not store.ignored
    assert not (killed / FOLDER).exists()
    assert committed.seen <= {row.id for row in store.rows} and not committed.lost and not committed.doubled


def test_episodes_that_go_away_or_come_twice_are_seen(tmp_path):
    path = tmp_path / "store"
    subprocess.run(command(path, 3, workers=0), check=True, capture_output=True)
    lines = (path / MANIFEST_NAME).read_bytes().splitlines(keepends=True)
    committed = CommittedEpisodes(path)
    (path / MANIFEST_NAME).write_bytes(b"".join(lines[:2]))
    assert committed.grew() and not committed.grew()
    (path / MANIFEST_NAME).write_bytes(b"".join([lines[0], *lines[2:], lines[2]]))
    assert committed.grew()
    assert (committed.lost, committed.doubled) == ({"base-00000001"}, {"base-00000002"})


def test_a_process_that_hangs_is_replaced(tmp_path, monkeypatch):
    whole, hung = tmp_path / "whole", tmp_path / "hung"
    subprocess.run(command(whole, 8, workers=0), check=True, capture_output=True)
    monkeypatch.setenv(HANGS, str(tmp_path / "trace"))
    (tmp_path / "trace").mkdir()
    result = subprocess.run(command(hung, 8), check=True, capture_output=True, text=True)
    assert "Timeout" in result.stderr and "in step" in result.stderr  # where it hung
    assert "a simulation process died" in result.stderr
    assert EpisodeStore.open(hung).content_hash() == EpisodeStore.open(whole).content_hash()


def test_a_collection_that_fails_by_itself_is_reported(tmp_path):
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(UserError, match="goes on after its processes were killed; found exit status 3 after 0 kills"):
        collect_under_kills(failing, lambda: False, kills=1, longest_wait_s=0.1, seed=0, log=tmp_path / "log")
