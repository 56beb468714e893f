"""Opening demonstrations for reading: what lies at a path chooses the reader."""

from __future__ import annotations

from pathlib import Path

from embodied.datasets.diffusion_policy_zarr import DiffusionPolicyZarr
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.manifest import MANIFEST_NAME
from embodied.datasets.original_check import ENDS, OriginalCheck
from embodied.datasets.store_check import StoreCheck
from embodied.protocols import DemonstrationStore
from embodied.types import TaskSpec


def is_store(path: Path) -> bool:
    """Whether `open_store` has a reader for what lies at `path`, as far as its names tell."""
    return (path / "zarr.json").is_file() or _is_zarr_v2(path)


def looks_like_store(path: Path) -> bool:
    """Whether a store lies at `path`, or what damage has left of one."""
    return is_store(path) or is_original(path) or (path / MANIFEST_NAME).is_file()


def is_original(path: Path) -> bool:
    """Whether what lies at `path` is, or was, a store in Diffusion Policy's own format."""
    return _is_zarr_v2(path) or (path / ENDS).is_dir()


def check_store(path: Path) -> StoreCheck | OriginalCheck:
    """The check of what lies at `path`, damaged or not."""
    return OriginalCheck(path) if is_original(path) else StoreCheck(path)


def open_store(path: str | Path, spec: TaskSpec | None = None) -> DemonstrationStore:
    """The store at `path`, read-only.

    Args:
        spec: of the task that the data are for. A store of ours knows its own, to be compared with this one
            (`check_specs`); data that others recorded are read as this task shows them. None: as they were recorded.

    Raises:
        UserError: nothing there, nothing that can be read, or data that are not for this task.
    """
    path = Path(path)
    return DiffusionPolicyZarr.open(path, spec) if _is_zarr_v2(path) else EpisodeStore.open(path)


def _is_zarr_v2(path: Path) -> bool:
    return (path / ".zgroup").is_file()
