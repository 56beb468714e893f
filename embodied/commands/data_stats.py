"""`embodied data stats`: what a store holds, as tables, a picture and numbers, and what of it will hurt training."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from embodied.console import Progress, say, table
from embodied.datasets.data_figure import draw_data
from embodied.datasets.data_report import describe_data, episode_rows, normalised_keys
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.open_store import open_store
from embodied.datasets.store_folder import COLLECT_REMEDY
from embodied.errors import UserError
from embodied.evaluation.statistics import wilson_interval
from embodied.protocols import DemonstrationStore
from embodied.run_directory import SUMMARY, RunDirectory
from embodied.types import Json

FIGURE, NUMBERS = "data.png", "data.json"
MOST_ELEMENTS = 60  # rows of a printed table; data.json has them all


def run(path: Path, config: DictConfig, open_run: Callable[..., RunDirectory]) -> Path:
    """Describe the store at `path`; a run of the same content and settings is found again and only printed.

    Args:
        open_run: `data.open_run`.

    Raises:
        UserError: a store without episodes, one that cannot be read, or settings that do not fit.
    """
    store = open_store(path)
    if not len(store):
        raise UserError(expected=f"at least one episode in {path}", found="none", remedy=COLLECT_REMEDY)
    directory = open_run(path, config, content=store.content_hash())
    with directory.lock():
        if directory.is_finished:
            say(f"{directory.path} is of this content already (force=true looks anew)")
            _print(directory.summary())
            return directory.path / SUMMARY
        kept = _keep_statistics(store)
        report = _report(store, config, directory.path)
        success = _rate(report.pop("successes"), report["episodes"])
        result = {
            "what": "stats",
            "store": str(path),
            "format": store.provenance.get("format", "embodied-episodes"),
            **report,
            "success": success,
            "statistics_kept": kept,
            "files": {"figure": FIGURE, "numbers": NUMBERS},
        }
        summary = directory.write_summary(result)
    _print(directory.summary())
    say(f"picture: {directory.path / FIGURE}")
    return summary


def _rate(successes: int | None, episodes: int) -> Json | None:
    if successes is None:
        return None
    low, high = wilson_interval(successes, episodes)
    return {"k": successes, "n": episodes, "rate": successes / episodes, "low": low, "high": high}


def _keep_statistics(store: DemonstrationStore) -> bool:
    """Whether the statistics stand in the store; a store of others, or one that is not ours to write, keeps none."""
    if not isinstance(store, EpisodeStore):
        return False
    try:
        store.keep_statistics(normalised_keys(store))
    except UserError as error:
        say(f"the statistics are not kept in the store: {error.found}")
        return False
    return True


def _report(store: DemonstrationStore, config: DictConfig, folder: Path) -> Json:
    statistics = store.statistics(normalised_keys(store))
    with Progress("stats", len(store), "episodes") as progress:
        report, measures = describe_data(store, statistics, config.idle_share, config.image_rows, progress.advance)
    numbers = {
        **report,
        "statistics": {key: values.to_json() for key, values in statistics.items()},
        "each_episode": episode_rows(measures),
    }
    try:
        (folder / NUMBERS).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
        draw_data(report, measures, store.spec, folder / FIGURE)
    except OSError as error:
        raise UserError(
            expected=f"to write into {folder}",
            found=str(error.strerror or error),
            remedy="make space there, or choose another place with run_root=",
        ) from error
    return report


def _print(result: Json) -> None:
    steps, hz = result["steps"], result["control_hz"]
    say(f"{result['task']}: {result['episodes']} episodes, {steps} steps at {hz:g} Hz ({steps / hz / 60:.1f} min)\n")
    table(("", "mean", "lowest", "quarter", "median", "three\nquarters", "highest"), _spreads(result))
    say("")
    table(("", "found"), _facts(result))
    say("")
    elements = result["elements"][:MOST_ELEMENTS]
    columns = ("key", "element", "unit", "lowest", "0.5 %", "median", "99.5 %", "highest", "mean", "std")
    table(columns, [_element_cells(element) for element in elements])
    if len(result["elements"]) > len(elements):
        say(f"and {len(result['elements']) - len(elements)} more elements in {NUMBERS}")
    _print_warnings(result["warnings"])


def _print_warnings(warnings: Sequence[Json]) -> None:
    say("\nWhat will hurt training:" if warnings else "\nNothing in these figures will hurt training.")
    for warning in warnings:
        say(textwrap.fill(f"- {warning['text']}", 100, subsequent_indent="  "))


def _spreads(result: Json) -> list[list[str]]:
    rows = []
    for label, key in (("length, steps", "lengths"), ("jerk, share of the range", "jerk")):
        if result[key] is not None:
            names = ("mean", "minimum", "q25", "median", "q75", "maximum")
            rows.append([label, *(f"{result[key][name]:.4g}" for name in names)])
    return rows


def _facts(result: Json) -> list[list[str]]:
    success, idle = result["success"], result["idle"]
    clipped = [
        f"{clipped['element']} {clipped['at_low']:.1%} / {clipped['at_high']:.1%}"
        for clipped in result["clipped"]
        if clipped["at_low"] or clipped["at_high"]
    ]
    rows = [
        ["success", "{k}/{n} [{low:.2f}, {high:.2f}]".format(**success) if success else "not recorded"],
        ["idle steps", f"{idle['share']:.1%}, at most {idle['longest'] / result['control_hz']:.1f} s in a row"],
        ["at a bound (lower / upper)", ", ".join(clipped) or "never"],
        ["gaps in time", "times were not recorded" if result["gaps"] is None else str(result["gaps"])],
        ["repeated episodes", str(sum(len(group) - 1 for group in result["duplicates"]))],
    ]
    for images in result["images"]:
        mean = ", ".join(f"{value:.0f}" for value in images["mean"])
        rows.append([f"camera {images['camera']}", f"mean red, green, blue {mean} over {images['looked_at']} images"])
    return rows


def _element_cells(element: Json) -> list[str]:
    names = ("minimum", "q005", "q50", "q995", "maximum", "mean", "std")
    return [element["key"], element["element"], element["unit"], *(f"{element[name]:.4g}" for name in names)]
