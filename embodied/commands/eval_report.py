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
MOST_SHOWN = 12  # recorded episodes, however many there are


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
    """Pictures of some recorded episodes, failures first; a rollout stands beside its recording, of the same name."""
    recorded = [
        (row, rollout)
        for row in sorted(result["episodes"], key=lambda row: row["success_ever"])
        if row["recording"] is not None
        and (rollout := folder / "rollouts" / f"{Path(row['recording']).stem}.npz").is_file()
    ]
    if not recorded:
        return []
    from embodied.replay.still_frames import still_frames  # seconds to import

    return [
        GalleryEpisode(row, [Picture(f"step {frame.step}", frame.png) for frame in still_frames(rollout, FRAMES)])
        for row, rollout in ((row, load_rollout(path)) for row, path in recorded[:MOST_SHOWN])
    ]
