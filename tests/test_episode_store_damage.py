"""Stores that are missing, foreign, damaged, half-made, or whose writer crashed: nothing committed is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import zarr
from made_episodes import SPEC, assert_same_episode, make_episode, snapshot

from embodied.datasets import durable_files
from embodied.datasets.episode_store import check_specs, require_complete
from embodied.datasets.manifest import Manifest
from embodied.datasets.time_arrays import TimeArrays
from embodied.errors import UserError

# Opening and making.


def test_missing_store(store_class, store_path):
    with pytest.raises(
        UserError, match=r"no store at .*demonstrations.zarr; collect one with `embodied collect`"
    ) as error:
        store_class.open(store_path)
    assert "data.store=..." in str(error.value)
    with pytest.raises(UserError, match="no store at"):
        store_class.open(store_path, writable=True)
    assert not store_path.exists()


@pytest.mark.parametrize("what", ["a folder", "a file", "another zarr group"])
def test_not_a_store(store_class, store_path, what):
    if what == "a file":
        store_path.write_text("hello")
    elif what == "a folder":
        store_path.mkdir()
        (store_path / "thesis.tex").write_text("hello")
    else:
        zarr.create_group(store_path)
    before = store_path.read_bytes() if store_path.is_file() else snapshot(store_path)
    with pytest.raises(UserError, match=r"an episode store at .*; found something else; collect one"):
        store_class.open(store_path)
    with pytest.raises(UserError, match="found something else"):
        store_class.create(store_path, SPEC, expected_episodes=1, provenance={})
    assert (store_path.read_bytes() if store_path.is_file() else snapshot(store_path)) == before


def edit_attributes(folder: Path, **changes) -> None:
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"].update(changes)
    (folder / "zarr.json").write_text(json.dumps(metadata))


def test_a_newer_store(store_class, make_store):
    folder = make_store(1)
    edit_attributes(folder, version=3)
    with pytest.raises(UserError, match=r"version 2 or older at .*; found version 3; update embodied"):
        store_class.open(folder)


def test_unreadable_metadata(store_class, make_store):
    folder = make_store(1)
    edit_attributes(folder, spec={"task": "robosuite/lift"})
    with pytest.raises(UserError, match=r"readable metadata .* found KeyError: 'state'"):
        store_class.open(folder, writable=True)
    (folder / "zarr.json").write_text('{"attributes": {')
    with pytest.raises(UserError, match="readable metadata of the store at"):
        store_class.open(folder)


def test_a_half_copied_store_is_named_precisely(store_class, make_store):
    folder = make_store(3)
    shutil.rmtree(folder / "data" / "executed")
    with pytest.raises(
        UserError, match=r"12 rows of 'executed' in .*; found 0: the store is half-written or half-copied"
    ):
        store_class.open(folder)
    (folder / "manifest.jsonl").unlink()
    with pytest.raises(UserError, match=r"readable manifest at .* found No such file"):
        store_class.open(folder)


def test_a_short_array_is_named_precisely(store_class, make_store):
    folder = make_store(3)
    zarr.open_array(folder / "data" / "reward", mode="r+").resize((5,))
    with pytest.raises(UserError, match=r"12 rows of 'reward' in .* as its manifest says; found 5"):
        store_class.open(folder)


def test_a_missing_shard_is_an_error_not_zeros(store_class, make_store):
    folder = make_store(3)
    shutil.rmtree(folder / "data" / "action" / "c")
    with pytest.raises(UserError, match=r"rows 0 to 12 of 'action' intact in .* found .*not found"):
        store_class.open(folder).read("action")


def test_changed_bytes_fail_verification(store_class, make_store):
    folder = make_store(3)
    zarr.open_array(folder / "data" / "time_s", mode="r+")[4] = 1.0
    store = store_class.open(folder)
    store.episode(0, verify=True)
    store.episode(1)
    with pytest.raises(UserError, match=r"episode base-00000001 intact in .* checksum"):
        store.episode(1, verify=True)


@pytest.mark.parametrize("line", [b"not json\n", b'{"kept": true}\n', b"[1]\n"])
def test_a_broken_line_inside_the_manifest(store_class, make_store, line):
    folder = make_store(2)
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(lines[0] + line + lines[1])
    with pytest.raises(UserError, match=r"readable manifest at .*; found line 2, which is not a manifest row"):
        store_class.open(folder)


def test_a_whole_last_line_that_is_damaged_is_no_torn_one(store_class, make_store):
    """It may have committed an episode: a writer must not cut it off, nor the rows behind it."""
    folder = make_store(2)
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    damaged = lines[0] + lines[1].replace(b'"kept"', b'"kepu"')
    (folder / "manifest.jsonl").write_bytes(damaged)
    for writable in (False, True):
        with pytest.raises(UserError, match=r"readable manifest at .*; found line 2, which is not a manifest row"):
            store_class.open(folder, writable=writable)
    assert (folder / "manifest.jsonl").read_bytes() == damaged


def test_a_gap_in_the_manifest(store_class, make_store):
    folder = make_store(3)
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(lines[0] + lines[2])
    with pytest.raises(UserError, match="found line 2 for rows 7 to 12, where 3 should follow"):
        store_class.open(folder)


def test_create_refuses_a_store_of_another_spec_or_plan(store_class, make_store):
    folder = make_store(2)
    faster = dataclasses.replace(SPEC, control_hz=10.0)
    with pytest.raises(UserError, match=r"the store's value first: control_hz: 20.0 against 10.0"):
        store_class.create(folder, faster, expected_episodes=2, provenance={})
    with pytest.raises(UserError, match=r"planned for 3 episodes at .*; found one planned for 2"):
        store_class.create(folder, SPEC, expected_episodes=3, provenance={})
    store_class.open(folder, writable=True).close()  # the refusals let go of the lock


@pytest.mark.parametrize("expected", [1, 2], ids=["complete", "begun"])
def test_create_refuses_a_store_of_another_provenance(store_class, store_path, expected):
    def create(version="1", first_start=0, **task):
        collection = {"noise": 0.1, "first_start": first_start}
        provenance = {"task": {"name": "lift", "size": (1, 2), **task}, "collection": collection}
        return store_class.create(
            store_path, SPEC, expected_episodes=expected, provenance={**provenance, "code_version": version}
        )

    with create() as store:
        store.commit(make_episode(0))
    before = snapshot(store_path)
    with pytest.raises(UserError) as error:
        create(first_start=100, cube="small")
    assert str(error.value) == (
        f"expected a store made with these settings at {store_path}; found differences, the store's value first: "
        "collection.first_start: 0 against 100; task.cube: (absent) against small; "
        "ask for the store's settings to go on with it, or name another folder"
    )
    assert snapshot(store_path) == before
    with create(version="2") as store:
        assert [row.seed for row in store.rows] == [0]


def test_create_takes_an_empty_folder(store_class, store_path):
    store_path.mkdir()
    with store_class.create(store_path, SPEC, expected_episodes=1, provenance={}) as store:
        store.commit(make_episode(0))
    assert len(store_class.open(store_path)) == 1


def test_a_crash_in_create_leaves_nothing(store_class, store_path, monkeypatch):
    def crash(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        store_class.create(store_path, SPEC, expected_episodes=1, provenance={})
    assert list(store_path.parent.iterdir()) == []


def test_create_checks_the_free_space(store_class, store_path):
    with pytest.raises(
        UserError, match=r"at least 1,000,000,000,000.0 MB free at .*; found .* MB; free some space, or"
    ):
        store_class.create(store_path, SPEC, expected_episodes=1, provenance={}, expected_bytes=10**18)
    assert not store_path.exists()
    store_class.create(store_path, SPEC, expected_episodes=1, provenance={}, expected_bytes=1000).close()


def test_one_writer_at_a_time(store_class, make_store):
    folder = make_store(1)
    with store_class.open(folder, writable=True):
        with pytest.raises(UserError, match=f"no other writer of .*; found process {os.getpid()} writing it; wait"):
            store_class.open(folder, writable=True)
        assert len(store_class.open(folder)) == 1
    store_class.open(folder, writable=True).close()


def test_check_specs_lists_the_differences(store_class, make_store):
    store = store_class.open(make_store(1))
    check_specs(store, SPEC)
    other = dataclasses.replace(SPEC, horizon=200, cameras=())
    with pytest.raises(UserError) as error:
        check_specs(store, other)
    assert "horizon: 100 against 200" in str(error.value)
    assert "cameras.front" not in str(error.value), "a reader may leave a camera alone"
    with pytest.raises(UserError, match="cameras.front"):
        check_specs(store, dataclasses.replace(SPEC, cameras=()), exact=True)


def test_require_complete(store_class, make_store):
    store = store_class.open(make_store(2, expected=5))
    with pytest.raises(UserError, match=r"5 episodes in .*; found 2 kept and 0 dropped: .*data.allow_partial=true"):
        require_complete(store, allow_partial=False)
    require_complete(store, allow_partial=True)
    require_complete(store_class.open(make_store(2, folder=store.path.parent / "whole")), allow_partial=False)


# Crashes.


def test_a_torn_manifest_line_is_ignored_and_overwritten(store_class, make_store, tmp_path):
    reference = store_class.open(make_store(3, folder=tmp_path / "reference")).content_hash()
    whole = (make_store(3) / "manifest.jsonl").read_bytes()
    second_end = whole.rindex(b"\n", 0, -1) + 1
    for cut in (second_end + 1, second_end + 40, len(whole) - 1):
        folder = tmp_path / f"cut {cut}"
        shutil.copytree(tmp_path / "demonstrations.zarr", folder)
        (folder / "manifest.jsonl").write_bytes(whole[:cut])
        reader = store_class.open(folder)
        assert len(reader) == 2
        assert any("torn" in remains for remains in reader.ignored)
        assert any("5 rows beyond" in remains for remains in reader.ignored)
        assert reader.read("action").shape == (7, 2)
        with store_class.open(folder, writable=True) as store:
            store.commit(make_episode(2))
        assert (folder / "manifest.jsonl").read_bytes() == whole
        assert store_class.open(folder).content_hash() == reference
        assert store_class.open(folder).ignored == ()


def test_rows_beyond_the_manifest_are_overwritten_by_a_shorter_episode(store_class, make_store):
    folder = make_store(3)
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    with store_class.open(folder, writable=True) as store:
        store.commit(make_episode(7, steps=2))
    store = store_class.open(folder)
    assert store.total_steps == 9
    assert_same_episode(store.episode(2, verify=True), make_episode(7, steps=2))
    assert zarr.open_array(folder / "data" / "action", mode="r").shape == (9, 2)


def test_the_remains_of_a_first_episode_do_not_fix_the_width(store_class, make_store):
    folder = make_store(1)
    (folder / "manifest.jsonl").write_bytes(b"")
    assert "3 rows beyond" in store_class.open(folder).ignored[0]
    with store_class.open(folder, writable=True) as store:
        store.commit(make_episode(1, physics_size=9))
    assert_same_episode(store_class.open(folder).episode(0, verify=True), make_episode(1, physics_size=9))


KILLED_WRITER = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[2])
    from embodied.datasets import durable_files, manifest
    from embodied.datasets.episode_store import EpisodeStore
    from made_episodes import make_episode

    kill_at, writes = int(sys.argv[3]), 0
    store = EpisodeStore.open(sys.argv[1], writable=True)
    replace_file = durable_files.replace_file

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(*arguments, **options):
        global writes
        if writes == kill_at:
            die()
        writes += 1
        replace_file(*arguments, **options)

    store.commit(make_episode(2))
    durable_files.replace_file = counted
    if kill_at < 0:
        manifest.Manifest.append = die
    store.commit(make_episode(3))
"""


@pytest.mark.parametrize("kill_at", [0, 5, -1], ids=["before the data", "amid the data", "before the manifest"])
def test_a_killed_writer_loses_only_the_episode_it_was_writing(store_class, make_store, tmp_path, kill_at):
    reference = store_class.open(make_store(5, folder=tmp_path / "reference")).content_hash()
    folder = make_store(2, expected=5)
    arguments = [str(folder), str(Path(__file__).parent), str(kill_at)]
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WRITER), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr
    with store_class.create(folder, SPEC, expected_episodes=5, provenance={}) as store:
        assert [row.seed for row in store.rows] == [0, 1, 2]
        for seed in range(3):
            assert_same_episode(store.episode(seed, verify=True), make_episode(seed))
        for seed in (3, 4):
            store.commit(make_episode(seed))
        assert store.is_complete
    reopened = store_class.open(folder)
    assert reopened.ignored == ()
    assert reopened.content_hash() == reference
    for seed in range(5):
        assert_same_episode(reopened.episode(seed, verify=True), make_episode(seed))


def fail_from(monkeypatch, write: int) -> None:
    """Let the disk be full from the given file on, until `monkeypatch.undo`."""
    replace_file, writes = durable_files.replace_file, 0

    def full(*arguments, **options):
        nonlocal writes
        writes += 1
        if writes > write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_file(*arguments, **options)

    monkeypatch.setattr(durable_files, "replace_file", full)


@pytest.mark.parametrize("write", [0, 1, 4, 7])
@pytest.mark.parametrize("committed", [0, 2])
def test_a_full_disk_keeps_what_was_there(store_class, make_store, store_path, monkeypatch, write, committed):
    with store_class.open(make_store(committed, expected=5), writable=True) as store:
        before = store.content_hash()
        fail_from(monkeypatch, write)
        with pytest.raises(
            UserError, match=r"room for another episode .*; found No space left on device \(.* MB free\)"
        ):
            store.commit(make_episode(3))
        monkeypatch.undo()
        assert len(store) == committed
        for seed in range(committed):
            assert_same_episode(store.episode(seed, verify=True), make_episode(seed))
        assert store_class.open(store_path).content_hash() == before
        store.commit(make_episode(3))  # the same object goes on once there is room
    store = store_class.open(store_path)
    assert store.ignored == ()
    assert_same_episode(store.episode(committed, verify=True), make_episode(3))


def test_a_full_disk_while_the_manifest_is_written(store_class, make_store, store_path, monkeypatch):
    with store_class.open(make_store(2), writable=True) as store:
        before = snapshot(store_path)

        def full(_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        append = Manifest.append

        def append_on_a_full_disk(*arguments):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                append(*arguments)

        monkeypatch.setattr(Manifest, "append", append_on_a_full_disk)
        with pytest.raises(UserError, match="No space left"):
            store.commit(make_episode(2))
        with pytest.raises(UserError, match="No space left"):
            store.drop(2, "no success")
        monkeypatch.undo()
        assert snapshot(store_path)["manifest.jsonl"] == before["manifest.jsonl"]
        assert store.attempted_seeds == {0, 1}
        store.commit(make_episode(2))
    assert_same_episode(store_class.open(store_path).episode(2, verify=True), make_episode(2))


def interrupt_manifest(monkeypatch, synced: bool, times: int) -> None:
    """Ctrl-C in the next `times` syncs of a manifest's line, before or after the line is on the disk."""
    append, fsync, left = Manifest.append, os.fsync, times

    def interrupted(descriptor):
        nonlocal left
        if synced or not left:
            fsync(descriptor)
        if left:
            left -= 1
            raise KeyboardInterrupt

    def append_interrupted(*arguments):
        monkeypatch.setattr(os, "fsync", interrupted)
        append(*arguments)

    monkeypatch.setattr(Manifest, "append", append_interrupted)


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("times", [1, 2, 3], ids=["once", "again while it is undone", "a third time"])
def test_ctrl_c_while_the_manifest_is_written(store_class, make_store, store_path, monkeypatch, synced, times):
    with store_class.open(make_store(2, expected=5), writable=True) as store:
        manifest = snapshot(store_path)["manifest.jsonl"]
        interrupt_manifest(monkeypatch, synced, times)
        with pytest.raises(KeyboardInterrupt):
            store.commit(make_episode(2))
        monkeypatch.undo()
        assert snapshot(store_path)["manifest.jsonl"] == manifest
        assert store.attempted_seeds == store_class.open(store_path).attempted_seeds == {0, 1}
    for seeds in ([0, 1], [0, 1, 2]):
        with store_class.open(store_path, writable=True) as store:
            assert store.ignored == () and [row.seed for row in store.rows] == seeds
            for seed in seeds:
                assert_same_episode(store.episode(seed, verify=True), make_episode(seed))
            store.commit(make_episode(len(seeds)))


def test_ctrl_c_while_a_drop_is_written(store_class, make_store, store_path, monkeypatch):
    with store_class.open(make_store(2), writable=True) as store:
        interrupt_manifest(monkeypatch, synced=True, times=1)
        with pytest.raises(KeyboardInterrupt):
            store.drop(2, "no success")
        monkeypatch.undo()
        assert store.attempted_seeds == store_class.open(store_path).attempted_seeds == {0, 1}
        store.drop(2, "no success")
    assert store_class.open(store_path).attempted_seeds == {0, 1, 2}


@pytest.mark.parametrize("committed", [0, 2])
def test_ctrl_c_amid_the_data(store_class, make_store, store_path, monkeypatch, committed):
    write, written = TimeArrays.write, []

    def interrupted(self, layout, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(layout.key)
        write(self, layout, *arguments)

    with store_class.open(make_store(committed, expected=5), writable=True) as store:
        monkeypatch.setattr(TimeArrays, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.commit(make_episode(3))
        monkeypatch.undo()
        assert store_class.open(store_path).ignored == ()  # the rows were cut off at once
        store.commit(make_episode(4))
    store = store_class.open(store_path)
    assert [row.seed for row in store.rows] == [*range(committed), 4]
    for index, row in enumerate(store.rows):
        assert_same_episode(store.episode(index, verify=True), make_episode(row.seed))


def test_another_system_error_stays_what_it_is(store_class, make_store, monkeypatch):
    def broken(*_, **__):
        raise OSError(errno.EIO, "disk broken")

    with store_class.open(make_store(1), writable=True) as store:
        monkeypatch.setattr(durable_files, "replace_file", broken)
        with pytest.raises(OSError, match="disk broken"):
            store.commit(make_episode(1))
        monkeypatch.undo()
