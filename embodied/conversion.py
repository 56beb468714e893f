"""Demonstrations from one format to another: what lies at the source says how to read it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from embodied.catalog import nearest
from embodied.datasets.diffusion_policy_zarr import DiffusionPolicyZarr
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.foreign_episodes import Stated
from embodied.datasets.lerobot_dataset import import_lerobot, is_lerobot
from embodied.datasets.lerobot_export import export_lerobot, export_lerobot_video
from embodied.datasets.lerobot_hub import fetched, is_hub_source
from embodied.datasets.replay_buffer_zarr import export_replay_buffer, import_replay_buffer, is_replay_buffer
from embodied.datasets.robomimic_hdf5 import export_robomimic, import_robomimic, is_robomimic
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.pusht_board import STATE_VECTORS
from embodied.types import Json

OURS = "embodied"
FORMATS = {
    OURS: "an episode store of this program (a folder)",
    "lerobot": "LeRobotDataset v3 (a folder, or hub:owner/name; v2.1 is read, too)",
    "lerobot_video": "the same, written with cameras as video",
    "replay_buffer": "Zarr v2 of Diffusion Policy and UMI (a folder, or one file *.zarr.zip)",
    "robomimic": "HDF5 of robomimic and robosuite (one file)",
}
EXPORTERS: dict[str, Callable[[DemonstrationStore, Path], list[str]]] = {
    "lerobot": export_lerobot,
    "lerobot_video": export_lerobot_video,
    "replay_buffer": export_replay_buffer,
    "robomimic": export_robomimic,
}
IMPORTERS: dict[str, Callable[[Path, Path, Stated], list[str]]] = {
    "lerobot": import_lerobot,
    "replay_buffer": import_replay_buffer,
    "robomimic": import_robomimic,
}


def is_known(path: Path) -> bool:
    """Whether something in a known format lies at `path`, as far as names tell."""
    return (path / "zarr.json").is_file() or is_robomimic(path) or is_replay_buffer(path) or is_lerobot(path)


def located(source: str) -> Path:
    """The path that `source` names; a dataset on the hub ("hub:owner/name") is fetched first.

    Raises:
        UserError: it cannot be fetched.
    """
    return fetched(source) if is_hub_source(source) else Path(source)


def format_of(path: Path) -> str:
    """The format of what lies at `path`, a key of `FORMATS`.

    Raises:
        UserError: nothing there, or nothing of a known format.
    """
    if (path / "zarr.json").is_file():
        return OURS
    if is_robomimic(path):
        return "robomimic"
    if is_replay_buffer(path):
        return "replay_buffer"
    if is_lerobot(path):
        return "lerobot"
    raise UserError(
        expected=f"demonstrations in a known format at {path}",
        found="something else" if path.exists() else "nothing",
        remedy="known formats: " + "; ".join(f"{name}, {words}" for name, words in FORMATS.items()),
    )


def convert(source: str, target: str, format: str, stated: Stated | None = None) -> Json:
    """Write the demonstrations at `source` to `target`, where nothing is unless all went well.

    Args:
        source: a path, or hub:owner/name.
        format: of the target, a key of `FORMATS`; that of the source is found by looking at it.
        stated: what the source does not say itself. With the spec of a Push-T task, demonstrations in Diffusion
            Policy's format are exported as that task shows them.

    Returns:
        "source", "source_format", "target", "format", "episodes", "steps", and "lost": what could not be held.

    Raises:
        UserError: an unknown format, a source in none of them or in the target's, something at the target, or data
            that cannot be converted as they are.
    """
    if format not in FORMATS:
        raise UserError(expected="a known format", found=f"'{format}'", remedy=nearest(format, FORMATS))
    here, there, stated = located(source), Path(target), stated or Stated()
    source_format = format_of(here)
    if stated.filter_key is not None and source_format != "robomimic":
        raise UserError(
            expected="a filter key for one of robomimic's files alone",
            found=f"stated.filter_key={stated.filter_key} for {here}, which is in the format '{source_format}'",
            remedy="leave it out",
        )
    if source_format == format == OURS:
        raise UserError(
            expected=f"another format than that of {here}", found=f"'{format}' for both", remedy="copy the folder"
        )
    if format == OURS:
        lost = IMPORTERS[source_format](here, there, stated)
        store: DemonstrationStore = EpisodeStore.open(there)
    elif source_format == OURS:
        store = EpisodeStore.open(here)
        lost = EXPORTERS[format](store, there)
    elif source_format == "replay_buffer" and stated.spec is not None and stated.spec.task in STATE_VECTORS:
        store = DiffusionPolicyZarr.open(here, stated.spec)
        lost = EXPORTERS[format](store, there)
    else:
        return _by_way_of_a_store(here, source_format, there, format, stated)
    return _result(source, source_format, target, format, store, lost)


def _by_way_of_a_store(here: Path, source_format: str, there: Path, format: str, stated: Stated) -> Json:
    there.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=there.parent, prefix=".converting.") as folder:
        between = Path(folder) / "episodes.zarr"
        lost = IMPORTERS[source_format](here, between, stated)
        store = EpisodeStore.open(between)
        lost += EXPORTERS[format](store, there)
        return _result(str(here), source_format, str(there), format, store, lost)


def _result(
    source: str, source_format: str, target: str, format: str, store: DemonstrationStore, lost: list[str]
) -> Json:
    return {
        "source": source,
        "source_format": source_format,
        "target": target,
        "format": format,
        "episodes": len(store),
        "steps": store.total_steps,
        "lost": lost,
    }
