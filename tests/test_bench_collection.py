"""`embodied bench collect` and `bench kills`: the arithmetic of their rows, their pages, and small real runs."""

from __future__ import annotations

import json

import pytest
import zarr
from made_episodes import fill_store

from embodied.benchmarks import collection_rate as rates
from embodied.benchmarks.collection_kills import CommittedEpisodes
from embodied.benchmarks.collection_rate import collection_rate, rate_row
from embodied.commands import bench
from embodied.commands.bench_collection import what_is_left
from embodied.configuration import check
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError


def config(tmp_path, *overrides):
    task = "tasks=[metaworld/reach-v3]"
    return check("bench", [f"run_root={tmp_path}/runs", f"results={tmp_path}/results", task, *overrides])


def test_the_first_episodes_of_every_worker_are_not_timed(monkeypatch):
    moments_s = iter([0.0, 10.0, 10.0, 12.0, 12.0, 13.0, 15.0])  # the beginning, then six episodes of 5 steps
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(moments_s))

    def collect(report):
        for episode in range(1, 7):
            report(episode, 5 * episode)
        return "hash"

    assert collection_rate(collect, workers=2, episodes=6) == {
        **{"start_s": 12.0, "episodes_per_s": 2 / 3, "steps_per_s": 10 / 3, "content_hash": "hash"}
    }


def test_a_speed_up_is_taken_round_by_round():
    def result(rate, content_hash="same"):
        return {"start_s": 1.0, "episodes_per_s": rate, "steps_per_s": 10 * rate, "content_hash": content_hash}

    row = rate_row([result(4.0), result(9.0), result(3.0)], [result(2.0), result(5.0), result(2.0)])
    assert row["same_content"]
    assert row["timings"]["speedup"] == {"median": 1.8, "low": 1.5, "high": 2.0}
    assert row["timings"]["episodes_per_s"] == 4.0
    assert not rate_row([result(1.0, "other")], [result(1.0)])["same_content"]


def test_two_workers_beside_one(tmp_path, capsys):
    path = bench.run(config(tmp_path, "what=collect", "collect={episodes: 6, engines: [processes], rounds: 1}"))
    rows = json.loads(path.read_text())["rows"]
    assert [(row["engine"], row["workers"], row["same_content"]) for row in rows] == [
        ("processes", 1, True),
        ("processes", 2, True),
    ]
    page = (tmp_path / "results" / "collect.md").read_text()
    assert "| metaworld/reach-v3 | processes | 1 |" in page and "1.00 [1.00, 1.00] | yes |" in page
    assert sorted(entry.name for entry in path.parent.iterdir() if "zarr" in entry.name) == []
    assert "metaworld/reach-v3" in capsys.readouterr().out


def test_what_is_lost_doubled_or_torn_is_counted(tmp_path):
    whole, killed = (fill_store(EpisodeStore, tmp_path / name, 4) for name in ("whole.zarr", "killed.zarr"))
    committed = CommittedEpisodes(killed)
    sound = {"seen": 4, "lost": 0, "doubled": 0, "torn": 0, "same_content": True}
    sound["content_hash"] = EpisodeStore.open(whole).content_hash()
    assert what_is_left(killed, whole, committed) == sound
    zarr.open_array(killed / "data" / "time_s", mode="r+")[4] = 1.0
    assert what_is_left(killed, whole, committed) == {**sound, "torn": 1}
    shorter = fill_store(EpisodeStore, tmp_path / "shorter.zarr", 3)
    assert what_is_left(shorter, whole, committed) == {**sound, "lost": 1, "same_content": False}


@pytest.mark.heavy
def test_kills_of_a_real_collection(tmp_path):
    path = bench.run(config(tmp_path, "what=kills", "kills={episodes: 12, count: 2, longest_wait_s: 0.05}"))
    (row,) = json.loads(path.read_text())["rows"]
    assert row["workers"] + row["committers"] == 2 and row["starts"] == row["committers"] + 1
    assert (row["lost"], row["doubled"], row["torn"], row["same_content"]) == (0, 0, 0, True)
    assert (tmp_path / "results" / "kills.md").read_text().endswith("| 12 | 0 | 0 | 0 | yes |\n")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["what=collect", "collect.episodes=4"], "more than 4 episodes: 2 workers begin with so many"),
        (["what=collect", "collect.engines=[rai]"], "engine processes or ray; found rai"),
        (["what=collect", "collect.workers=[0,1]"], "numbers of workers of at least 1; found"),
        (["what=kills", "tasks=[metaworld/raech-v3]"], "the name of a task; found 'metaworld/raech-v3'"),
        (["what=kills", "tasks=[pusht/state]"], "expert"),
        (["what=kills", "kills.episodes=0"], "that succeeds when nobody disturbs it; found exit status 2"),
    ],
)
def test_what_cannot_be_measured(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        bench.run(config(tmp_path, *overrides))
