"""Datasets by their name on the Hugging Face hub: `hub:owner/name`, or `hub:owner/name@revision`.

They are fetched, and found again without a network, by huggingface_hub, in its cache or in LeRobot's:

    datasets--owner--name/refs/main               a commit
    datasets--owner--name/snapshots/<commit>/     links into blobs/
"""

from __future__ import annotations

import re
from pathlib import Path

from embodied.errors import UserError
from embodied.types import Json

PREFIX = "hub:"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"  # no "..", no leading or trailing dot or dash
_ID = re.compile(rf"(?P<name>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?")


def is_hub_source(source: str) -> bool:
    """Whether `source` means a dataset on the hub rather than a path."""
    return source.startswith(PREFIX)


def fetched(source: str) -> Path:
    """The folder with the files of a dataset on the hub, downloaded where they are not there yet.

    Args:
        source: "hub:owner/name", with "@revision" for another branch, tag or commit than the newest of "main".

    Raises:
        UserError: no such name or revision; nothing here, and no network or no permission.
    """
    match = _ID.fullmatch(source.removeprefix(PREFIX))
    if match is None or ".." in source or "--" in match["name"]:
        raise UserError(
            expected="a dataset of the hub, hub:owner/name or hub:owner/name@revision",
            found=f"'{source}'",
            remedy="for example hub:lerobot/pusht",
        )
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, revision = match["name"], match["revision"]
    words = f"the dataset {name}{f' at {revision}' if revision else ''}"
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.ConnectError, httpx.TimeoutException) as error:
        here = _downloaded_before(name, revision)
        if here is not None:
            return here
        raise UserError(
            expected=f"{words} from the hub, or a copy in the cache ({constants.HF_HUB_CACHE})",
            found=str(error).strip().splitlines()[0],
            remedy="connect to the network, or copy the cache of a machine that has it (HF_HUB_CACHE names its folder)",
        ) from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise UserError(
            expected=f"{words} on the hub",
            found=str(error).strip().splitlines()[0],
            remedy="check its name, and log in (`hf auth login`) if it is private",
        ) from error


def _downloaded_before(name: str, revision: str | None) -> Path | None:
    """What lies in the hub's cache, or in LeRobot's own."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from lerobot.utils.constants import HF_LEROBOT_HUB_CACHE

    # LeRobot asks for its format's version where nobody names another revision.
    for wanted in (revision,) if revision else ("main", "v3.0"):
        for cache in (constants.HF_HUB_CACHE, HF_LEROBOT_HUB_CACHE):
            try:
                return Path(
                    snapshot_download(
                        name, repo_type="dataset", revision=wanted, cache_dir=cache, local_files_only=True
                    )
                )
            except LocalEntryNotFoundError:
                continue
    return None


def dataset_name(path: Path) -> tuple[str, Json]:
    """What the dataset in a folder is called, and, if the folder is in the hub's cache, where it came from."""
    owner_and_name = path.parent.parent.name.removeprefix("datasets--").split("--")
    if path.parent.name != "snapshots" or len(owner_and_name) != 2:
        return path.resolve().name, {}
    owner, name = owner_and_name
    return name, {"hub": f"{owner}/{name}", "commit": path.name}
