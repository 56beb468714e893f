"""How the viewer lays a served session out: actions large, what the cameras saw, noise, latency and events around."""

from __future__ import annotations

import rerun as rr
import rerun.blueprint as rrb

from embodied.replay import layout
from embodied.types import StateSpec, TaskSpec

LATENCY, NOISE, EVENTS, STATE = "policy/latency_ms", "policy/noise_level", "events", "state"


def state_entity(vector: StateSpec, element: str) -> str:
    return rr.new_entity_path([STATE, vector.name, element]).removeprefix("/")


def session_blueprint(spec: TaskSpec) -> rrb.Blueprint:
    """The layout for a served session of a policy of this spec."""
    no_legend = rrb.PlotLegend(visible=False)
    noise = rrb.BarChartView(name="Noise level by buffer slot", origin=f"/{NOISE}", plot_legend=no_legend)
    legend = rrb.PlotLegend(corner=rrb.Corner2D.RightTop)
    latency = rrb.TimeSeriesView(name="Latency, deadline, misses (ms)", origin=f"/{LATENCY}", plot_legend=legend)
    events = rrb.TextLogView(name="Refusals, misses, drops", origin=f"/{EVENTS}")
    tabs = layout.action_tabs(spec, more=[_state_tab(spec)] if spec.state else [])
    right: list[rrb.Container | rrb.View] = [latency, noise, events]
    if spec.cameras:
        cameras = [rrb.Spatial2DView(name=one.name, origin=layout.camera_entity(one.name)) for one in spec.cameras]
        right.insert(0, rrb.Horizontal(*cameras))
    return rrb.Blueprint(
        rrb.Horizontal(tabs, rrb.Vertical(*right), column_shares=[3, 2]),
        rrb.TimePanel(state="collapsed", timeline="time"),
        rrb.SelectionPanel(state="hidden"),
        rrb.BlueprintPanel(state="hidden"),
        auto_layout=False,
        auto_views=False,
    )


def _state_tab(spec: TaskSpec) -> rrb.Container:
    plots = [
        rrb.TimeSeriesView(
            name=f"{vector.name} ({vector.unit})", origin=rr.new_entity_path([STATE, vector.name]), plot_legend=None
        )
        for vector in spec.state
    ]
    return rrb.Vertical(*plots, name="State")
