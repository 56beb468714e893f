"""A store as numbers: ranges, lengths, how smooth, how idle, and what is wrong for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from embodied.datasets.data_warnings import data_warnings
from embodied.datasets.episode_measures import StoreMeasures, action_ranges, measure_store
from embodied.datasets.mapped_images import BLOCK_ROWS
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.types import Json, Statistics

QUANTILES = {"q005": 0.005, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q995": 0.995}
NEAR_ROWS = 64  # images that are nearer to each other than this are read with those between them
BLACK = 2.0  # mean of an image's values, of 255: at most this is a black one


def normalised_keys(store: DemonstrationStore) -> list[str]:
    """What training scales by its statistics."""
    return [*(f"state/{state.name}" for state in store.spec.state), "action"]


def describe_data(
    store: DemonstrationStore,
    statistics: dict[str, Statistics],
    idle_share: float,
    image_rows: int,
    advance: Callable[[], None],
) -> tuple[Json, StoreMeasures]:
    """Everything about the data but where they lie, as JSON, and the measures it is made from.

    Args:
        statistics: of `normalised_keys`.
        idle_share: see `episode_measures.idle`.
        image_rows: images looked at of each camera, at most.
        advance: called after each episode.

    Raises:
        UserError: a store without episodes, settings that do not fit, or damaged data.
    """
    if not 0 <= idle_share < 1:
        raise UserError(
            expected="idle_share of at least 0 and below 1", found=str(idle_share), remedy="give a share of the range"
        )
    if image_rows < 1:
        raise UserError(expected="image_rows of at least 1", found=str(image_rows), remedy="raise it")
    action = statistics["action"]
    ranges = action_ranges(store.spec.action, action.minimum, action.maximum)
    measures = measure_store(store, ranges, idle_share, advance)
    report: Json = {
        "task": store.spec.task,
        "control_hz": store.spec.control_hz,
        "horizon": store.spec.horizon,
        "representation": store.spec.action.representation,
        "episodes": len(store),
        "steps": store.total_steps,
        "content_hash": store.content_hash(),
        "lengths": _spread([episode.length for episode in measures.episodes]),
        "successes": sum(bool(episode.success) for episode in measures.episodes) if measures.is_recorded else None,
        "elements": _elements(store, statistics, measures),
        "jerk": _spread([episode.jerk for episode in measures.episodes if episode.jerk is not None]),
        "idle": {
            "share": sum(episode.idle_steps for episode in measures.episodes) / store.total_steps,
            "longest": max(episode.longest_idle for episode in measures.episodes),
        },
        "clipped": _clipped(store, measures),
        "gaps": sum(episode.gaps for episode in measures.episodes) if measures.is_recorded else None,
        "duplicates": measures.duplicates,
        "images": [_images(store, camera.name, image_rows) for camera in store.spec.cameras],
    }
    report["warnings"] = data_warnings(report, measures, store.spec)
    return report, measures


def episode_rows(measures: StoreMeasures) -> list[Json]:
    """The measures of every episode, as JSON."""
    return [asdict(episode) for episode in measures.episodes]


def _elements(store: DemonstrationStore, statistics: dict[str, Statistics], measures: StoreMeasures) -> list[Json]:
    """Range, moments and quantiles of each element of what is normalised."""
    described = {f"state/{state.name}": (state.elements, (state.unit,) * state.size) for state in store.spec.state}
    described["action"] = (store.spec.action.elements, store.spec.action.units)
    rows = []
    for key, (names, units) in described.items():
        of_key = statistics[key]
        quantiles = np.quantile(measures.samples[key].astype(np.float64), list(QUANTILES.values()), axis=0)
        for index, (name, unit) in enumerate(zip(names, units, strict=True)):
            rows.append(
                {
                    "key": key,
                    "element": name,
                    "unit": unit,
                    **{kind: float(getattr(of_key, kind)[index]) for kind in ("minimum", "maximum", "mean", "std")},
                    **{kind: float(values[index]) for kind, values in zip(QUANTILES, quantiles, strict=True)},
                }
            )
    return rows


def _clipped(store: DemonstrationStore, measures: StoreMeasures) -> list[Json]:
    """Share of all steps that each element of the action spends at its bounds."""
    return [
        {"element": name, "at_low": float(low), "at_high": float(high)}
        for name, low, high in zip(store.spec.action.elements, measures.at_low, measures.at_high, strict=True)
    ]


def _images(store: DemonstrationStore, camera: str, most: int) -> Json:
    """Brightness of a camera's images, a block at a time; evenly spaced ones where they are more than `most`."""
    count = min(most, store.total_steps)
    rows = np.unique(np.linspace(0, store.total_steps - 1, count).round().astype(np.int64))
    total, squares, black, even = np.zeros(3), np.zeros(3), 0, 0
    for values in _image_blocks(store, camera, rows):
        pixels = values.reshape(len(values), -1, 3).astype(np.float64)
        total += pixels.mean(axis=1).sum(axis=0)
        squares += (pixels**2).mean(axis=1).sum(axis=0)
        black += int((pixels.mean(axis=(1, 2)) <= BLACK).sum())
        even += int((np.ptp(pixels, axis=(1, 2)) == 0).sum())
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    counted = {"looked_at": len(rows), "black": black, "even": even}  # even: all pixels alike
    return {"camera": camera, **counted, "mean": mean.tolist(), "std": std.tolist()}


def _image_blocks(store: DemonstrationStore, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The images at these rows, uint8 [n h w 3], at most a block at once.

    Rows that are near each other are read with those between them, which lie in the same files and are decoded anyway.
    """
    if store.total_steps > NEAR_ROWS * len(rows):
        for row in rows.tolist():
            yield store.read_rows(f"image/{camera}", row, row + 1)
        return
    for start in range(0, store.total_steps, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, store.total_steps)
        wanted = rows[(rows >= start) & (rows < end)]
        if len(wanted):
            yield store.read_rows(f"image/{camera}", start, end)[wanted - start]


def _spread(values: Sequence[Any]) -> Json | None:
    """Mean, quartiles and ends; None of nothing."""
    if not values:
        return None
    ends = np.quantile(np.asarray(values, np.float64), [0, 0.25, 0.5, 0.75, 1])
    names = ("minimum", "q25", "median", "q75", "maximum")
    return {"mean": float(np.mean(values)), **{name: float(end) for name, end in zip(names, ends, strict=True)}}
