"""`embodied data verify`: every fault of a store, by its episode, key and file, and nothing of a sound one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from damaged_stores import abandon, data, edit_json, edit_line, faults, flip, set_value
from damaged_stores import small_shards as small_shards
from made_episodes import fill_store, make_episode, snapshot
from pusht_data import human_demonstrations, made_arrays, write_zarr_v2

from embodied import cli
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.summaries import without_timings

MANIFEST = "manifest.jsonl"


@pytest.fixture
def store(make_store) -> Path:
    """Episodes of 3, 4, 5, 6, 7 and 8 steps, seeds 0 to 5."""
    return make_store(6)


def name(seed: int) -> str:
    return f"base-{seed:08d}"


def test_a_sound_store_is_one_line_and_status_0(store, capsys):
    before = snapshot(store)
    summary = data("verify", store)
    assert capsys.readouterr().out == f"{store} is sound: 6 episodes, 33 steps, every byte as it was committed\n"
    assert (summary["sound"], summary["episodes"], summary["faults"]) == (True, 6, [])
    assert snapshot(store) == before, "checking writes nothing"
    assert without_timings(data("verify", store)) == without_timings(summary)


def test_the_command_exits_with_1_after_faults_and_names_its_summary(store, capsys):
    (store / "data" / "reward" / "c" / "0").unlink()
    words = ["data", "verify", str(store), f"run_root={store.parent}"]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == cli.FAULTS_FOUND == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"unreadable: episode {name(0)}, key reward, file data/reward/c/0: no such file"
    assert "6 faults in" in lines[6] and "6 of 6 episodes are damaged (drop_damaged=true drops them)" in lines[6]
    assert json.loads(Path(lines[7]).read_text())["what"] == "verify"


def test_an_empty_store_and_one_that_goes_on_are_sound(make_store, tmp_path):
    assert faults(make_store(0)) == []
    assert faults(make_store(2, expected=9, folder=tmp_path / "begun.zarr")) == []


def test_a_store_of_the_first_version_has_one_checksum_an_episode(store):
    from test_dropped_episodes import as_version_1

    as_version_1(store)
    assert faults(store) == []
    set_value(store, "time_s", (4,), 9.0)
    (fault,) = data("verify", store)["faults"]
    assert (fault["kind"], fault["episode"], fault["key"]) == ("checksum", name(1), None)
    assert "one of its arrays has changed (a store of version 1" in fault["found"]


@pytest.mark.parametrize("key", ["state/position", "image/front", "executed", "success", "physics"])
def test_changed_bytes_are_named_by_episode_key_and_file(store, small_shards, tmp_path, key):
    folder = fill_store(EpisodeStore, store, 6, folder=tmp_path / "small.zarr")
    array = zarr.open_array(folder / "data" / key, mode="r+")
    place = (8, *(0 for _ in array.shape[1:]))
    array[place] = not array[place]
    size = array.shards[0]
    files = [
        f"data/{key}/c/{'/'.join([str(n), *('0' for _ in array.shape[1:])])}" for n in range(7 // size, 11 // size + 1)
    ]
    assert faults(folder) == [("checksum", name(2), key, *files)]


def test_flipped_bits_in_a_file_are_found_wherever_they_are(store):
    file = store / "data" / "action" / "c" / "0" / "0"
    whole = file.read_bytes()
    index = 16 * (len(whole) // 16) - 16  # within the shard's index, at the end
    for place in (0, 20, 60, index):
        flip(file, place)
        found = faults(store)
        assert found and all(key == "action" and files == "data/action/c/0/0" for _, _, key, files in found), place
        assert {kind for kind, *_ in found} <= {"checksum", "unreadable"}
        file.write_bytes(whole)
    assert faults(store) == []


@pytest.mark.parametrize("damage", ["gone", "empty", "truncated"])
def test_a_file_that_is_gone_or_truncated(store, tmp_path, small_shards, damage):
    folder = fill_store(EpisodeStore, store, 6, folder=tmp_path / "small.zarr")
    file = folder / "data" / "state" / "position" / "c" / "2" / "0"
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    size = zarr.open_array(folder / "data" / "state" / "position", mode="r").shards[0]
    ends = EpisodeStore.open(folder).episode_ends
    hit = np.unique(np.searchsorted(ends, np.arange(2 * size, min(3 * size, 33)), side="right"))
    key = "state/position"
    assert faults(folder) == [("unreadable", name(seed), key, f"data/{key}/c/2/0") for seed in hit]
    found = data("verify", folder)["faults"][0]["found"]
    assert found == "no such file" if damage == "gone" else "bytes that cannot be decoded" in found


def test_values_that_are_not_finite(store):
    """As another program might have written them: the checksums do not fit either."""
    set_value(store, "action", (7, 1), np.nan)
    set_value(store, "action", (9, 0), np.inf)
    set_value(store, "physics", (3, 4), -np.inf)
    found = data("verify", store)["faults"]
    kinds = [(fault["kind"], fault["episode"], fault["key"]) for fault in found]
    assert kinds == [
        ("not finite", name(1), "physics"),
        ("checksum", name(1), "physics"),
        ("not finite", name(2), "action"),
        ("checksum", name(2), "action"),
    ]
    assert found[0]["found"] == "-inf at step 0, element 4"
    assert found[2]["found"] == "nan at step 0, element 1 and 1 more"


def test_keys_of_differing_length(store):
    zarr.open_array(store / "data" / "reward", mode="r+").resize((20,))
    found = data("verify", store)["faults"]
    assert [(fault["kind"], fault["episode"], fault["key"]) for fault in found] == [
        ("length", None, "reward"),
        ("length", name(4), "reward"),
        ("length", name(5), "reward"),
    ]
    assert found[0]["found"] == "20 rows, where the manifest commits 33"
    assert found[1]["found"] == "2 of its 7 rows are there"


@pytest.mark.parametrize("damage", ["gone", "broken", "type", "width"])
def test_an_array_without_usable_metadata_is_one_fault(store, damage):
    file = store / "data" / "executed" / "zarr.json"
    if damage == "gone":
        shutil.rmtree(file.parent)
    elif damage == "broken":
        file.write_text('{"shape": [')
    else:
        change = {"data_type": "float64"} if damage == "type" else {"shape": [33, 3]}
        edit_json(file, **change)
    (fault,) = data("verify", store)["faults"]
    assert (fault["kind"], fault["key"], fault["files"]) == ("metadata", "executed", ["data/executed/zarr.json"])
    expected = {
        "gone": "no such array",
        "broken": "metadata that cannot be read",
        "type": "float64 [2] a step, where the spec says float32 [2]",
        "width": "float32 [3] a step",
    }
    assert expected[damage] in fault["found"]


def test_what_a_killed_writer_leaves_is_listed_and_the_rest_is_sound(store):
    abandon(store, 6, in_flight=7)
    (store / "data" / "action" / "zarr.json.partial").write_bytes(b"{")
    with (store / MANIFEST).open("ab") as file:
        file.write(b'{"id": "base-0000')
    found = data("verify", store)["faults"]
    assert {fault["kind"] for fault in found} == {"tail", "leftover"}
    assert "the last line, 8, is torn: a write was interrupted" in [fault["found"] for fault in found]
    keys = {fault["key"] for fault in found if fault["key"]}
    assert keys == set(EpisodeStore.open(store).keys)
    assert ["data/action/zarr.json.partial"] in [fault["files"] for fault in found]
    assert "rows behind the 42 that are committed" in found[1]["found"]


def test_a_folder_in_which_a_store_was_being_made(store):
    (store.parent / f".{store.name}.999999999.creating").mkdir()
    running = store.parent / f".{store.name}.1.creating"  # process 1 runs
    running.mkdir()
    assert faults(store) == [("leftover", None, None, f"../.{store.name}.999999999.creating")]


def test_data_behind_the_end_of_an_array(store):
    shutil.copytree(store / "data" / "action" / "c" / "0", store / "data" / "action" / "c" / "7")
    assert faults(store) == [("leftover", None, "action", "data/action/c/7")]


def test_a_writer_at_work_is_no_fault(store, capsys):
    with EpisodeStore.open(store, writable=True) as writer:
        writer.commit(make_episode(6))
        summary = data("verify", store)
    assert summary["sound"] and summary["writer"] is not None
    assert f"process {summary['writer']} is writing it" in capsys.readouterr().out


@pytest.mark.parametrize("line", [b"not json\n", b'{"kept": true}\n'])
def test_damaged_lines_are_all_listed_and_what_they_name_is_missed(store, line):
    lines = (store / MANIFEST).read_bytes().splitlines(keepends=True)
    (store / MANIFEST).write_bytes(b"".join([lines[0], line, lines[2], line, *lines[4:]]))
    set_value(store, "reward", (8,), 5.0)
    found = data("verify", store)["faults"]
    assert [fault["found"] for fault in found if fault["kind"] == "manifest"] == [
        "line 2 is not a manifest row",
        "line 3 for rows 7 to 12, where 3 should follow",
        "line 4 is not a manifest row",
        "line 5 for rows 18 to 25, where 12 should follow",
    ]
    assert ("checksum", name(2), "reward") in [(fault["kind"], fault["episode"], fault["key"]) for fault in found]


def test_a_manifest_that_lost_its_end_is_not_taken_for_a_crash(store):
    lines = (store / MANIFEST).read_bytes().splitlines(keepends=True)
    (store / MANIFEST).write_bytes(b"".join(lines[:4]) + lines[4][:50])
    found = data("verify", store)["faults"]
    assert found[0]["found"].startswith("the last line, 5, is torn")
    assert {fault["kind"] for fault in found[1:]} == {"manifest"}
    assert found[1]["found"] == (
        "15 rows behind the 18 that are committed; a writer had closed the store with them: the manifest has lost lines"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0, "end": 7}, "line 3 for an episode of 0 steps (base-00000002)"),
        ({"seed": 3}, "line 3 gives it seed 3"),
        ({"id": name(1), "seed": 1}, "line 3 attempts seed 1 again, after line 2"),
        ({"first_success": 1}, "its line says first success 1, its array 3 (step, counted from 1)"),
        ({"success": False, "first_success": None}, "its line says first success None, its array 3"),
        ({"checksum": "0" * 64}, "the checksum does not match: its line of the manifest or its arrays have changed"),
        ({"physics_size": 4}, "physics states of 4, 5 values"),
    ],
)
def test_a_line_that_does_not_fit(store, changes, message):
    edit_line(store, 3, **changes)
    found = data("verify", store)["faults"]
    assert any(fault["found"].startswith(message) for fault in found), found


def test_metadata_of_the_store(store):
    whole = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(whole[:40])
    assert faults(store) == [("metadata", None, None, "zarr.json")]
    (store / "zarr.json").unlink()
    assert data("verify", store)["faults"][0]["found"] == "no such file"
    edit = json.loads(whole)
    edit["attributes"]["spec"] = {"task": "robosuite/lift"}
    (store / "zarr.json").write_text(json.dumps(edit))
    assert data("verify", store)["faults"][0]["found"] == "no spec of a task (KeyError: 'state')"
    edit["attributes"]["version"] = 3
    (store / "zarr.json").write_text(json.dumps(edit))
    (fault,) = data("verify", store)["faults"]
    assert (fault["kind"], fault["found"]) == ("version", "version 3, where this program knows 2")


def test_a_manifest_that_is_gone(store):
    (store / MANIFEST).unlink()
    assert faults(store)[0] == ("manifest", None, None, MANIFEST)


def test_an_array_that_the_spec_does_not_name(store):
    zarr.create_array(store / "data" / "state" / "velocity", data=np.zeros((33, 3)))
    assert faults(store) == [("surplus", None, "state/velocity", "data/state/velocity")]


def test_the_store_of_a_run_of_collect(store, tmp_path):
    run = tmp_path / "outputs" / "collect" / "lift"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("store: null\n")
    with pytest.raises(UserError, match=r"the demonstrations of .*lift; found no store at .*demonstrations.zarr; run"):
        data("verify", run)
    store.rename(run / "demonstrations.zarr")
    assert data("verify", run)["store"] == str(run / "demonstrations.zarr")
    elsewhere = tmp_path / "elsewhere.zarr"
    (run / "demonstrations.zarr").rename(elsewhere)
    (run / "config.yaml").write_text(f"store: {elsewhere}\n")
    assert data("verify", run)["store"] == str(elsewhere)


@pytest.mark.parametrize("what", ["verify", "repair", "stats"])
def test_nothing_there(tmp_path, what):
    with pytest.raises(UserError, match=r"a store's folder, a run of collect, .*; found '.*nowhere', which does not"):
        data(what, tmp_path / "nowhere")
    (tmp_path / "thesis").mkdir()
    with pytest.raises(UserError, match=r"found '.*thesis', which is none of them"):
        data(what, tmp_path / "thesis")


def test_there_is_nothing_to_resume(store):
    with pytest.raises(UserError, match="no resume= for a store that is looked after; found resume=x; name the store"):
        data("verify", store, resume="x")


def test_a_long_check_shows_its_progress(store, monkeypatch, capsys):
    monkeypatch.setattr("embodied.commands.data.LONG_PARTS", 5)
    data("verify", store)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "verify  0/6 episodes" and lines[1].startswith("verify  6/6 episodes")


# Diffusion Policy's Zarr, read in place.


@pytest.fixture
def original(tmp_path) -> Path:
    """Episodes of 30, 21 and 25 steps in chunks of 16."""
    return write_zarr_v2(tmp_path / "human.zarr", made_arrays())


def test_a_sound_original(original, capsys):
    before = snapshot(original)
    assert data("verify", original)["sound"]
    assert "is sound: 3 episodes, 76 steps, all 25 chunks can be decoded" in capsys.readouterr().out
    assert snapshot(original) == before


def test_everything_wrong_with_an_original_is_listed(original):
    (original / "data" / "keypoint" / "1.0.0").unlink()
    chunk = original / "data" / "img" / "4.0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:30])
    action = zarr.open_array(original / "data" / "action", mode="r+")
    action[31, 1] = np.nan
    action[32, 0] = np.nan
    found = data("verify", original)["faults"]
    assert [(fault["kind"], fault["episode"], fault["key"], *fault["files"]) for fault in found] == [
        ("not finite", "1", "data/action", "data/action/1.0"),
        ("not finite", "1", "data/action", "data/action/2.0"),
        ("unreadable", "2", "data/img", "data/img/4.0.0.0"),
        ("unreadable", "0 to 1", "data/keypoint", "data/keypoint/1.0.0"),
    ]
    assert found[0]["found"] == "nan at step 1, element 1"
    assert "30 bytes that cannot be decoded" in found[2]["found"]
    assert found[3]["found"].startswith("no such file")


def test_lengths_of_an_original(tmp_path):
    arrays = made_arrays()
    arrays["data/action"] = arrays["data/action"][:60]
    arrays["data/n_contacts"] = np.ones((80, 1), "f4")
    arrays["meta/episode_ends"] = np.array([30, 30, 76])
    found = data("verify", write_zarr_v2(tmp_path / "human.zarr", arrays))["faults"]
    assert [(fault["kind"], fault["episode"], fault["key"]) for fault in found] == [
        ("length", "1", "meta/episode_ends"),
        ("length", None, "data/action"),
        ("tail", None, "data/n_contacts"),
    ]
    assert found[0]["found"] == "0 steps: it ends at row 30, the one before at 30"
    assert found[1]["found"] == "60 rows, where the episodes end at 76"


def test_metadata_of_an_original(original):
    edit_json(original / "data" / "action" / ".zarray", filters=[{"id": "pickle"}])
    (original / ".zgroup").write_text("{")
    (original / "data" / "img" / ".zarray").write_text("[]")
    shutil.rmtree(original / "data" / "state")
    found = data("verify", original)["faults"]
    assert [(fault["kind"], fault["key"]) for fault in found] == [
        ("metadata", None),
        ("metadata", "data/action"),
        ("metadata", "data/img"),
        ("metadata", "data/state"),
    ]
    assert "pickle" in found[1]["found"] and "no such array" in found[3]["found"]


def test_the_human_demonstrations_are_sound(tmp_path):
    (tmp_path / "human.zarr").symlink_to(human_demonstrations())
    summary = data("verify", tmp_path / "human.zarr")
    assert summary["sound"] and summary["episodes"] == 206
