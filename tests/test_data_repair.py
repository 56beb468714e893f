"""`embodied data repair`: what was never committed goes, damaged episodes go where asked for, what is sound stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from damaged_stores import abandon, data, edit_json, faults, flip, set_value
from damaged_stores import small_shards as small_shards
from made_episodes import assert_same_episode, fill_store, make_episode, snapshot
from pusht_data import made_arrays, write_zarr_v2

from embodied.datasets import store_repair
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.manifest import Manifest
from embodied.datasets.time_arrays import TimeArrays
from embodied.errors import UserError

MANIFEST = "manifest.jsonl"


@pytest.fixture
def store(make_store) -> Path:
    """Episodes of 3, 4, 5, 6, 7 and 8 steps, seeds 0 to 5."""
    return make_store(6, expected=9)


def name(seed: int) -> str:
    return f"base-{seed:08d}"


def assert_keeps(path: Path, *seeds: int) -> None:
    """The store opens without a remark, and these episodes are in it bit by bit."""
    store = EpisodeStore.open(path)
    assert store.ignored == ()
    assert [row.seed for row in store.rows] == list(seeds)
    for index, seed in enumerate(seeds):
        assert_same_episode(store.episode(index, verify=True), make_episode(seed))


def test_a_sound_store_is_left_as_it_is(store, capsys):
    before = snapshot(store)
    summary = data("repair", store, drop_damaged=True)
    assert summary["sound"] and summary["done"] == []
    assert capsys.readouterr().out.startswith(f"nothing to do; {store} is sound: 6 episodes")
    assert snapshot(store) == before


def crash(store: Path) -> None:
    """All that an interrupted write can leave."""
    abandon(store, 6, in_flight=7)
    (store / "data" / "action" / "zarr.json.partial").write_bytes(b"{")
    shutil.copytree(store / "data" / "action" / "c" / "0", store / "data" / "action" / "c" / "77")
    (store.parent / f".{store.name}.999999999.creating").mkdir()
    (store / "statistics.json").write_text("{")
    with (store / MANIFEST).open("ab") as file:
        file.write(b'{"id": "base-0000')


def test_what_was_never_committed_goes(store, capsys):
    crash(store)
    kinds = {kind for kind, *_ in faults(store)}
    assert kinds == {"tail", "leftover"}
    summary = data("repair", store)
    assert summary["sound"] and len(summary["done"]) == 5 + len(EpisodeStore.open(store).keys)
    printed = capsys.readouterr().out
    assert "removed file manifest.jsonl: the last line, 8, is torn" in printed
    assert "removed key action, file data/action/c/77: data behind the array's end" in printed
    assert faults(store) == []
    assert_keeps(store, 0, 1, 2, 3, 4, 5, 6)
    assert not list(store.rglob("*.partial")) and not list(store.parent.glob("*.creating"))
    assert data("repair", store)["done"] == []
    with EpisodeStore.open(store, writable=True) as writer:
        writer.commit(make_episode(7))
    assert_keeps(store, 0, 1, 2, 3, 4, 5, 6, 7)


def test_damaged_episodes_stay_unless_the_user_wants_them_dropped(store, capsys):
    set_value(store, "executed", (8, 1), 5.0)
    set_value(store, "reward", (30,), float("nan"))
    before = snapshot(store)
    summary = data("repair", store)
    assert not summary["sound"] and summary["done"] == [] and snapshot(store) == before
    assert "2 of 6 episodes are damaged (drop_damaged=true drops them)" in capsys.readouterr().out
    summary = data("repair", store, drop_damaged=True)
    assert summary["sound"]
    assert summary["done"] == [
        f"dropped episode {name(2)} (seed 2, 5 steps): executed: bytes that are not those that were committed",
        f"dropped episode {name(5)} (seed 5, 8 steps): reward: nan at step 5; "
        "reward: bytes that are not those that were committed",
    ]
    after = snapshot(store)
    assert {file for file in after if after[file] != before.get(file)} == {MANIFEST}
    assert after[MANIFEST].startswith(before[MANIFEST])
    assert_keeps(store, 0, 1, 3, 4)
    dropped = EpisodeStore.open(store).dropped
    assert [(row.seed, row.episode) for row in dropped] == [(2, name(2)), (5, name(5))]
    assert dropped[0].reason == "damaged: executed: bytes that are not those that were committed"
    assert faults(store) == []
    with EpisodeStore.open(store, writable=True) as writer:
        with pytest.raises(UserError, match="found seed 2 again"):
            writer.commit(make_episode(2))
        writer.commit(make_episode(6))
    assert_keeps(store, 0, 1, 3, 4, 6)


@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped", "short"])
def test_a_writer_goes_on_behind_a_file_that_cannot_be_read(store, small_shards, tmp_path, damage):
    folder = fill_store(EpisodeStore, store, 6, expected=9, folder=tmp_path / "small.zarr")
    key = folder / "data" / "state" / "position"
    last = max((key / "c").iterdir(), key=lambda shard: int(shard.name)) / "0"
    if damage == "gone":
        last.unlink()
    elif damage == "truncated":
        last.write_bytes(last.read_bytes()[:-4])
    elif damage == "flipped":
        flip(last, len(last.read_bytes()) - 8)
    else:
        edit_json(key / "zarr.json", shape=[29, 3])
    spoilt = {episode for kind, episode, *_ in faults(folder) if episode}
    assert name(5) in spoilt
    data("repair", folder, drop_damaged=True)
    kept = [seed for seed in range(6) if name(seed) not in spoilt]
    assert kept
    for seed in (6, 7):
        with EpisodeStore.open(folder, writable=True) as writer:
            writer.commit(make_episode(seed))
        assert_keeps(folder, *kept, *range(6, seed + 1))
    assert faults(folder) == []


def test_no_store_is_emptied(store):
    (store / "data" / "reward" / "c" / "0").unlink()
    before = snapshot(store)
    with pytest.raises(UserError, match=r"a sound episode in .* that would be left; found none: all 6 are damaged"):
        data("repair", store, drop_damaged=True)
    assert snapshot(store) == before


def test_nothing_is_cut_or_dropped_behind_a_damaged_manifest(store):
    lines = (store / MANIFEST).read_bytes().splitlines(keepends=True)
    (store / MANIFEST).write_bytes(b"".join([lines[0], b"x\n", *lines[2:4], lines[4][:40]]))
    (store / "data" / "zarr.json.partial").write_bytes(b"{")
    set_value(store, "reward", (1,), 7.0)
    before = snapshot(store)
    assert data("repair", store)["done"] == ["removed file data/zarr.json.partial: a write that was interrupted"]
    before.pop("data/zarr.json.partial")
    assert snapshot(store) == before
    with pytest.raises(UserError, match=r"tell which episodes are sound; found file manifest.jsonl: line 2 is not"):
        data("repair", store, drop_damaged=True)
    assert snapshot(store) == before


def test_a_store_that_is_being_written_is_left_alone(store):
    with (
        EpisodeStore.open(store, writable=True),
        pytest.raises(UserError, match="no other writer of .*; found process"),
    ):
        data("repair", store)


def test_a_store_of_a_newer_version_is_left_alone(store):

    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["version"] = 3
    (store / "zarr.json").write_text(json.dumps(metadata))
    before = snapshot(store)
    summary = data("repair", store)
    assert [fault["kind"] for fault in summary["faults"]] == ["version"] and summary["done"] == []
    assert snapshot(store) == before


def test_the_original_is_never_written(tmp_path):
    original = write_zarr_v2(tmp_path / "human.zarr", made_arrays())
    with pytest.raises(UserError, match="a store that `embodied collect` made; found the original Zarr of"):
        data("repair", original)


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it, and what stood on the disk stays."""


STEPS = {
    "a file": (store_repair.StoreRepair, "_remove_files"),
    "the line": (Manifest, "cut"),
    "an array": (TimeArrays, "cut"),
    "an episode": (Manifest, "append"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_repair_that_was_killed_is_finished_by_the_next(store, tmp_path, monkeypatch, step, nth):
    crash(store)
    set_value(store, "executed", (8, 1), 5.0)
    set_value(store, "executed", (20, 1), 5.0)
    reference = tmp_path / "reference" / store.name
    shutil.copytree(store, reference)
    data("repair", reference, drop_damaged=True)
    owner, method = STEPS[step]
    original, calls = getattr(owner, method), []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, method, dies)
    if (step, nth) == ("the line", 2):
        data("repair", store, drop_damaged=True)  # it is cut once
    else:
        with pytest.raises(Killed):
            data("repair", store, drop_damaged=True)
        still = EpisodeStore.open(store)
        assert {0, 1, 3, 5, 6} <= {row.seed for row in still.rows}
    monkeypatch.undo()
    data("repair", store, drop_damaged=True)
    assert snapshot(store) == snapshot(reference)
    assert_keeps(store, 0, 1, 3, 5, 6)
