"""How the viewer lays a recording out: the 3-D view large on the left, plots on the right, ready without a touch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from scipy.spatial.transform import Rotation

from embodied.replay.scene_drawing import SURROUNDINGS, WORLD, body_paths, is_surroundings
from embodied.types import UNKNOWN_UNIT, Scene, TaskSpec

_PLOTS_A_TAB = 4
_EYE_DISTANCE = 2.0  # over the radius of what moves
_NEAR_M = 3.0  # from the tool: what is farther off is not looked at
_FLAT_M = 1e-6  # heights that differ by less are one
# From the table towards the eye: in front, to the robot's right; where something stands in the way, the next.
_EYE_DIRECTIONS = np.array([[0.80, -0.60, 0.36], [0.80, 0.60, 0.36], [-0.60, -0.80, 0.36], [-0.60, 0.80, 0.36]])


def action_entities(spec: TaskSpec) -> list[str]:
    """The entity of each action element, under which its series stand."""
    return [rr.new_entity_path(["action", name]).removeprefix("/") for name in spec.action.elements]


def camera_entity(name: str) -> str:
    return rr.new_entity_path(["cameras", name])


def blueprint(
    spec: TaskSpec, scene: Scene, body_poses: np.ndarray, *, has_levels: bool, most_latency_ms: float | None
) -> rrb.Blueprint:
    """The layout for a recording of this task.

    Args:
        body_poses: float32 [T bodies 7].
        has_levels: whether noise levels are logged.
        most_latency_ms: the top of the latency plot; None leaves the plot out.
    """
    seen: list[rrb.Container | rrb.View] = []
    if scene.bodies:
        hidden = [f"- {path}/{SURROUNDINGS}/**" for path in body_paths(scene)]
        contents, eye = [f"+ /{WORLD}/**", *hidden], _eye(scene, body_poses)
        seen.append(rrb.Spatial3DView(name="Scene", origin=f"/{WORLD}", contents=contents, eye_controls=eye))
    if spec.cameras:
        cameras = [rrb.Spatial2DView(name=camera.name, origin=camera_entity(camera.name)) for camera in spec.cameras]
        seen.append(rrb.Horizontal(*cameras))
    lower: list[rrb.View] = [_plot("Success and reward", "/outcome", legend=rrb.Corner2D.RightBottom)]
    if most_latency_ms is not None:
        lower.insert(0, _plot("Latency (ms)", "/policy/latency_ms", high=1.2 * most_latency_ms))
    right: list[rrb.Container | rrb.View] = [action_tabs(spec)]
    if has_levels:
        no_legend = rrb.PlotLegend(visible=False)
        name = "Noise level by buffer slot"
        right.append(rrb.BarChartView(name=name, origin="/policy/noise_level", plot_legend=no_legend))
    right.append(rrb.Horizontal(*lower) if len(lower) > 1 else lower[0])
    shares = [3.4, *([1.0] * (len(right) - 1))]
    return rrb.Blueprint(
        _beside(seen, rrb.Vertical(*right, row_shares=shares)),
        rrb.TimePanel(state="collapsed", timeline="time", play_state="playing", loop_mode="all"),
        rrb.SelectionPanel(state="hidden"),
        rrb.BlueprintPanel(state="hidden"),
        auto_layout=False,
        auto_views=False,
    )


def _beside(seen: list[rrb.Container | rrb.View], plots: rrb.Vertical) -> rrb.Container:
    """What there is to see (scene, cameras, both or neither), and the plots."""
    if not seen:
        return plots
    return rrb.Horizontal(rrb.Vertical(*seen, row_shares=[3, 1][: len(seen)]), plots, column_shares=[3, 2])


def action_tabs(spec: TaskSpec, more: Sequence[rrb.Container] = ()) -> rrb.Tabs:
    """One small plot an element, a tab for each few: motion and gripper together, then rotation, then the rest.

    Args:
        more: further tabs, before the one with the text.
    """
    tabs: list[rrb.Container | rrb.View] = []
    for group in action_groups(spec):
        plots = [
            _plot(_title(spec, index), f"/{action_entities(spec)[index]}", legend=None if n else rrb.Corner2D.RightTop)
            for n, index in group
        ]
        first, last = (spec.action.elements[group[end][1]] for end in (0, -1))
        tabs.append(rrb.Vertical(*plots, name=f"Action: {first} to {last}" if first != last else f"Action: {first}"))
    tabs += more
    tabs.append(rrb.TextDocumentView(name="About", origin="/about"))
    return rrb.Tabs(*tabs, active_tab=0)


def action_groups(spec: TaskSpec) -> list[list[tuple[int, int]]]:
    """(place in its tab, element) for each tab; elements of one unit stay together, binary ones join the first tab."""
    by_unit: dict[str, list[int]] = {}
    for index, unit in enumerate(spec.action.units):
        if not spec.action.binary[index]:
            by_unit.setdefault(unit, []).append(index)
    groups = [
        indices[i : i + _PLOTS_A_TAB] for indices in by_unit.values() for i in range(0, len(indices), _PLOTS_A_TAB)
    ]
    binary = [index for index, is_binary in enumerate(spec.action.binary) if is_binary]
    if groups and len(groups[0]) + len(binary) <= _PLOTS_A_TAB:
        groups[0] = groups[0] + binary
    elif binary:
        groups.append(binary)
    return [list(enumerate(group)) for group in groups]


def _title(spec: TaskSpec, index: int) -> str:
    name, unit = spec.action.elements[index], spec.action.units[index]
    if unit == UNKNOWN_UNIT:
        return name
    return f"{name} ({unit})" if spec.action.binary[index] else f"{name} (1 = {unit})"


def _plot(
    name: str, origin: str, *, legend: rrb.Corner2D | None = None, high: float | None = None
) -> rrb.TimeSeriesView:
    """Lines over time; `high` fixes the value axis to 0 .. high."""
    return rrb.TimeSeriesView(
        name=name,
        origin=origin,
        plot_legend=rrb.PlotLegend(corner=legend, visible=legend is not None),
        axis_y=rrb.ScalarAxis(range=(0.0, high)) if high else None,
    )


def _eye(scene: Scene, body_poses: np.ndarray) -> rrb.EyeControls3D:
    """An eye that sees the tool's whole path and the bodies around it; from above, where all moves in one plane."""
    drawn = sorted({geom.body for geom in scene.geoms if not is_surroundings(geom, body_poses)})
    path = body_poses[:, scene.tool, :3]
    # Robosuite parks the objects that an episode does without metres away, where they fall and settle.
    near = [
        body
        for body in drawn
        if np.linalg.norm(body_poses[:1, body, :3] - path[:1], axis=-1).max(initial=0.0) < _NEAR_M
    ]
    moving = [body for body in near if np.ptp(body_poses[:, body, :3], axis=0).max(initial=0.0) > 1e-3]
    watched = [scene.tool, *moving]
    if moving and not np.ptp(path, axis=0).max(initial=0.0) > 1e-3:  # nobody said which body is the tool
        watched, path = moving, body_poses[:, moving, :3].mean(axis=1)
    points = body_poses[:, watched, :3].reshape(-1, 3)
    heights = body_poses[:, watched, 2]
    if len(points) and np.ptp(heights, axis=0).max() < _FLAT_M < np.ptp(path[:, :2], axis=0).max():
        return _eye_from_above(scene, body_poses)
    if not len(points):
        path = points = np.zeros((1, 3))
    middle, half = (points.max(axis=0) + points.min(axis=0)) / 2, np.ptp(points, axis=0) / 2
    target = 0.5 * middle + 0.5 * (path.max(axis=0) + path.min(axis=0)) / 2  # nearer to what the tool works on
    radius = max(float(np.linalg.norm(half)), 0.3)
    directions = _EYE_DIRECTIONS / np.linalg.norm(_EYE_DIRECTIONS, axis=1, keepdims=True)
    eyes = target + directions * radius * _EYE_DISTANCE
    eye = min(eyes, key=lambda eye: _hidden_share(eye, path, scene, body_poses))  # the first of the best
    return rrb.EyeControls3D(position=eye, look_target=target, eye_up=(0.0, 0.0, 1.0))


def _hidden_share(eye: np.ndarray, path: np.ndarray, scene: Scene, body_poses: np.ndarray) -> float:
    """Of a path [T 3], the share that boxes and cylinders, where they first stand, hide from an eye [3]."""
    points = path[:: max(1, len(path) // 16)]
    hidden = np.zeros(len(points), bool)
    for geom in scene.geoms:
        if geom.kind in ("box", "cylinder") and not is_surroundings(geom, body_poses):
            body = body_poses[0, geom.body]
            turned = Rotation.from_quat(np.roll(body[3:], -1))
            centre = body[:3] + turned.apply(geom.position)
            frame = (turned * Rotation.from_quat(np.roll(geom.quaternion, -1))).inv()
            x, y, z = geom.size
            half = np.array([x, x, y] if geom.kind == "cylinder" else [x, y, z])
            hidden |= _through_box(frame.apply(eye - centre), frame.apply(points - centre), half)
    return float(hidden.mean())


def _through_box(start: np.ndarray, ends: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Which lines from `start` [3] to `ends` [N 3] cross the box of these half sizes around the origin: bool [N]."""
    along = ends - start
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    one, other = (-half - start) / along, (half - start) / along
    enters, leaves = np.minimum(one, other).max(axis=1), np.maximum(one, other).min(axis=1)
    return np.maximum(enters, 0.0) < np.minimum(leaves, 0.99)


def _eye_from_above(scene: Scene, body_poses: np.ndarray) -> rrb.EyeControls3D:
    """An eye straight above everything drawn, the y axis up in the picture."""
    drawn = [geom for geom in scene.geoms if not is_surroundings(geom, body_poses)]
    centres = np.array([body_poses[0, geom.body, :3] + geom.position for geom in drawn])
    has_sides = ("box", "ellipsoid")
    reach = np.array([geom.size if geom.kind in has_sides else [geom.size[0]] * 3 for geom in drawn])
    low, high = (centres - reach).min(axis=0), (centres + reach).max(axis=0)
    middle, radius = (low + high) / 2, float(max(high[0] - low[0], high[1] - low[1])) / 2
    eye = middle + np.array([0.0, 0.0, radius * _EYE_DISTANCE])
    return rrb.EyeControls3D(position=eye, look_target=middle, eye_up=(0.0, 1.0, 0.0))
