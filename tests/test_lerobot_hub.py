"""Datasets of the Hugging Face hub by name, without a network: from a copy in the layout of its cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from lerobot_data import LENGTHS, values, write_v3

from embodied.conversion import convert
from embodied.datasets import lerobot_hub
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    return write_v3(tmp_path_factory.mktemp("recorded") / "recorded")


def fill_cache(cache: Path, recorded: Path, ref: str = "main") -> Path:
    """As huggingface_hub lays a download out: the files under their hashes, and links to them by name."""
    folder = cache / "datasets--lerobot--reach_v2"
    for file in sorted(file for file in recorded.rglob("*") if file.is_file()):
        blob = folder / "blobs" / f"{len(list((folder / 'blobs').glob('*'))):040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = folder / "snapshots" / COMMIT / file.relative_to(recorded)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (folder / "refs").mkdir()
    (folder / "refs" / ref).write_text(COMMIT)
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """The hub's cache, empty, on a machine without a network; LeRobot's own is beside it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lerobot.utils.constants.HF_LEROBOT_HUB_CACHE", tmp_path / "of_lerobot")
    return tmp_path / "cache"


def check_store(path: Path) -> None:
    store = EpisodeStore.open(path)
    source = store.provenance["source"]
    assert (store.spec.task, source["hub"], source["commit"]) == ("imported/reach_v2", "lerobot/reach_v2", COMMIT)
    for index, length in enumerate(LENGTHS):
        expected = np.stack([values(index, step)["action"] for step in range(length)])
        np.testing.assert_array_equal(store.episode(index).action, expected)


@pytest.mark.parametrize(
    "source", ["hub:lerobot/reach_v2", f"hub:lerobot/reach_v2@{COMMIT}", "hub:lerobot/reach_v2@main"]
)
def test_a_copy_in_the_cache_is_enough(tmp_path, offline, recorded, source):
    fill_cache(offline, recorded)
    result = convert(source, str(tmp_path / "ours.zarr"), "embodied")
    assert (result["source"], result["source_format"], result["episodes"]) == (source, "lerobot", 3)
    check_store(tmp_path / "ours.zarr")


@pytest.mark.parametrize("ref", ["main", "v3.0"])
def test_what_lerobot_downloaded_is_found(tmp_path, offline, recorded, ref):
    fill_cache(tmp_path / "of_lerobot", recorded, ref)
    convert("hub:lerobot/reach_v2", str(tmp_path / "ours.zarr"), "embodied")
    check_store(tmp_path / "ours.zarr")


def test_nothing_here_and_no_network(tmp_path, offline):
    for source, name in (("hub:lerobot/pusht", "lerobot/pusht"), ("hub:lerobot/pusht@v2.1", "lerobot/pusht at v2.1")):
        with pytest.raises(
            UserError, match=f"the dataset {name} from the hub, or a copy in the cache .*connect to the"
        ):
            convert(source, str(tmp_path / "ours.zarr"), "embodied")
    assert list(tmp_path.iterdir()) == []


def test_another_revision_than_the_one_in_the_cache(tmp_path, offline, recorded):
    fill_cache(offline, recorded)
    with pytest.raises(UserError, match="the dataset lerobot/reach_v2 at v9 from the hub"):
        convert("hub:lerobot/reach_v2@v9", str(tmp_path / "ours.zarr"), "embodied")


def test_a_download_that_is_not_whole(tmp_path, offline, recorded):
    folder = fill_cache(offline, recorded)
    shutil.rmtree(folder / "snapshots" / COMMIT / "data")
    with pytest.raises(UserError, match="the rows of episodes, .*found no such file; download or copy the whole"):
        convert("hub:lerobot/reach_v2", str(tmp_path / "ours.zarr"), "embodied")


@pytest.mark.parametrize(
    "source", ["hub:pusht", "hub:", "hub:a/b/c", "hub:../x", "hub:a/..", "hub:a/b@../../c", "hub:a--b/c", "hub:a/b c"]
)
def test_names_that_are_none(source):
    with pytest.raises(UserError, match="hub:owner/name@revision; found .*for example hub:lerobot/pusht"):
        lerobot_hub.fetched(source)


def test_a_name_that_the_hub_does_not_know(monkeypatch, tmp_path, offline):
    """What huggingface_hub makes of the hub's answer, without the hub."""
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    def answer(*args, **kwargs):
        response = httpx.Response(404, request=httpx.Request("GET", "https://hub/api"))
        raise RepositoryNotFoundError("404 Client Error", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(
        UserError, match="the dataset lerobot/pushed on the hub; found 404 .*check its name, and log in"
    ):
        convert("hub:lerobot/pushed", str(tmp_path / "ours.zarr"), "embodied")


def test_the_command_takes_such_a_name(tmp_path, recorded):
    fill_cache(tmp_path / "cache", recorded)
    words = [
        sys.executable,
        "-c",
        "from embodied.cli import main; main()",
        "data",
        "convert",
        "hub:lerobot/reach_v2",
        "to=embodied",
    ]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*words, "target=ours.zarr"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path(tmp_path / done.stdout.strip().splitlines()[-1]).read_text())
    assert (summary["source_format"], summary["episodes"]) == ("lerobot", 3)
    check_store(tmp_path / "ours.zarr")
