"""The rollout file: nothing lost, and nothing hostile let in."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_rollouts import STEPS, TOOL, make_saved_rollout, same, save_to

from embodied.errors import UserError
from embodied.replay import rollout_file
from embodied.replay.mesh_coding import decode_faces, encode_faces, weld
from embodied.replay.rollout_file import load_rollout, read_start_id


def test_a_rollout_file_gives_everything_back_bit_for_bit(tmp_path):
    saved = make_saved_rollout(images=True)
    loaded = load_rollout(save_to(tmp_path / "deep" / "r.npz", saved))
    for name, value in vars(saved.rollout.episode).items():
        assert same(value, getattr(loaded.rollout.episode, name)), name
    for name, value in vars(saved.rollout).items():
        assert name == "episode" or same(value, getattr(loaded.rollout, name)), name
    assert same(saved.body_poses, loaded.body_poses)
    assert loaded.spec == saved.spec
    assert (loaded.scene.bodies, loaded.scene.tool) == (saved.scene.bodies, TOOL)
    for before, after in zip(saved.scene.geoms, loaded.scene.geoms, strict=True):
        plain = [
            (geom.body, geom.name, geom.kind, geom.size, geom.position, geom.quaternion, geom.rgba)
            for geom in (before, after)
        ]
        assert plain[0] == plain[1]
        if before.kind == "mesh":
            assert same(before.vertices[before.faces], after.vertices[after.faces])
    assert read_start_id(tmp_path / "deep" / "r.npz") == 100007
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["r.npz"]


def test_geoms_of_one_mesh_share_it_and_corners_are_stored_once(tmp_path):
    loaded = load_rollout(save_to(tmp_path / "r.npz", make_saved_rollout()))
    one, other = (geom for geom in loaded.scene.geoms if geom.kind == "mesh")
    assert one.vertices is other.vertices and one.faces is other.faces
    assert len(one.vertices) <= 40
    assert len(np.unique(one.vertices.view("V12"))) == len(one.vertices)


def test_face_codes_are_zero_at_first_use_and_invert():
    _, faces = weld(np.eye(3, dtype=np.float32), np.array([[2, 1, 0], [0, 1, 2], [1, 1, 2]], np.uint32))
    assert faces.tolist() == [[0, 1, 2], [2, 1, 0], [1, 1, 0]]
    codes = encode_faces(faces)
    assert codes.tolist() == [0, 0, 0, 1, 2, 3, 2, 2, 3]
    assert decode_faces(codes).tolist() == faces.tolist()
    assert decode_faces(np.zeros(0, np.uint32)).shape == (0, 3)
    with pytest.raises(ValueError, match="below the first"):
        decode_faces(np.array([0, 2, 0], np.uint32))


def test_every_truncation_is_refused(tmp_path):
    whole = save_to(tmp_path / "r.npz", make_saved_rollout()).read_bytes()
    for size in [0, 1, 100, *np.linspace(200, len(whole) - 1, 25).astype(int)]:
        cut = tmp_path / "cut.npz"
        cut.write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated or damaged"):
            load_rollout(cut)


def _rewrite(path: Path, change) -> Path:
    """The file with its members changed by `change(members)`, a dict of raw bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def _change_header(**changes):
    def change(members):
        header = json.loads(np.lib.format.read_array(io.BytesIO(members["header.npy"])).tobytes())
        for key, value in changes.items():
            *parents, last = key.split("__")
            place = header
            for parent in parents:
                place = place[parent]
            place[last] = value
        members["header.npy"] = _npy(np.frombuffer(json.dumps(header).encode(), np.uint8))

    return change


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def _huge(members):
    """An array that claims 8 TB."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    members["reward.npy"] = head.getvalue() + bytes(80)


@pytest.mark.parametrize(
    "change",
    [
        lambda members: members.pop("header.npy"),
        lambda members: members.pop("body_poses.npy"),
        lambda members: members.update({"header.npy": _npy(np.frombuffer(b"{not json", np.uint8))}),
        lambda members: members.update({"reward.npy": _npy(np.array([_Evil()], object), allow_pickle=True)}),
        lambda members: members.update({"header.npy": _npy(np.array([_Evil()], object), allow_pickle=True)}),
        lambda members: members.update({"latency_ms.npy": _npy(np.zeros(3, np.float32))}),
        lambda members: members.update({"body_poses.npy": _npy(np.zeros((STEPS, 4, 6), np.float32))}),
        lambda members: members.update({"chunk_steps.npy": _npy(np.full(8, STEPS))}),
        lambda members: members.update({"mesh_faces.npy": _npy(np.full((4, 210), 255, np.uint8))}),
        _huge,
        _change_header(format="something else"),
        _change_header(scene__tool=4),
        _change_header(scene__meshes=[[10**9, 70]]),
        _change_header(scene__geoms=[{}]),
        _change_header(spec={}),
        _change_header(state=[["a list"]]),
    ],
)
def test_hostile_files_are_refused(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = _rewrite(save_to(tmp_path / "r.npz", make_saved_rollout()), change)
    with pytest.raises(UserError, match=r"r\.npz"):
        load_rollout(path)
    assert not (tmp_path / "unpickled").exists()


def test_newer_missing_and_foreign_files_are_told_apart(tmp_path):
    newer = _rewrite(
        save_to(tmp_path / "r.npz", make_saved_rollout()), _change_header(version=rollout_file.VERSION + 1)
    )
    with pytest.raises(UserError, match=r"version 2 in .*; update this program"):
        load_rollout(newer)
    with pytest.raises(UserError, match=r"nothing at .*absent"):
        load_rollout(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("a text")
    with pytest.raises(UserError, match="another file"):
        read_start_id(tmp_path / "text.npz")


def test_a_failed_save_keeps_what_was_there(tmp_path, monkeypatch):
    path = save_to(tmp_path / "r.npz", make_saved_rollout())
    before = path.read_bytes()
    wrong = make_saved_rollout()
    wrong.body_poses = wrong.body_poses[:-1]
    with pytest.raises(UserError, match=r"body poses of shape \(30, 4, 7\)"):
        save_to(path, wrong)
    monkeypatch.setattr(rollout_file, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="fewer and smaller images"):
        save_to(path, make_saved_rollout())
    monkeypatch.undo()
    monkeypatch.setattr(rollout_file.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(UserError, match="found no space; make space there"):
        save_to(path, make_saved_rollout(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
