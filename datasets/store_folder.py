"""The folder of a store: made in one step, and recognised by the attributes of its Zarr group."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import zarr

from embodied.datasets.durable_files import DurableStore, replace_file, sync_folder
from embodied.datasets.manifest import MANIFEST_NAME
from embodied.datasets.time_arrays import COPY_REMEDY
from embodied.errors import UserError
from embodied.types import Json

FORMAT = "embodied-episodes"
VERSION = 2  # 2: a checksum of each array, and lines of the manifest that drop a committed episode
_BUILDING = ".creating"
COLLECT_REMEDY = "collect one with `embodied collect` or name another with data.store=..."


class NewerStore(UserError):
    """A store of a version that this program does not know."""


def create_folder(path: Path, attributes: Json) -> None:
    """Build an empty store with these attributes beside `path` and move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.parent / f".{path.name}.{os.getpid()}{_BUILDING}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        zarr.create_group(DurableStore(building), attributes={"format": FORMAT, "version": VERSION, **attributes})
        zarr.create_group(DurableStore(building), path="data")
        replace_file(building / MANIFEST_NAME, b"", root=building)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    sync_folder(path.parent)


def abandoned_creations(path: Path) -> list[Path]:
    """Folders beside the store in which processes that are gone had begun to make it."""
    folders = path.absolute().parent.glob(f".{path.absolute().name}.*{_BUILDING}")
    return sorted(folder for folder in folders if not _is_running(folder.name.split(".")[-2]))


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def read_attributes(path: Path) -> Json:
    """The attributes of the store at `path`.

    Raises:
        UserError: nothing there, something else, unreadable, or of a newer version.
    """
    if not path.exists():
        raise UserError(expected="an episode store", found=f"no store at {path}", remedy=COLLECT_REMEDY)
    try:
        metadata = json.loads((path / "zarr.json").read_bytes())
        attributes = metadata.get("attributes", {})
        is_store = attributes.get("format") == FORMAT
    except (FileNotFoundError, NotADirectoryError):
        is_store = False
    except (ValueError, AttributeError, OSError) as error:
        raise unreadable_metadata(path, str(error)) from error
    if not is_store:
        raise UserError(expected=f"an episode store at {path}", found="something else", remedy=COLLECT_REMEDY)
    if attributes.get("version", 0) > VERSION:
        raise NewerStore(
            expected=f"a store of version {VERSION} or older at {path}",
            found=f"version {attributes['version']}",
            remedy="update embodied, or collect a store with this version",
        )
    return attributes


def raise_version(path: Path, attributes: Json) -> None:
    """Before a line that only this version understands is added to an older store, say so in its attributes."""
    if attributes.get("version", 0) == VERSION:
        return
    metadata = json.loads((path / "zarr.json").read_bytes())
    metadata["attributes"]["version"] = VERSION
    replace_file(path / "zarr.json", json.dumps(metadata, indent=2).encode(), root=path)
    attributes["version"] = VERSION


def unreadable_metadata(path: Path, found: str) -> UserError:
    """The error to raise for a store whose metadata make no sense."""
    return UserError(
        expected=f"readable metadata of the store at {path}",
        found=found,
        remedy=COPY_REMEDY,
    )
