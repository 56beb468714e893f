"""Rollouts and demonstrations as Rerun recordings. Written to a file; no viewer is needed or waited for.

Letters: T time, C chunks, Ta actions of a chunk, P actions of a preview, A action.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from embodied.replay import layout
from embodied.replay.predicted_path import metres_per_unit, predicted_by_step, predicted_paths, tool_response
from embodied.replay.rollout_file import SavedRollout
from embodied.replay.scene_drawing import WORLD, log_poses, log_scene
from embodied.types import Episode, Rollout, Scene, TaskSpec

APPLICATION = "embodied"
JPEG_QUALITY = 85
_TRAIL_STEPS = 100  # of the bright path behind the tool: bounded, for a growing one is quadratic in the episode
# Radii of lines are negative below: points on the screen, not metres.
_DONE = (70, 200, 120)
_DONE_FAINT = (55, 125, 85)
_CLEAN = (255, 170, 40)
_NOISY = (235, 80, 160)
_NOISE = (125, 125, 125)  # the viewer draws lines opaque, so that fading is a mixture of colours


def write_recording(path: str | Path, saved: SavedRollout, title: str) -> Path:
    """Write a rollout as a Rerun recording (`.rrd`), whole or not at all, and return its path.

    Timelines: `step`, the control step, and `time`, step / control rate in s. Images, poses and actions stand at the
    step that they belong to; reward and success stand one later, after the action that led to them. Predicted paths are
    scaled by the tool's response (`predicted_path_scale` in the text), for a controller lags behind its commands.
    """
    rollout, spec = saved.rollout, saved.spec
    episode = rollout.episode
    about: dict[str, str | int | float | bool] = {
        **_about(episode),
        "policy": str(episode.provenance.get("policy", "")),
        "chunks": len(rollout.chunk_steps),
        "network_calls": int(rollout.network_calls.sum()),
    }
    metres = metres_per_unit(spec.action)
    if metres is not None and saved.scene.bodies:
        response = tool_response(rollout, saved.body_poses[:, saved.scene.tool, :3], metres)
        about["predicted_path_scale"] = round(response, 3)
    has_preview = rollout.preview_actions.shape[1] > 0
    most_latency_ms = float(rollout.latency_ms.max()) if len(rollout.latency_ms) else None
    blueprint = layout.blueprint(
        spec, saved.scene, saved.body_poses, has_levels=_has_noise(rollout), most_latency_ms=most_latency_ms
    )
    with recording_file(path, title, blueprint) as recording:
        _log_episode(recording, episode, saved.scene, saved.body_poses, spec, title, about)
        clean, noisy = predicted_by_step(rollout)
        _log_actions(recording, spec, {"predicted": clean, "previewed": noisy} if has_preview else {"predicted": clean})
        _log_chunks(recording, rollout, spec)
        _log_predicted_paths(recording, saved)
    return Path(path)


def write_demonstration(
    path: str | Path, episode: Episode, scene: Scene, body_poses: np.ndarray, spec: TaskSpec, title: str
) -> Path:
    """Write an episode of a store as a Rerun recording (`.rrd`), and return its path.

    Like `write_recording`, with the clean action beside the executed one in place of predictions. `body_poses` is
    float32 [T bodies 7].
    """
    blueprint = layout.blueprint(spec, scene, body_poses, has_levels=False, most_latency_ms=None)
    with recording_file(path, title, blueprint) as recording:
        _log_episode(recording, episode, scene, body_poses, spec, title, _about(episode))
        _log_actions(recording, spec, {"clean": episode.action})
    return Path(path)


@contextmanager
def recording_file(path: str | Path, title: str, blueprint: rrb.Blueprint) -> Iterator[rr.RecordingStream]:
    """A stream that becomes the file `path` at the end, whole or not at all.

    It is kept in memory until then: Rerun's own file sink never returns once the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    recording = rr.RecordingStream(APPLICATION)
    stream = recording.binary_stream()
    try:
        recording.send_blueprint(blueprint, make_active=True, make_default=True)
        recording.set_log_time_enabled(False)  # the wall clock says nothing here, and would be one more timeline
        recording.set_log_tick_enabled(False)
        recording.send_recording_name(title)
        yield recording
        partial.write_bytes(stream.read() or b"")
        os.replace(partial, path)
    finally:
        recording.disconnect()
        partial.unlink(missing_ok=True)


def _times(steps: np.ndarray, spec: TaskSpec) -> list[rr.TimeColumn]:
    return [rr.TimeColumn("step", sequence=steps), rr.TimeColumn("time", duration=steps * spec.dt_s)]


def _about(episode: Episode) -> dict[str, str | int | float | bool]:
    return {
        "task": episode.task,
        "variant": episode.variant,
        "start_id": int(episode.seed),
        "steps": episode.length,
        "success": episode.success_ever,
        "success_last": episode.success_last,
        "first_success": episode.first_success or 0,  # 0: never
        "return": round(float(episode.reward.sum()), 4),
    }


def _log_episode(
    recording: rr.RecordingStream,
    episode: Episode,
    scene: Scene,
    body_poses: np.ndarray,
    spec: TaskSpec,
    title: str,
    about: dict[str, str | int | float | bool],
) -> None:
    """What a rollout and a demonstration share."""
    steps = np.arange(episode.length)
    recording.send_property("episode", rr.AnyValues(drop_untyped_nones=True, **about))
    rows = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in about.items() if value != "")
    instruction = f"\n\n{episode.instruction}" if episode.instruction else ""
    text = f"# {title}{instruction}\n\n| | |\n| --- | --- |\n{rows}\n"
    recording.log("about", rr.TextDocument(text, media_type="text/markdown"), static=True)
    if scene.bodies:
        log_scene(recording, scene, body_poses)
        log_poses(recording, scene, body_poses, _times(steps, spec))
        _log_executed_path(recording, body_poses[:, scene.tool, :3], spec)
    _log_actions(recording, spec, {"executed": episode.executed})
    success_line = rr.SeriesLines(colors=[_DONE], widths=[2.5], names=["success"])
    reward_dots = rr.SeriesPoints(colors=[_CLEAN], marker_sizes=[1.5], names=["reward"])
    for name, values, style in (("success", episode.success, success_line), ("reward", episode.reward, reward_dots)):
        recording.log(f"outcome/{name}", style, static=True)
        columns = rr.Scalars.columns(scalars=values.astype(np.float64))
        recording.send_columns(f"outcome/{name}", indexes=_times(steps + 1, spec), columns=columns)
    for name, images in episode.images.items():
        _log_images(recording, layout.camera_entity(name), images, spec)


def _log_images(recording: rr.RecordingStream, entity: str, images: np.ndarray, spec: TaskSpec) -> None:
    for step, image in enumerate(images):
        recording.set_time("step", sequence=step)
        recording.set_time("time", duration=step * spec.dt_s)
        recording.log(entity, rr.Image(image).compress(jpeg_quality=JPEG_QUALITY))
    recording.reset_time()


def _log_executed_path(recording: rr.RecordingStream, positions: np.ndarray, spec: TaskSpec) -> None:
    """The tool's whole path, faint, and what lies behind it by now, bright. `positions` is float32 [T 3]."""
    faint = rr.LineStrips3D([positions], colors=[_DONE_FAINT], radii=[-1.0])
    recording.log(f"{WORLD}/executed/whole", faint, static=True)
    recording.log(f"{WORLD}/executed/so_far", rr.LineStrips3D.from_fields(colors=[_DONE], radii=[-2.0]), static=True)
    strips = [positions[max(0, step + 1 - _TRAIL_STEPS) : step + 1] for step in range(len(positions))]
    columns = rr.LineStrips3D.columns(strips=strips)
    recording.send_columns(f"{WORLD}/executed/so_far", indexes=_times(np.arange(len(strips)), spec), columns=columns)


# Dots on the executed line, for a prediction that was executed as it stood would hide it.
_SERIES = {
    "executed": rr.SeriesLines(colors=[_DONE], widths=[2.5], names=["executed"]),
    "clean": rr.SeriesPoints(colors=[_CLEAN], marker_sizes=[1.5], names=["clean"]),
    "predicted": rr.SeriesPoints(colors=[_CLEAN], marker_sizes=[1.5], names=["predicted"]),
    "previewed": rr.SeriesLines(colors=[_NOISY], widths=[1.0], names=["previewed"]),
}


def action_series(name: str) -> rr.SeriesLines | rr.SeriesPoints:
    """How a series of actions is drawn, the same in every recording."""
    return _SERIES[name]


def _log_actions(recording: rr.RecordingStream, spec: TaskSpec, series: dict[str, np.ndarray]) -> None:
    """One plot an action element, one line a series of float32 [T A]; NaN rows are left out."""
    for name, values in series.items():
        for index, entity in enumerate(layout.action_entities(spec)):
            recording.log(f"{entity}/{name}", _SERIES[name], static=True)
            known = np.flatnonzero(~np.isnan(values[:, index]))
            columns = rr.Scalars.columns(scalars=values[known, index].astype(np.float64))
            recording.send_columns(f"{entity}/{name}", indexes=_times(known, spec), columns=columns)


def _log_chunks(recording: rr.RecordingStream, rollout: Rollout, spec: TaskSpec) -> None:
    """Latency and cost of each chunk, and the noise level of every slot of a buffer once its head was clean."""
    times = _times(rollout.chunk_steps, spec)
    for name, values in (("latency_ms", rollout.latency_ms), ("network_calls", rollout.network_calls)):
        recording.log(f"policy/{name}", rr.SeriesPoints(colors=[_CLEAN], names=[name], marker_sizes=[3]), static=True)
        columns = rr.Scalars.columns(scalars=values.astype(np.float64))
        recording.send_columns(f"policy/{name}", indexes=times, columns=columns)
    if _has_noise(rollout):
        head = np.zeros(rollout.chunk_actions.shape[:2], np.float32)
        for step, levels in zip(rollout.chunk_steps, np.hstack([head, rollout.preview_levels]), strict=True):
            recording.set_time("step", sequence=int(step))
            recording.set_time("time", duration=int(step) * spec.dt_s)
            recording.log("policy/noise_level", rr.BarChart(levels, color=_NOISY))
        recording.reset_time()


def _has_noise(rollout: Rollout) -> bool:
    """Whether there are levels to show: a preview that is clean throughout has none."""
    return bool((rollout.preview_levels > 0).any())


def _log_predicted_paths(recording: rr.RecordingStream, saved: SavedRollout) -> None:
    """The path that the newest chunk asks for, and its preview's, fainter the noisier."""
    rollout = saved.rollout
    paths = predicted_paths(rollout, saved.scene, saved.body_poses, saved.spec.action)
    if paths is None or not len(rollout.chunk_steps):
        return
    chunk_C, preview_C = paths
    times = _times(rollout.chunk_steps, saved.spec)
    entity = f"{WORLD}/predicted/chunk"
    recording.log(entity, rr.LineStrips3D.from_fields(colors=[_CLEAN], radii=[-3.0]), static=True)
    recording.send_columns(entity, indexes=times, columns=rr.LineStrips3D.columns(strips=list(chunk_C)))
    count = preview_C.shape[1] - 1
    if not count:
        return
    entity = f"{WORLD}/predicted/preview"
    recording.log(entity, rr.LineStrips3D.from_fields(radii=[-2.0]), static=True)
    segments = np.stack([preview_C[:, :-1], preview_C[:, 1:]], axis=2).reshape(-1, 2, 3)
    level = np.clip(rollout.preview_levels, 0.0, 1.0).reshape(-1, 1)
    colors = np.round((1 - level) * np.array(_NOISY) + level * np.array(_NOISE)).astype(np.uint8)
    columns = rr.LineStrips3D.columns(strips=list(segments), colors=colors)
    recording.send_columns(entity, indexes=times, columns=columns.partition([count] * len(preview_C)))
