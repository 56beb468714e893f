"""`embodied data stats`: each measure against a closed form, each warning on data that deserve it, the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from damaged_stores import data
from made_episodes import SPEC, make_episode, snapshot
from pusht_data import human_demonstrations, made_arrays, write_zarr_v2

from embodied.commands import data_stats
from embodied.datasets import data_warnings, episode_layout, stored_statistics
from embodied.datasets.data_report import describe_data, normalised_keys
from embodied.datasets.episode_measures import at_bounds, idle, jerk, longest_run
from embodied.datasets.episode_store import EpisodeStore
from embodied.errors import UserError
from embodied.summaries import without_timings
from embodied.types import Episode

STEPS = 40
DELTA = dataclasses.replace(SPEC.action, high=(1.0, 1.0))
ABSOLUTE = dataclasses.replace(DELTA, representation="absolute")
TWO = np.array([2.0, 2.0])


# Measures.


def test_jerk_is_the_third_difference_of_positions_in_shares_of_the_range():
    time = np.arange(30.0)
    cubic = np.stack([time**3, 0 * time], axis=1) / 6  # third difference 1, and 0
    assert jerk(cubic, ABSOLUTE, TWO) == pytest.approx(np.sqrt((0.5**2 + 0) / 2))
    assert jerk(np.stack([time**2, time], axis=1), ABSOLUTE, TWO) == pytest.approx(0, abs=1e-12)
    # The same motion as deltas, which are its first difference.
    assert jerk(np.diff(cubic, axis=0), DELTA, TWO) == pytest.approx(jerk(cubic, ABSOLUTE, TWO))
    assert jerk(cubic[:3], ABSOLUTE, TWO) is None
    assert jerk(cubic, ABSOLUTE, np.zeros(2)) is None


def test_a_binary_element_has_no_jerk_and_no_bound():
    gripper = dataclasses.replace(ABSOLUTE, binary=(False, True))
    actions = np.stack([np.arange(20.0), np.tile([1.0, -1.0], 10)], axis=1)
    assert jerk(actions, gripper, np.array([19.0, 2.0])) == pytest.approx(0, abs=1e-12)
    assert not np.any(at_bounds(np.ones((3, 2)), gripper)[1][:, 1])


def test_idle_steps_command_no_motion():
    still = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.501], [0.9, 0.5], [0.9, 0.5]])
    assert idle(still, ABSOLUTE, TWO, 0.002).tolist() == [False, True, True, False, True]
    deltas = np.array([[0.0, 0.0], [0.003, -0.003], [0.3, 0.0], [0.0, 0.0]])
    assert idle(deltas, DELTA, TWO, 0.002).tolist() == [True, True, False, True]
    gripper = dataclasses.replace(DELTA, binary=(False, True))
    switching = np.array([[0.0, -1.0], [0.0, -1.0], [0.0, 1.0], [0.0, 1.0]])
    assert idle(switching, gripper, TWO, 0.002).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("flags", "longest"), [([], 0), ([0, 0], 0), ([1], 1), ([1, 1, 0, 1, 1, 1], 3), ([0, 1, 1, 0], 2)]
)
def test_the_longest_run(flags, longest):
    assert longest_run(np.array(flags, bool)) == longest


def test_values_at_their_bounds():
    low, high = at_bounds(np.array([[-1.0, 0.0], [1.0, 1.5], [-0.99, 0.99]]), DELTA)
    assert low.tolist() == [[True, False], [False, False], [False, False]]
    assert high.tolist() == [[False, False], [True, True], [False, False]]
    assert not np.any(at_bounds(np.full((2, 2), 5.0), SPEC.action)[1][:, 1]), "its upper bound is infinite"


# Warnings.


def good_episode(seed: int) -> Episode:
    """Smooth, in motion, within its bounds, successful."""
    episode = make_episode(2 * seed, steps=STEPS)
    episode.seed = seed
    time = np.linspace(0, 3, STEPS)[:, None] + seed
    episode.action[:] = 0.8 * np.sin(np.concatenate([time, time + 1], axis=1))
    return episode


def report_of(path: Path, episodes: list[Episode], spec=None, **settings) -> dict:
    spec = spec or dataclasses.replace(SPEC, action=DELTA)
    with EpisodeStore.create(path, spec, expected_episodes=len(episodes), provenance={}) as store:
        for episode in episodes:
            store.commit(episode)
    settings = {"idle_share": 0.002, "image_rows": 50, **settings}
    statistics = store.statistics(normalised_keys(store))
    return describe_data(store, statistics, settings["idle_share"], settings["image_rows"], lambda: None)[0]


def warned(report: dict) -> dict[str, str]:
    return {warning["kind"]: warning["text"] for warning in report["warnings"]}


def test_good_data_raise_no_warning(store_path):
    report = report_of(store_path, [good_episode(seed) for seed in range(12)])
    assert report["warnings"] == []
    assert (report["gaps"], report["duplicates"], report["idle"]["longest"]) == (0, [], 0)


def constant(episodes):
    for episode in episodes:
        episode.state["position"][:, 1] = 0.25


def outliers(episodes):
    episodes[3].state["position"][7, 2] = 1000.0


def saturated(episodes):
    for episode in episodes:
        episode.action[5:13, 0] = 1.0


def standing_still(episodes):
    episodes[4].action[:] = 0.0


def mostly_idle(episodes):
    for episode in episodes:
        episode.action[:16] = 0.0


def repeated(episodes):
    seed = episodes[9].seed
    episodes[9] = dataclasses.replace(episodes[2], seed=seed)


def late(episodes):
    episodes[6].time_s[20:] += 1.5


def short(episodes):
    episodes[8] = dataclasses.replace(make_episode(16, steps=5), seed=episodes[8].seed)
    episodes[8].action[:] = 0.3


def failing(episodes):
    episodes[1].success[:] = False


def black(episodes):
    for episode in episodes:
        episode.images["front"][:] = 0


WARNINGS = {
    constant: ("constant", "state/position y never varies (0.25): a policy can learn nothing from it"),
    outliers: ("outliers", "state/position z: 99 % of the values lie in 0.5% of the range -"),
    saturated: ("saturated", "action dx is at its upper bound in 20% of the steps: what the demonstrator wanted"),
    standing_still: (
        "idle",
        "1 episode without motion for more than 1 s at a stretch, the longest for 2.0 s (episode 4)",
    ),
    mostly_idle: ("idle", "40% of all steps command no motion"),
    repeated: ("duplicates", "1 episode with the very states and actions of another one (2 = 9)"),
    late: ("gaps", "1 gap in time, the longest of 1.55 s where a step takes 0.05 s (episode 6)"),
    short: ("short", "1 episode shorter than 16 steps, the shortest of 5 (episode 8)"),
    failing: ("failures", "1 of 12 episodes never succeed"),
    black: ("images", "camera front: 50 of 50 images looked at are black"),
}


@pytest.mark.parametrize("spoil", WARNINGS, ids=lambda spoil: spoil.__name__)
def test_what_hurts_training_is_said(store_path, spoil, monkeypatch):
    monkeypatch.setattr(data_warnings, "LONG_IDLE_S", 1.0)
    episodes = [good_episode(seed) for seed in range(12)]
    spoil(episodes)
    kind, text = WARNINGS[spoil]
    found = warned(report_of(store_path, episodes))
    assert found.keys() == {kind}
    assert text in found[kind]


def test_few_episodes(store_path):
    assert "only 1 episode: too few" in warned(report_of(store_path, [good_episode(0)]))["few"]


def test_training_takes_the_same_elements_for_constants():
    from embodied.normalize import SMALLEST_RANGE

    assert data_warnings.CONSTANT_RANGE == SMALLEST_RANGE


def test_images_are_sampled_evenly_or_all_are_looked_at(store_path, tmp_path):
    episodes = [good_episode(seed) for seed in range(3)]
    pixels = np.concatenate([episode.images["front"] for episode in episodes]).astype(float)
    sampled = report_of(store_path, episodes, image_rows=7)["images"][0]
    whole = report_of(tmp_path / "all.zarr", episodes, image_rows=10**6)["images"][0]
    rows = np.linspace(0, len(pixels) - 1, 7).round().astype(int)
    for images, expected in ((sampled, pixels[rows]), (whole, pixels)):
        assert images["looked_at"] == len(expected)
        np.testing.assert_allclose(images["mean"], expected.mean(axis=(0, 1, 2)))
        np.testing.assert_allclose(images["std"], expected.std(axis=(0, 1, 2)))


def test_elements_are_those_of_numpy(store_path, monkeypatch):
    episodes = [good_episode(seed) for seed in range(12)]
    report = report_of(store_path, episodes)
    values = np.concatenate([episode.state["position"][:, 2] for episode in episodes]).astype(float)
    element = next(each for each in report["elements"] if (each["key"], each["element"]) == ("state/position", "z"))
    for kind, expected in {"minimum": values.min(), "maximum": values.max(), "std": values.std()}.items():
        assert element[kind] == pytest.approx(expected)
    assert [element["q005"], element["q50"]] == pytest.approx(np.quantile(values, [0.005, 0.5]).tolist())
    assert report["lengths"] == dict.fromkeys(report["lengths"], STEPS)


# The command.


def test_the_command_prints_draws_and_writes_down(make_store, capsys):
    store = make_store(12)
    summary = data("stats", store)
    run = store.parent / "outputs" / "data"
    (folder,) = run.iterdir()
    assert folder.name.startswith("stats-")
    assert (folder / summary["files"]["figure"]).stat().st_size > 20_000
    numbers = json.loads((folder / summary["files"]["numbers"]).read_text())
    assert [episode["seed"] for episode in numbers["each_episode"]] == list(range(12))
    assert numbers["statistics"]["action"]["count"] == summary["steps"] == EpisodeStore.open(store).total_steps
    assert (summary["success"]["k"], summary["success"]["n"], summary["statistics_kept"]) == (6, 12, True)
    printed = capsys.readouterr().out
    for words in (
        "length, steps",
        "success",
        "6/12 [0.25, 0.75]",
        "state/position",
        "What will hurt training",
        "data.png",
    ):
        assert words in printed


@pytest.fixture
def undrawn(monkeypatch):
    """The command without its figure, which takes longer than all the rest."""
    monkeypatch.setattr(data_stats, "draw_data", lambda report, measures, spec, path: path.touch())


def test_statistics_stand_in_the_store_until_the_content_changes(make_store, undrawn, monkeypatch, capsys):
    store = make_store(5, expected=9)
    before = snapshot(store)
    first = data("stats", store)
    assert {file for file in snapshot(store) if file not in before} == {"statistics.json"}
    kept = EpisodeStore.open(store).statistics(["action", "state/position"])
    computed = []
    original = EpisodeStore._computed_statistics

    def count(self, layout):
        computed.append(layout.key)
        return original(self, layout)

    monkeypatch.setattr(EpisodeStore, "_computed_statistics", count)
    again = data("stats", store)
    assert "is of this content already" in capsys.readouterr().out
    assert without_timings(again) == without_timings(first)
    assert without_timings(data("stats", store, force=True)) == without_timings(first)
    assert computed == []
    (store / "statistics.json").unlink()
    for key, values in EpisodeStore.open(store).statistics(["action", "state/position"]).items():
        for name in ("minimum", "maximum", "mean", "std"):
            np.testing.assert_array_equal(getattr(values, name), getattr(kept[key], name), strict=True)
    data("stats", store, force=True)
    with EpisodeStore.open(store, writable=True) as writer:
        writer.commit(make_episode(5))
    computed.clear()
    assert data("stats", store)["episodes"] == 6
    assert "action" in computed
    assert EpisodeStore.open(store).statistics(["action"])["action"].count == EpisodeStore.open(store).total_steps


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": 9}'])
def test_damaged_statistics_are_as_good_as_none(make_store, undrawn, damage):
    store = make_store(4)
    data("stats", store)
    expected = EpisodeStore.open(store).statistics(["action"])["action"].mean
    (store / "statistics.json").write_text(damage)
    np.testing.assert_array_equal(EpisodeStore.open(store).statistics(["action"])["action"].mean, expected)
    assert [fault["kind"] for fault in data("verify", store)["faults"]] == ["leftover"]


def test_a_flipped_bit_in_the_statistics_is_not_believed(make_store, undrawn):
    store = make_store(4)
    data("stats", store)
    file = store / "statistics.json"
    saved = json.loads(file.read_text())
    expected = EpisodeStore.open(store).statistics(["action"])["action"].maximum
    saved["statistics"]["action"]["maximum"][0] += 1
    file.write_text(json.dumps(saved))
    np.testing.assert_array_equal(EpisodeStore.open(store).statistics(["action"])["action"].maximum, expected)
    assert stored_statistics.are_damaged(store)


def test_a_store_that_is_being_written_keeps_no_statistics(make_store, undrawn, capsys):
    store = make_store(4)
    with EpisodeStore.open(store, writable=True):
        assert not data("stats", store)["statistics_kept"]
    assert "the statistics are not kept in the store: process" in capsys.readouterr().out
    assert not (store / "statistics.json").exists()


def test_a_large_store_is_sampled_for_quantiles(store_path, monkeypatch):
    monkeypatch.setattr("embodied.datasets.episode_measures.SAMPLED_ROWS", 100)
    monkeypatch.setattr(episode_layout, "CHUNK_ROWS", 4)
    episodes = [good_episode(seed) for seed in range(12)]
    with EpisodeStore.create(
        store_path, dataclasses.replace(SPEC, action=DELTA), expected_episodes=12, provenance={}
    ) as store:
        for episode in episodes:
            store.commit(episode)
    statistics = store.statistics(normalised_keys(store))
    _, measures = describe_data(store, statistics, 0.002, 5, lambda: None)
    every = -(-12 * STEPS // 100)
    np.testing.assert_array_equal(measures.samples["action"], store.read("action")[::every])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"idle_share": 1.5}, "idle_share of at least 0 and below 1; found 1.5; give a share of the range"),
        ({"image_rows": 0}, "image_rows of at least 1; found 0; raise it"),
    ],
)
def test_settings_that_do_not_fit(make_store, settings, message):
    with pytest.raises(UserError, match=message):
        data("stats", make_store(2), **settings)


def test_a_store_without_episodes(make_store):
    with pytest.raises(UserError, match="at least one episode in .*; found none; collect one"):
        data("stats", make_store(0))


def test_an_original_is_described_in_place(tmp_path):
    original = write_zarr_v2(tmp_path / "human.zarr", made_arrays((120, 100, 90)))
    before = snapshot(original)
    summary = data("stats", original)
    assert (summary["format"], summary["statistics_kept"]) == ("diffusion policy zarr", False)
    assert (summary["gaps"], summary["success"]) == (None, None), "neither was recorded"
    assert (summary["episodes"], summary["steps"], summary["representation"]) == (3, 310, "absolute")
    assert {"gaps", "failures"}.isdisjoint(warning["kind"] for warning in summary["warnings"]), "neither was recorded"
    assert snapshot(original) == before


def test_the_human_demonstrations(tmp_path):
    (tmp_path / "human.zarr").symlink_to(human_demonstrations())
    summary = data("stats", tmp_path / "human.zarr")
    assert (summary["success"], summary["episodes"], summary["steps"]) == (None, 206, 25650)
    assert (summary["lengths"]["minimum"], summary["lengths"]["maximum"]) == (49, 246)
