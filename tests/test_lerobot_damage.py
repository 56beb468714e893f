"""LeRobotDatasets that are damaged, cut off, or contradict themselves: one sentence each, and no call to the hub."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_files import nothing_left_in
from lerobot_data import edit_info, edit_table, write_v3, write_v21
from PIL import Image

from embodied.datasets.lerobot_dataset import import_lerobot
from embodied.errors import UserError

ROWS = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every way out of this machine is closed."""

    def refuse(*args, **kwargs):
        raise AssertionError("something asked the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    whole = {kind: write_v3(folder / kind, kind) for kind in ("image", "video")}
    return {**whole, "old": write_v21(folder / "old")}


@pytest.fixture
def copied(recordings, tmp_path):
    """A copy of one of the recordings, to be damaged."""
    return lambda kind: Path(shutil.copytree(recordings[kind], tmp_path / kind))


def refused(path: Path, message: str) -> None:
    with nothing_left_in(path.parent), pytest.raises(UserError, match=message):
        import_lerobot(path, path.parent / "ours.zarr")


class TestCutOff:
    def test_no_list_of_episodes(self, copied):
        path = copied("image")
        shutil.rmtree(path / "meta" / "episodes")
        refused(
            path, r"the list of episodes, meta/episodes/chunk-\*/file-\*.parquet in .*image; found none; .*finalize"
        )

    def test_a_session_that_was_killed(self, tmp_path):
        program = (
            "import os, sys; from pathlib import Path; from lerobot_data import LeRobotDataset, write_v3\n"
            "LeRobotDataset.finalize = lambda self: os._exit(9)\n"
            "write_v3(Path(sys.argv[1]))"
        )
        path = tmp_path / "killed"
        words = [sys.executable, "-c", program, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "HF_HUB_OFFLINE": "1"}
        assert subprocess.run(words, env=environment, check=False, capture_output=True).returncode == 9
        assert (path / ROWS).is_file()
        refused(path, "the list of episodes, meta/episodes.*; found none; a recording that was killed")

    @pytest.mark.parametrize(("kind", "name"), [("image", ROWS), ("image", EPISODES), ("image", "meta/tasks.parquet")])
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_parquet_without_its_end(self, copied, kind, name, share):
        file = copied(kind) / name
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])
        refused(file.parents[len(Path(name).parents) - 1], f"a whole parquet file at .*{Path(name).name}.*killed")

    def test_video_without_its_end(self, copied):
        path = copied("video")
        content = (path / VIDEO).read_bytes()
        (path / VIDEO).write_bytes(content[: len(content) // 2])
        refused(path, "(a video that can be decoded at|a frame at .* s of) .*file-000.mp4")

    def test_a_damaged_page(self, copied):
        path = copied("image")
        content = bytearray((path / ROWS).read_bytes())
        content[1000:2000] = bytes(1000)
        (path / ROWS).write_bytes(content)
        refused(path, "file-000.parquet")


class TestMissing:
    def test_a_video(self, copied):
        path = copied("video")
        (path / VIDEO).unlink()
        refused(path, f"the video of observation.images.top, {VIDEO} in .*; found no such file; download or copy")

    def test_rows(self, copied):
        path = copied("old")
        (path / "data/chunk-001/episode_000002.parquet").unlink()
        refused(path, "the rows of episodes, data/chunk-001/episode_000002.parquet in")

    @pytest.mark.parametrize("name", ["meta/episodes.jsonl", "meta/tasks.jsonl"])
    def test_lists_of_the_older_layout(self, copied, name):
        path = copied("old")
        (path / name).unlink()
        refused(path, f"a JSON object a line in .*{Path(name).name}; found .*No such file")
        (path / name).write_text("{")
        refused(path, f"a JSON object a line in .*{Path(name).name}")
        (path / name).write_text("[1]\n")
        refused(path, f"whole numbers as .* of each line in .*{Path(name).name}")

    def test_instructions(self, copied):
        path = copied("image")
        edit_table(path / "meta/tasks.parquet", task=["push", None])
        refused(path, "a number of its own and a text for each task")
        edit_table(path / "meta/tasks.parquet", task=["a", "b"], task_index=[0, 7])
        refused(path, "a task_index of meta/tasks in episode 2 .*; found 1; there are 0, 7")

    def test_a_column(self, copied):
        path = copied("image")
        edit_table(path / ROWS, action=None)
        refused(path, "the column action in .*file-000.parquet; found observation.state")
        path = copied("video")
        edit_table(path / EPISODES, **{"videos/observation.images.top/from_timestamp": None})
        refused(path, "the column videos/observation.images.top/from_timestamp in")


class TestContradictions:
    def test_lengths(self, copied):
        path = copied("image")
        edit_table(path / EPISODES, length=[5, 9, 6])
        refused(path, "rows of episode 1 as many as its length.*; found rows 5 to 13, length 9")

    def test_rows_that_nobody_lists(self, copied):
        path = copied("image")
        edit_info(path, total_frames=18)
        edit_table(path / EPISODES, length=[5, 8, 5], dataset_to_index=[5, 13, 18])
        refused(path, "18 rows, as the list of episodes says in .*file-000.parquet; found 19")

    def test_totals(self, copied):
        path = copied("image")
        edit_info(path, total_episodes=40)
        refused(path, "40 as total_episodes, which meta/info.json says in .*; found 3 in the list.*killed")
        edit_info(path, total_episodes=3, total_frames=20)
        refused(path, "20 as total_frames.*; found 19")

    def test_numbers_of_episodes(self, copied):
        path = copied("image")
        edit_table(path / EPISODES, episode_index=[0, 2, 3])
        refused(path, "episodes 0 to 2, each once in .*; found 2 in the place of 1")

    def test_rows_of_another_episode(self, copied):
        path = copied("image")
        edit_table(path / ROWS, episode_index=[0] * 6 + [1] * 7 + [2] * 6)
        refused(path, "the steps 0 to 7 of episode 1 in .*; found episode_index 0 and frame_index 0 as step 0")

    def test_a_video_that_is_shorter(self, copied):
        path = copied("video")
        edit_table(path / EPISODES, **{"videos/observation.images.top/from_timestamp": [0.0, 0.5, 1.6]})
        refused(path, "a frame at 1.9000 s of .*file-000.mp4; found the video's end")

    def test_images_of_another_size(self, copied):
        for kind, message in (("image", "found an image of 48x64 in mode RGB"), ("video", "48x66 in .*found 48x64")):
            path = copied(kind)
            described = json.loads((path / "meta/info.json").read_text())["features"]
            described["observation.images.top"]["shape"] = [48, 66, 3]
            edit_info(path, features=described)
            refused(path, message)

    def test_vectors_of_another_size(self, copied):
        path = copied("old")
        file = path / "data/chunk-000/episode_000001.parquet"
        rows = pq.read_table(file)["action"].to_pylist()
        edit_table(file, action=[*rows[:-1], rows[-1][:2]])
        refused(path, r"action \(float32 \[T, 3\]\) in episode 1 of .*; found 2 values in the place of 3")
        edit_table(file, action=[*rows[:-1], None])
        refused(path, "in episode 1 of .*; found empty cells")
        edit_table(file, action=["text"] * len(rows))
        refused(path, "in episode 1 of .*; found values of type string")


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_actions_that_are_not_finite(self, copied, value):
        path = copied("old")
        file = path / "data/chunk-000/episode_000001.parquet"
        rows = pq.read_table(file)["action"].to_pylist()
        rows[3][1] = value
        edit_table(file, action=rows)
        refused(path, f"finite values of action in .*; found {value} in episode 1, step 3, element 1")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"no image \(a path to a file elsewhere is not followed\)"),
            (b"no image", "an image that cannot be decoded"),
            ("cut", "an image that cannot be decoded"),
            ("huge", "an image that cannot be decoded .*exceeds limit"),
            ("gray", "an image of 48x64 in mode L"),
        ],
    )
    def test_images_that_are_none(self, copied, content, message):
        path = copied("image")
        rows = pq.read_table(path / ROWS)["observation.images.top"].to_pylist()
        if content == "cut":
            content = rows[7]["bytes"][:-40]
        elif content in ("huge", "gray"):
            made = Image.new("1", (20000, 20000)) if content == "huge" else Image.new("L", (64, 48))
            buffer = io.BytesIO()
            made.save(buffer, "PNG")
            content = buffer.getvalue()
        rows[7] = {"bytes": content, "path": "/etc/hostname"}
        edit_table(path / ROWS, **{"observation.images.top": rows})
        refused(path, f"observation.images.top .* in episode 1 of .*; found ({message})")


class TestInfo:
    @pytest.mark.parametrize("version", ["v4.0", "v1.6", None, 3])
    def test_an_unknown_version(self, copied, version):
        path = copied("image")
        edit_info(path, codebase_version=version)
        refused(path, rf"a codebase_version that is known \(v3.0, v2.1, v2.0\) in .*; found {version!r}; convert")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fps": 0}, "frames a second, a number above 0, as fps in .*; found 0"),
            ({"fps": "10"}, "as fps in .*; found '10'"),
            ({"features": {}}, "features by name in .*; found none"),
            ({"features": {"../x": {"dtype": "video", "shape": [1]}}}, "features named by letters.*; found '../x'"),
            ({"features": {"action": {"dtype": "float32", "shape": "3"}}}, "a dtype and a shape of feature 'action'"),
            ({"data_path": "../{chunk_index}.parquet"}, "data_path 'data/chunk-.*; found '../{chunk_index}.parquet'"),
            ({"video_path": "{video_key.__class__}"}, "video_path 'videos/.*; found '{video_key.__class__}'"),
        ],
    )
    def test_facts_that_cannot_be(self, copied, changes, message):
        path = copied("image")
        edit_info(path, **changes)
        refused(path, message)

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_no_object(self, copied, text):
        path = copied("image")
        (path / "meta/info.json").write_text(text)
        refused(path, "a JSON object in .*info.json")
