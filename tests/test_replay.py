"""Rollout files, Rerun recordings of them, and the command that makes them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from rerun.chunk import RrdReader

from embodied.catalog import TASKS
from embodied.commands import replay
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.replay import layout, rollout_file, viewer
from embodied.replay.mesh_coding import decode_faces, encode_faces, weld
from embodied.replay.predicted_path import metres_per_unit, predicted_by_step, predicted_paths, tool_response
from embodied.replay.recording import write_demonstration, write_recording
from embodied.replay.rollout_file import SavedRollout, load_rollout, read_start_id, save_rollout
from embodied.types import ActionSpec, CameraSpec, Episode, Geom, Rollout, Scene, StateSpec, TaskSpec

PICTURE_TOOL = Path(__file__).parent.parent / "tools" / "picture_of_recording.py"
SPEC = TaskSpec(
    task="test/replay",
    state=(StateSpec("tool", ("x", "y", "z"), "m"),),
    cameras=(),
    action=ActionSpec(
        elements=("x", "y", "z", "gripper"),
        units=("0.05 m", "5 cm", "50mm", "1 closes, -1 opens"),
        low=(-1.0,) * 4,
        high=(1.0,) * 4,
        binary=(False, False, False, True),
        representation="delta",
        rotation="none",
    ),
    control_hz=20.0,
    horizon=30,
)
STEPS, AHEAD, PREVIEWED = 30, 4, 6
TOOL = 2
STILL = (1.0, 0.0, 0.0, 0.0)


def _geom(body: int, kind: str, **changes) -> Geom:
    fields = {"size": (0.1, 0.2, 0.3), "position": (0.1, 0.0, 0.7), "quaternion": STILL, "rgba": (0.1, 0.5, 0.9, 1.0)}
    return Geom(body=body, name=f"{kind} of {body}", kind=kind, **{**fields, **changes})


def _scene() -> Scene:
    generator = np.random.default_rng(3)
    distinct = generator.normal(size=(40, 3)).astype(np.float32)
    distinct[5, 1] = -0.0
    vertices = distinct[generator.integers(0, 40, 90)]  # corners repeated, as model files do
    faces = generator.integers(0, 90, (70, 3)).astype(np.uint32)
    kinds = ("box", "sphere", "ellipsoid", "cylinder", "capsule")
    return Scene(
        bodies=("world", "arm link/1", "tool", ""),
        geoms=(
            _geom(0, "plane", size=(3.0, 3.0, 0.1)),
            _geom(0, "box", size=(0.01, 1.5, 1.5)),
            *(_geom(3, kind) for kind in kinds),
            _geom(1, "mesh", vertices=vertices, faces=faces),
            _geom(TOOL, "mesh", vertices=vertices.copy(), faces=faces.copy()),
        ),
        tool=TOOL,
    )


def _poses(executed: np.ndarray) -> np.ndarray:
    """The tool moves exactly as commanded; another body turns; the rest stand still."""
    poses = np.tile(np.array([0, 0, 0, *STILL], np.float32), (len(executed), 4, 1))
    moved = np.cumsum(executed[:, :3] * 0.05, axis=0)
    poses[:, TOOL, :3] = np.array([0.3, -0.2, 0.9]) + np.concatenate([np.zeros((1, 3)), moved[:-1]])
    angle = np.linspace(0.0, 1.0, len(executed))
    poses[:, 1, 3:] = np.stack([np.cos(angle), 0 * angle, np.sin(angle), 0 * angle], axis=1)
    return poses


def _saved(previewed: int = PREVIEWED, images: bool = False, seed: int = 100007) -> SavedRollout:
    generator = np.random.default_rng(seed)
    executed = generator.uniform(-1, 1, (STEPS, 4)).astype(np.float32)
    starts = np.arange(0, STEPS, AHEAD)
    padded = np.concatenate([executed, np.zeros((AHEAD, 4), np.float32)])
    chunks = len(starts)
    camera = {"front/left": generator.integers(0, 255, (STEPS, 24, 32, 3)).astype(np.uint8)} if images else {}
    episode = Episode(
        task=SPEC.task,
        seed=seed,
        state={"tool": generator.normal(size=(STEPS, 3)).astype(np.float32)},
        images=camera,
        action=(executed * 0.9).astype(np.float32),
        executed=executed,
        reward=np.linspace(0, 1, STEPS).astype(np.float32),
        success=np.arange(STEPS) >= 20,
        time_s=np.arange(STEPS) / 20,
        physics=generator.normal(size=(STEPS, 5)),
        instruction="lift the cube",
        provenance={"policy": "sdp", "nested": [1, {"k": None}]},
    )
    rollout = Rollout(
        episode=episode,
        chunk_steps=starts.astype(np.int64),
        chunk_actions=np.stack([padded[start : start + AHEAD] for start in starts]),
        preview_actions=generator.uniform(-1, 1, (chunks, previewed, 4)).astype(np.float32),
        preview_levels=generator.uniform(0, 1, (chunks, previewed)).astype(np.float32),
        latency_ms=generator.uniform(5, 9, chunks).astype(np.float32),
        network_calls=np.full(chunks, 2),
    )
    return SavedRollout(rollout, _scene(), _poses(executed), SPEC)


def _save(path: Path, saved: SavedRollout) -> Path:
    return save_rollout(path, saved.rollout, saved.scene, saved.body_poses, saved.spec)


def _same(mine: object, other: object) -> bool:
    if isinstance(mine, np.ndarray):
        return mine.dtype == other.dtype and mine.shape == other.shape and mine.tobytes() == other.tobytes()
    if isinstance(mine, dict):
        return list(mine) == list(other) and all(_same(mine[key], other[key]) for key in mine)
    return mine == other


# --- the rollout file


def test_a_rollout_file_gives_everything_back_bit_for_bit(tmp_path):
    saved = _saved(images=True)
    loaded = load_rollout(_save(tmp_path / "deep" / "r.npz", saved))
    for name, value in vars(saved.rollout.episode).items():
        assert _same(value, getattr(loaded.rollout.episode, name)), name
    for name, value in vars(saved.rollout).items():
        assert name == "episode" or _same(value, getattr(loaded.rollout, name)), name
    assert _same(saved.body_poses, loaded.body_poses)
    assert loaded.spec == saved.spec
    assert (loaded.scene.bodies, loaded.scene.tool) == (saved.scene.bodies, TOOL)
    for before, after in zip(saved.scene.geoms, loaded.scene.geoms, strict=True):
        plain = [
            (geom.body, geom.name, geom.kind, geom.size, geom.position, geom.quaternion, geom.rgba)
            for geom in (before, after)
        ]
        assert plain[0] == plain[1]
        if before.kind == "mesh":
            assert _same(before.vertices[before.faces], after.vertices[after.faces])
    assert read_start_id(tmp_path / "deep" / "r.npz") == 100007
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["r.npz"]


def test_geoms_of_one_mesh_share_it_and_corners_are_stored_once(tmp_path):
    loaded = load_rollout(_save(tmp_path / "r.npz", _saved()))
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
    whole = _save(tmp_path / "r.npz", _saved()).read_bytes()
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
    path = _rewrite(_save(tmp_path / "r.npz", _saved()), change)
    with pytest.raises(UserError, match=r"r\.npz"):
        load_rollout(path)
    assert not (tmp_path / "unpickled").exists()


def test_newer_missing_and_foreign_files_are_told_apart(tmp_path):
    newer = _rewrite(_save(tmp_path / "r.npz", _saved()), _change_header(version=rollout_file.VERSION + 1))
    with pytest.raises(UserError, match=r"version 2 in .*; update this program"):
        load_rollout(newer)
    with pytest.raises(UserError, match=r"nothing at .*absent"):
        load_rollout(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("a text")
    with pytest.raises(UserError, match="another file"):
        read_start_id(tmp_path / "text.npz")


def test_a_failed_save_keeps_what_was_there(tmp_path, monkeypatch):
    path = _save(tmp_path / "r.npz", _saved())
    before = path.read_bytes()
    wrong = _saved()
    wrong.body_poses = wrong.body_poses[:-1]
    with pytest.raises(UserError, match=r"body poses of shape \(30, 4, 7\)"):
        _save(path, wrong)
    monkeypatch.setattr(rollout_file, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="fewer and smaller images"):
        _save(path, _saved())
    monkeypatch.undo()
    monkeypatch.setattr(rollout_file.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(UserError, match="found no space; make space there"):
        _save(path, _saved(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- predicted paths


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (("0.05 m", "5 cm", "50mm"), [0.05] * 3),
        (("m", "m", "m"), [1.0] * 3),
        (("1e-2 m", "m", "m"), [0.01, 1.0, 1.0]),
        (("0.05 rad", "m", "m"), None),
        (("m/s", "m", "m"), None),
        (("mrad", "m", "m"), None),
    ],
)
def test_units_say_how_far_an_action_moves_the_tool(units, expected):
    spec = ActionSpec(units=units, **_without_units())
    found = metres_per_unit(spec)
    assert found is None if expected is None else found.tolist() == pytest.approx(expected)


def _without_units() -> dict:
    return {
        "elements": ("x", "y", "z"),
        "low": (-1.0,) * 3,
        "high": (1.0,) * 3,
        "binary": (False,) * 3,
        "representation": "delta",
        "rotation": "none",
    }


def test_predicted_paths_start_at_the_tool_and_sum_the_deltas():
    saved = _saved()
    rollout = saved.rollout
    chunk, preview = predicted_paths(rollout, saved.scene, saved.body_poses, SPEC.action)
    tool = saved.body_poses[rollout.chunk_steps, TOOL, :3]
    assert chunk.shape == (8, AHEAD + 1, 3) and preview.shape == (8, PREVIEWED + 1, 3)
    np.testing.assert_array_equal(chunk[:, 0], tool)
    np.testing.assert_allclose(chunk[:, -1], tool + 0.05 * rollout.chunk_actions[..., :3].sum(axis=1), atol=1e-6)
    np.testing.assert_array_equal(preview[:, 0], chunk[:, -1])
    end = chunk[:, -1] + 0.05 * rollout.preview_actions[..., :3].sum(axis=1)
    np.testing.assert_allclose(preview[:, -1], end, atol=1e-6)
    # A tool that does what it is told follows the predicted path exactly.
    np.testing.assert_allclose(chunk[0], saved.body_poses[: AHEAD + 1, TOOL, :3], atol=1e-6)


def test_a_lagging_tool_shortens_the_predicted_path():
    saved = _saved()
    metres = np.full(3, 0.05)
    tool = saved.body_poses[:, TOOL, :3]
    assert tool_response(saved.rollout, tool, metres) == pytest.approx(1.0, abs=1e-5)
    saved.body_poses[:, TOOL, :3] = tool[0] + 0.4 * (tool - tool[0])
    assert tool_response(saved.rollout, saved.body_poses[:, TOOL, :3], metres) == pytest.approx(0.4, abs=1e-5)
    chunk, _ = predicted_paths(saved.rollout, saved.scene, saved.body_poses, SPEC.action)
    np.testing.assert_allclose(chunk[0], saved.body_poses[: AHEAD + 1, TOOL, :3], atol=1e-6)


def test_predictions_stand_at_the_steps_they_were_made_for():
    rollout = _saved().rollout
    clean, noisy = predicted_by_step(rollout)
    np.testing.assert_array_equal(clean, rollout.episode.executed)
    assert np.isnan(noisy[:AHEAD]).all()
    np.testing.assert_array_equal(noisy[AHEAD : 2 * AHEAD], rollout.preview_actions[0, :AHEAD])
    np.testing.assert_array_equal(noisy[2 * AHEAD], rollout.preview_actions[1, 0])  # the newest preview wins


# --- recordings


class _Recording:
    """What a recording holds, read back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks = RrdReader(path).stream().to_chunks()

    @property
    def entities(self) -> set[str]:
        return {chunk.entity_path for chunk in self.chunks}

    def rows(self, entity: str, column: str) -> tuple[list[int], list]:
        """(steps, values) of a column over time, in order of the steps."""
        found = []
        for chunk in self.chunks:
            batch = chunk.to_record_batch()
            if chunk.entity_path == entity and not chunk.is_static and column in batch.schema.names:
                assert set(chunk.timeline_names) == {"step", "time"}
                seconds = [time.total_seconds() for time in batch.column("time").to_pylist()]
                steps = batch.column("step").to_pylist()
                assert seconds == pytest.approx([step / 20 for step in steps])
                found += zip(steps, batch.column(column).to_pylist(), strict=True)
        found.sort(key=lambda row: row[0])
        return [row[0] for row in found], [row[1] for row in found]

    def static(self, entity: str) -> dict:
        values = {}
        for chunk in self.chunks:
            if chunk.entity_path == entity and chunk.is_static:
                batch = chunk.to_record_batch()
                values |= {name: batch.column(name).to_pylist()[0] for name in batch.schema.names}
        return values

    def scalars(self, entity: str) -> tuple[list[int], list[float]]:
        steps, values = self.rows(entity, "Scalars:scalars")
        return steps, [value[0] for value in values]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[SavedRollout, _Recording]:
    saved = _saved(images=True)
    path = write_recording(tmp_path_factory.mktemp("recording") / "r.rrd", saved, "a title")
    assert [file.name for file in path.parent.iterdir()] == ["r.rrd"]
    return saved, _Recording(path)


def test_bodies_move_as_their_poses_say(recorded):
    saved, recording = recorded
    bodies = {
        "/world/bodies/world": 0,
        r"/world/bodies/arm\ link\/1": 1,
        "/world/bodies/tool": 2,
        "/world/bodies/body_3": 3,
    }
    for entity, body in bodies.items():
        steps, translations = recording.rows(entity, "Transform3D:translation")
        _, quaternions = recording.rows(entity, "Transform3D:quaternion")
        assert steps == list(range(STEPS)), entity
        np.testing.assert_array_equal(np.float32(translations)[:, 0], saved.body_poses[:, body, :3])
        np.testing.assert_array_equal(np.float32(quaternions)[:, 0], saved.body_poses[:, body, [4, 5, 6, 3]])


def test_geometry_is_logged_once_under_its_body(recorded):
    saved, recording = recorded
    mesh = recording.static(r"/world/bodies/tool/8_mesh\ of\ 2")
    vertices, faces = np.float32(mesh["Mesh3D:vertex_positions"]), np.array(mesh["Mesh3D:triangle_indices"])
    geom = saved.scene.geoms[8]
    np.testing.assert_array_equal(vertices[faces], geom.vertices[geom.faces])
    assert recording.static(r"/world/bodies/body_3/2_box\ of\ 3")["Boxes3D:half_sizes"] == [
        pytest.approx([0.1, 0.2, 0.3])
    ]
    capsule = recording.static(r"/world/bodies/body_3/6_capsule\ of\ 3")
    assert capsule["Capsules3D:lengths"] == [pytest.approx(0.4)]
    assert capsule["Capsules3D:translations"] == [pytest.approx([0, 0, -0.2])]
    hidden = {entity for entity in recording.entities if "/surroundings/" in entity}
    assert hidden == {
        r"/world/bodies/world/surroundings/0_plane\ of\ 0",
        r"/world/bodies/world/surroundings/1_box\ of\ 0",
    }


def test_predicted_paths_are_logged_where_the_chunks_were_handed_out(recorded):
    saved, recording = recorded
    rollout = saved.rollout
    steps, strips = recording.rows("/world/predicted/chunk", "LineStrips3D:strips")
    assert steps == rollout.chunk_steps.tolist()
    strips = np.float32(strips)[:, 0]
    tool = saved.body_poses[rollout.chunk_steps, TOOL, :3]
    np.testing.assert_array_equal(strips[:, 0], tool)
    np.testing.assert_allclose(strips[:, -1], tool + 0.05 * rollout.chunk_actions[..., :3].sum(axis=1), atol=1e-5)
    steps, segments = recording.rows("/world/predicted/preview", "LineStrips3D:strips")
    segments = np.float32(segments)
    assert segments.shape == (8, PREVIEWED, 2, 3)
    np.testing.assert_array_equal(segments[:, 0, 0], strips[:, -1])
    _, so_far = recording.rows("/world/executed/so_far", "LineStrips3D:strips")
    np.testing.assert_array_equal(np.float32(so_far[12][0]), saved.body_poses[:13, TOOL, :3])


def test_a_noisier_preview_is_drawn_greyer(recorded):
    saved, recording = recorded
    _, colors = recording.rows("/world/predicted/preview", "LineStrips3D:colors")
    rgb = np.array(colors).astype(np.uint32)[..., None] >> np.array([24, 16, 8]) & 255
    spread = np.ptp(rgb.astype(int), axis=-1).ravel()
    order = np.argsort(saved.rollout.preview_levels.ravel())
    assert (np.diff(spread[order]) <= 2).all() and spread[order[0]] > 100 > 50 > spread[order[-1]]


def test_policy_and_outcome_values_are_logged(recorded):
    saved, recording = recorded
    rollout, episode = saved.rollout, saved.rollout.episode
    steps, levels = recording.rows("/policy/noise_level", "BarChart:values")
    assert steps == rollout.chunk_steps.tolist()
    for logged, given in zip(levels, rollout.preview_levels, strict=True):
        np.testing.assert_array_equal(np.float32(logged[0]["buffer"]), [0.0] * AHEAD + given.tolist())
    steps, latency = recording.scalars("/policy/latency_ms")
    assert (steps, latency) == (rollout.chunk_steps.tolist(), rollout.latency_ms.tolist())
    assert recording.scalars("/action/y/executed") == (list(range(STEPS)), episode.executed[:, 1].tolist())
    assert recording.scalars("/action/y/predicted")[1] == episode.executed[:, 1].tolist()
    assert recording.scalars("/action/gripper/previewed")[0] == list(range(AHEAD, STEPS))
    # Success and reward stand after the action that led to them: the first success is that of step 21.
    steps, success = recording.scalars("/outcome/success")
    assert steps[success.index(1.0)] == episode.first_success == 21
    assert recording.scalars("/outcome/reward") == (list(range(1, STEPS + 1)), episode.reward.tolist())


def test_images_are_jpegs_at_their_own_steps(recorded):
    _, recording = recorded
    steps, blobs = recording.rows(r"/cameras/front\/left", "EncodedImage:blob")
    assert steps == list(range(STEPS))
    assert all(bytes(blob[0][:3]) == b"\xff\xd8\xff" for blob in blobs)
    assert len({bytes(blob[0]) for blob in blobs}) == STEPS


def test_the_recording_says_what_it_shows(recorded):
    _, recording = recorded
    properties = recording.static("/__properties/episode")
    assert properties["task"] == ["test/replay"] and properties["start_id"] == [100007]
    assert properties["success"] == [True] and properties["first_success"] == [21]
    assert properties["policy"] == ["sdp"] and properties["network_calls"] == [16]
    text = recording.static("/about")["TextDocument:text"][0]
    assert text.startswith("# a title\n\nlift the cube") and "| first success | 21 |" in text
    assert recording.static("/__properties")["RecordingInfo:name"] == ["a title"]
    assert len(RrdReader(recording.path).blueprints()) == 1


def test_the_command_line_of_rerun_accepts_the_recording(recorded):
    verify = [Path(sys.executable).with_name("rerun"), "rrd", "verify", recorded[1].path]
    finished = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


def test_a_policy_without_a_buffer_has_no_noise_levels(tmp_path):
    recording = _Recording(write_recording(tmp_path / "r.rrd", _saved(previewed=0), "t"))
    entities = recording.entities
    assert "/policy/latency_ms" in entities and "/action/x/predicted" in entities
    assert not entities & {"/policy/noise_level", "/world/predicted/preview", "/action/x/previewed"}


def test_a_demonstration_shows_clean_beside_executed_actions(tmp_path):
    saved = _saved()
    episode = saved.rollout.episode
    path = write_demonstration(tmp_path / "d.rrd", episode, saved.scene, saved.body_poses, SPEC, "demo")
    recording = _Recording(path)
    assert recording.scalars("/action/z/clean")[1] == episode.action[:, 2].tolist()
    assert recording.scalars("/action/z/executed")[1] == episode.executed[:, 2].tolist()
    assert not [entity for entity in recording.entities if entity.startswith(("/policy", "/world/predicted"))]


def test_a_process_that_wrote_a_recording_ends_at_once(tmp_path):
    _save(tmp_path / "r.npz", _saved())
    script = (
        "import sys, time; from embodied.replay.recording import write_recording\n"
        "from embodied.replay.rollout_file import load_rollout\n"
        "write_recording(sys.argv[2], load_rollout(sys.argv[1]), 't'); sys.stdout.write(str(time.time()))"
    )
    command = [sys.executable, "-c", script, tmp_path / "r.npz", tmp_path / "r.rrd"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert time.time() - float(finished.stdout) < 5
    assert "RerunWarning" not in finished.stderr and _Recording(tmp_path / "r.rrd").chunks


def test_action_plots_are_grouped_by_unit():
    spec = TaskSpec.from_json(
        {
            **SPEC.to_json(),
            "action": {
                "elements": ["x", "y", "z", "rx", "ry", "rz", "gripper"],
                "units": ["m"] * 3 + ["rad"] * 3 + ["open"],
                "low": [-1] * 7,
                "high": [1] * 7,
                "binary": [False] * 6 + [True],
                "representation": "delta",
                "rotation": "axis_angle",
            },
        }
    )
    assert layout.action_groups(spec) == [[(0, 0), (1, 1), (2, 2), (3, 6)], [(0, 3), (1, 4), (2, 5)]]


@pytest.mark.heavy
def test_a_picture_of_the_recording_can_be_taken(recorded, tmp_path):
    picture = tmp_path / "p.png"
    finished = subprocess.run(
        [sys.executable, PICTURE_TOOL, recorded[1].path, picture, "--size", "600x400"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "message"), [(["absent.rrd", "p.png"], "xvfb-run is missing; apt-get install"), ([], "usage")]
)
def test_the_picture_tool_names_what_is_missing(tmp_path, arguments, message):
    finished = subprocess.run(
        [sys.executable, PICTURE_TOOL, *arguments], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert finished.returncode != 0 and message in finished.stderr and "Traceback" not in finished.stderr


# --- the viewer


def test_without_a_screen_nothing_is_started(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(viewer.subprocess, "Popen", lambda *_, **__: pytest.fail("a viewer was started"))
    assert not viewer.has_screen() and not viewer.open_recording("r.rrd")
    assert "rerun r.rrd --web-viewer" in viewer.how_to_view("r.rrd")


def test_a_viewer_is_started_with_bounded_memory(monkeypatch):
    started = []
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(viewer.subprocess, "Popen", lambda command, **options: started.append((command, options)))
    assert viewer.open_recording("r.rrd")
    command, options = started[0]
    assert command[1:] == ["r.rrd", "--memory-limit", "2GB"] and options["start_new_session"]


# --- the command


class ToyTask:
    """As much of a task as a demonstration's drawing asks for."""

    spec = SPEC
    asked: list = []  # noqa: RUF012  what happened, for the test to read

    def __init__(self, **settings) -> None:
        self.asked.append(("made", settings))

    def reset(self, start_id: int) -> None:
        self.asked.append(("reset", start_id))

    def scene(self) -> Scene:
        return _scene()

    def body_poses(self, physics: np.ndarray) -> np.ndarray:
        poses = np.tile(np.array([0, 0, 0, *STILL], np.float32), (len(physics), 4, 1))
        poses[:, TOOL, :3] = physics[:, :3]
        return poses

    def close(self) -> None:
        self.asked.append(("closed", None))


def _config(tmp_path: Path, run: Path, **changes):
    base = {"run_root": str(tmp_path / "outputs"), "name": None, "force": False, "resume": None}
    return OmegaConf.create({**base, "run": str(run), "episode": None, "open": False, **changes})


@pytest.fixture
def evaluation(tmp_path) -> Path:
    run = tmp_path / "outputs" / "eval" / "lift"
    for seed in (100001, 100007):
        _save(run / "rollouts" / f"start_{seed}.npz", _saved(seed=seed))
    (run / "config.yaml").write_text("task: x\n")
    return run


def test_the_command_replays_a_start_of_an_evaluation(tmp_path, evaluation):
    summary_path = replay.run(_config(tmp_path, evaluation, episode=100007))
    summary = json.loads(summary_path.read_text())
    assert (summary["kind"], summary["start"], summary["first_success"]) == ("rollout", 100007, 21)
    recording = _Recording(summary_path.parent / summary["recording"])
    assert recording.static("/__properties/episode")["start_id"] == [100007]
    first = json.loads(replay.run(_config(tmp_path, evaluation)).read_text())
    assert first["start"] == 100001
    assert json.loads(replay.run(_config(tmp_path, Path("lift"))).read_text())["start"] == 100001  # by its name


def test_a_training_run_leads_to_its_evaluation(tmp_path, evaluation):
    training = tmp_path / "outputs" / "train" / "sdp"
    training.mkdir(parents=True)
    (training / "config.yaml").write_text("task: x\n")
    (training / "summary.json").write_text(json.dumps({"command": "train", "evaluation": {"path": "../../eval/lift"}}))
    assert json.loads(replay.run(_config(tmp_path, training)).read_text())["start"] == 100001


def test_an_unknown_start_lists_the_recorded_ones(tmp_path, evaluation):
    with pytest.raises(UserError, match="found episode=5; recorded starts: 100001, 100007"):
        replay.run(_config(tmp_path, evaluation, episode=5))
    with pytest.raises(UserError, match="episode= to be a start id"):
        replay.run(_config(tmp_path, evaluation, episode="first"))
    with pytest.raises(UserError, match="does not exist"):
        replay.run(_config(tmp_path, tmp_path / "absent"))
    for file in (evaluation / "rollouts").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="found none; evaluate again with recordings"):
        replay.run(_config(tmp_path, evaluation))


def test_the_command_says_how_to_view_where_there_is_no_screen(tmp_path, evaluation, monkeypatch, capsys):
    monkeypatch.setattr(replay, "open_recording", lambda path: False)
    rollout = evaluation / "rollouts" / "start_100007.npz"
    summary_path = replay.run(_config(tmp_path, rollout, open=None))
    recording = summary_path.parent / "start_100007.rrd"
    assert f"view it with `rerun {recording}`" in capsys.readouterr().out
    opened = []
    monkeypatch.setattr(replay, "open_recording", lambda path: opened.append(path) or True)
    summary = json.loads(replay.run(_config(tmp_path, recording, open=True)).read_text())
    assert opened == [recording] and (summary["kind"], summary["recording"]) == ("recording", str(recording))


def test_an_episode_of_a_store_is_drawn_by_its_task(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, SPEC.task, f"{__name__}:ToyTask")
    monkeypatch.setattr(ToyTask, "asked", asked := [])
    episodes = [_saved(seed=seed).rollout.episode for seed in (3, 4)]
    provenance = {"task": {"name": SPEC.task, "robot": "Sawyer", "cameras": ["front"]}}
    with EpisodeStore.create(tmp_path / "d.zarr", SPEC, expected_episodes=2, provenance=provenance) as store:
        for episode in episodes:
            store.commit(episode)
    summary_path = replay.run(_config(tmp_path, tmp_path / "d.zarr", episode=4))
    summary = json.loads(summary_path.read_text())
    assert (summary["kind"], summary["start"], summary["steps"]) == ("demonstration", 4, STEPS)
    assert asked == [("made", {"robot": "Sawyer", "cameras": []}), ("reset", 4), ("closed", None)]
    recording = _Recording(summary_path.parent / summary["recording"])
    _, translations = recording.rows("/world/bodies/tool", "Transform3D:translation")
    np.testing.assert_array_equal(np.float32(translations)[:, 0], np.float32(episodes[1].physics[:, :3]))
    assert recording.scalars("/action/x/clean")[1] == episodes[1].action[:, 0].tolist()


def test_cameras_stand_beside_the_scene():
    spec = TaskSpec.from_json({**SPEC.to_json(), "cameras": [{"name": "front/left", "height": 24, "width": 32}]})
    assert spec.cameras == (CameraSpec("front/left", 24, 32),)
    saved = _saved()
    made = layout.blueprint(spec, saved.scene, saved.body_poses, has_levels=True, most_latency_ms=5.0)
    views = [view for view in _views(made.root_container) if view.class_identifier == "2D"]
    assert [view.origin for view in views] == [r"/cameras/front\/left"]


def _views(container):
    for part in container.contents:
        yield from _views(part) if hasattr(part, "column_shares") else [part]
