"""Rerun recordings of rollouts and demonstrations, read back, and the picture of one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_rollouts import AHEAD, PREVIEWED, SPEC, STEPS, TOOL, RecordingReader, make_saved_rollout, save_to
from rerun.chunk import RrdReader

from embodied.replay import layout
from embodied.replay.recording import write_demonstration, write_recording
from embodied.replay.rollout_file import SavedRollout
from embodied.types import CameraSpec, TaskSpec

PICTURE_TOOL = Path(__file__).parent.parent / "tools" / "picture_of_recording.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[SavedRollout, RecordingReader]:
    saved = make_saved_rollout(images=True)
    path = write_recording(tmp_path_factory.mktemp("recording") / "r.rrd", saved, "a title")
    assert [file.name for file in path.parent.iterdir()] == ["r.rrd"]
    return saved, RecordingReader(path)


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


def test_a_preview_that_is_clean_is_drawn_without_noise_levels(tmp_path):
    saved = make_saved_rollout()
    saved.rollout.preview_levels[:] = 0
    recording = RecordingReader(write_recording(tmp_path / "r.rrd", saved, "t"))
    entities = recording.entities
    assert "/policy/noise_level" not in entities and "/action/gripper/previewed" in entities
    _, colors = recording.rows("/world/predicted/preview", "LineStrips3D:colors")
    assert len({tuple(np.ravel(color)) for color in colors}) == 1, "one colour, for all is as clean"


def test_a_policy_without_a_buffer_has_no_noise_levels(tmp_path):
    recording = RecordingReader(write_recording(tmp_path / "r.rrd", make_saved_rollout(previewed=0), "t"))
    entities = recording.entities
    assert "/policy/latency_ms" in entities and "/action/x/predicted" in entities
    assert not entities & {"/policy/noise_level", "/world/predicted/preview", "/action/x/previewed"}


def test_a_demonstration_shows_clean_beside_executed_actions(tmp_path):
    saved = make_saved_rollout()
    episode = saved.rollout.episode
    path = write_demonstration(tmp_path / "d.rrd", episode, saved.scene, saved.body_poses, SPEC, "demo")
    recording = RecordingReader(path)
    assert recording.scalars("/action/z/clean")[1] == episode.action[:, 2].tolist()
    assert recording.scalars("/action/z/executed")[1] == episode.executed[:, 2].tolist()
    assert not [entity for entity in recording.entities if entity.startswith(("/policy", "/world/predicted"))]


def test_a_process_that_wrote_a_recording_ends_at_once(tmp_path):
    save_to(tmp_path / "r.npz", make_saved_rollout())
    script = (
        "import sys, time; from embodied.replay.recording import write_recording\n"
        "from embodied.replay.rollout_file import load_rollout\n"
        "write_recording(sys.argv[2], load_rollout(sys.argv[1]), 't'); sys.stdout.write(str(time.time()))"
    )
    command = [sys.executable, "-c", script, tmp_path / "r.npz", tmp_path / "r.rrd"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert time.time() - float(finished.stdout) < 5
    assert "RerunWarning" not in finished.stderr and RecordingReader(tmp_path / "r.rrd").chunks


def test_a_full_disk_leaves_no_half_recording(tmp_path, monkeypatch):
    def fail(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        write_recording(tmp_path / "r.rrd", make_saved_rollout(), "t")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.skipif(shutil.which("xvfb-run") is None, reason="xvfb is not installed (apt-get install xvfb xauth)")
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


def test_cameras_stand_beside_the_scene():
    spec = TaskSpec.from_json({**SPEC.to_json(), "cameras": [{"name": "front/left", "height": 24, "width": 32}]})
    assert spec.cameras == (CameraSpec("front/left", 24, 32),)
    saved = make_saved_rollout()
    made = layout.blueprint(spec, saved.scene, saved.body_poses, has_levels=True, most_latency_ms=5.0)
    views = [view for view in _views(made.root_container) if view.class_identifier == "2D"]
    assert [view.origin for view in views] == [r"/cameras/front\/left"]


def _views(container):
    for part in container.contents:
        yield from _views(part) if hasattr(part, "column_shares") else [part]
