"""The page of HTML that `embodied eval` leaves in its run directory."""

from __future__ import annotations

from pathlib import Path

from embodied import __version__
from embodied.evaluation.report import GalleryEpisode, evaluation_report
from embodied.evaluation.report_page import Picture
from embodied.replay.rollout_file import load_rollout
from embodied.summaries import describe_machine
from embodied.types import Json

REPORT = "report.html"
FRAMES = 4  # of a recorded episode


def write_report(folder: Path, result: Json) -> str:
    """Write the report of an evaluation whose recordings stand in `folder`; returns its name there.

    Args:
        result: what the evaluation's summary will hold, without the keys that every summary has.

    Raises:
        UserError: a recorded rollout cannot be read.
    """
    summary = {"version": __version__, "machine": describe_machine(), **result}
    (folder / REPORT).write_text(evaluation_report(summary, _gallery(folder, result)), encoding="utf-8")
    return REPORT


def _gallery(folder: Path, result: Json) -> list[GalleryEpisode]:
    """Pictures of the recorded episodes; a rollout stands beside its recording, under the same name."""
    gallery = []
    for row in result["episodes"]:
        rollout = None if row["recording"] is None else folder / "rollouts" / f"{Path(row['recording']).stem}.npz"
        if rollout is not None and rollout.is_file():
            from embodied.replay.still_frames import still_frames  # seconds to import

            frames = [Picture(f"step {frame.step}", frame.png) for frame in still_frames(load_rollout(rollout), FRAMES)]
            gallery.append(GalleryEpisode(row, frames))
    return gallery
