"""`embodied bench data`: training windows a second, and memory, of ours beside other readers of the same data."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from embodied.benchmarks.data_sampling import ReaderProcess, SamplingBenchmark, measure
from embodied.benchmarks.made_demonstrations import copy_without_images, made_spec, make_store
from embodied.benchmarks.window_readers import (
    HISTORY,
    HORIZON,
    LeRobotWindows,
    NumpyWindows,
    SampledWindows,
    WindowReader,
    ZarrWindows,
)
from embodied.commands.bench_pages import markdown, run_with_page
from embodied.console import Progress, say, table
from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.lerobot_dataset import require_lerobot
from embodied.datasets.lerobot_export import SMALLEST_VIDEO, export_lerobot_video
from embodied.datasets.mapped_images import map_images
from embodied.datasets.open_store import open_store
from embodied.errors import UserError
from embodied.protocols import DemonstrationStore
from embodied.run_directory import RunDirectory
from embodied.summaries import describe_machine
from embodied.types import Json

DATA = "data"
STORE, LEROBOT, MAPS = "store.zarr", "lerobot", "maps"
LIMIT, OURS, SHARDS, MAP = "numpy, in memory", "embodied", "embodied, shards", "embodied, memory map"
ZARR, PEER = "zarr, default pipeline", "LeRobotDataset"
REFERENCES = (LIMIT, PEER, ZARR)
COLUMNS = (
    *("windows of", "reader", "windows/s\n[range]", "over\nnumpy", "over\nLeRobotDataset", "over\nzarr"),
    *("cold\nwindows/s", "cold\nopening s", "peak MB", "own MB"),
)
TARGET_COLUMNS = ("windows of", "reader", "beside", "at least", "measured", "met")


@dataclass(frozen=True)
class Target:
    """How many times as fast as another reader one should be."""

    data: str
    reader: str
    reference: str
    least: float


TARGETS = (
    Target("state", OURS, PEER, 1000),
    Target("state", OURS, LIMIT, 0.5),
    Target("images", SHARDS, PEER, 10),
    Target("images", MAP, PEER, 10),
    Target("images", SHARDS, ZARR, 2),
    Target("images", MAP, ZARR, 20),
)


def run(config: DictConfig) -> Path:
    """Measure the readers and write the page.

    Raises:
        UserError: numbers that do not fit, a store that cannot be read, a reader that fails, or a folder for the
            results that cannot be written.
    """
    return run_with_page(config, DATA, _bench)


def _bench(directory: RunDirectory) -> tuple[list[Json], str]:
    config = directory.config
    chosen = config.data
    settings = SamplingBenchmark(chosen.blocks, chosen.block_s, chosen.cold_starts, chosen.batch_size, config.seed)
    _check_made(chosen)
    given = chosen.store or config.paths.pusht_demonstrations
    source = open_store(given) if given is not None else None
    root = directory.path / DATA
    _make_state(root / "state", source, chosen)
    with Progress("made images", chosen.episodes, "episodes") as progress:
        spec = made_spec(chosen.cameras, chosen.camera_size, chosen.steps)
        make_store(root / "images" / STORE, spec, chosen.episodes, lambda: progress.advance())
    rows, facts = [], {}
    for data in ("state", "images"):
        store = EpisodeStore.open(root / data / STORE)
        facts[data] = f"{len(store)} episodes, {store.total_steps} windows, {_origin(data, source)}"
        rows += _measured(data, store, settings)
    table(COLUMNS, [_cells(row) for row in rows])
    table(TARGET_COLUMNS, target_cells(rows))
    shutil.rmtree(root)
    return rows, _page(rows, facts, directory.config, describe_machine())


def _check_made(chosen: DictConfig) -> None:
    for name, least in (("episodes", 1), ("steps", 1), ("cameras", 1), ("camera_size", SMALLEST_VIDEO)):
        if chosen[name] < least:
            raise UserError(
                expected=f"data.{name} of at least {least}", found=str(chosen[name]), remedy=f"data.{name}={least}"
            )


def _make_state(folder: Path, source: DemonstrationStore | None, chosen: DictConfig) -> None:
    """The store of states and actions alone."""
    episodes = chosen.episodes if source is None else len(source)
    with Progress("states", episodes, "episodes") as progress:
        if source is None:
            spec = made_spec(0, chosen.camera_size, chosen.steps)
            make_store(folder / STORE, spec, episodes, lambda: progress.advance())
        else:
            copy_without_images(source, folder / STORE, lambda: progress.advance())


def _origin(data: str, source: DemonstrationStore | None) -> str:
    if data == "state":
        return "made for this" if source is None else f"those of {source.path.name}"
    return "made for this"


def _measured(data: str, store: EpisodeStore, settings: SamplingBenchmark) -> list[Json]:
    """The rows of one store's readers, each in a process of its own."""
    makers = _readers(data, store)
    missing = [] if _is_lerobot_installed() else [PEER]
    if PEER not in missing:
        _prepare_lerobot(store)
    for camera in store.spec.cameras:
        map_images(store, camera, store.path.parent / MAPS)
    with ExitStack() as stack:
        readers = {}
        for name, make in makers.items():
            if name not in missing:
                readers[name] = ReaderProcess(make, store.path.parent)
                stack.callback(readers[name].close)
        turns = len(readers) * (settings.cold_starts + settings.blocks + 1)
        with Progress(f"windows of {data}", turns, "blocks") as progress:
            figures = measure(readers, settings, REFERENCES, lambda: progress.advance())
    return [
        {"data": data, "reader": name, "is_installed": name not in missing, "timings": figures.get(name, {})}
        for name in makers
    ]


def _readers(data: str, store: EpisodeStore) -> dict[str, Callable[[], WindowReader]]:
    path, folder = store.path, store.path.parent
    limit = {LIMIT: functools.partial(NumpyWindows, path)}
    peer = {PEER: functools.partial(LeRobotWindows, folder / LEROBOT, folder / "tables")}
    if data == "state":
        return {**limit, OURS: functools.partial(SampledWindows, path), **peer}
    ours = {
        SHARDS: functools.partial(SampledWindows, path),
        MAP: functools.partial(SampledWindows, path, folder / MAPS),
    }
    return {**limit, **ours, ZARR: functools.partial(ZarrWindows, path), **peer}


def _is_lerobot_installed() -> bool:
    try:
        require_lerobot()
    except UserError:
        return False
    return True


def _prepare_lerobot(store: EpisodeStore) -> None:
    path = store.path.parent / LEROBOT
    if not path.exists():
        say(f"writing {path} with LeRobot, cameras as video")
        export_lerobot_video(store, path)


def target_cells(rows: list[Json]) -> list[list[str]]:
    """Of each target what was measured, the median of the blocks, and whether that meets it."""
    ratios = {(row["data"], row["reader"]): row["timings"].get("ratios", {}) for row in rows}
    lines = []
    for target in TARGETS:
        ratio = ratios[target.data, target.reader].get(target.reference)
        result = ["not installed", "-"]
        if ratio is not None:
            result = [_ratio(ratio["median"]), "yes" if ratio["median"] >= target.least else "NO"]
        lines.append([target.data, target.reader, target.reference, f"{target.least:g}", *result])
    return lines


def _cells(row: Json) -> list[str]:
    if not row["is_installed"]:
        return [row["data"], row["reader"], "not installed", *["-"] * (len(COLUMNS) - 3)]
    timings = row["timings"]
    rate, cold, ratios = timings["windows_per_s"], timings["cold_windows_per_s"], timings["ratios"]
    return [
        *(row["data"], row["reader"]),
        f"{rate['median']:,.0f} [{rate['low']:,.0f}, {rate['high']:,.0f}]",
        *(_ratio(ratios[name]["median"]) if name in ratios else "-" for name in REFERENCES),
        *(f"{cold['median']:,.0f}", f"{timings['open_s']:.2f}"),
        *(f"{timings['peak_mb']:.0f}", f"{timings['own_mb']:.0f}"),
    ]


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _page(rows: list[Json], facts: Json, config: DictConfig, machine: Json) -> str:
    chosen = config.data
    return f"""\
# Training windows a second

A window is {HISTORY} observations and {HORIZON} actions; history before an episode and actions after it repeat its
first and last step. Batches of {chosen.batch_size} in random order, drawn before the clock starts. All readers have the
same data, and take turns: {chosen.blocks} blocks of at least {chosen.block_s:g} s each after one that does not count;
medians, and ratios of the blocks side by side.

- {LIMIT}: the limit; everything in memory and the rows of each window listed beforehand, so that only `take` is left
- {OURS}: `WindowSampler`; images from the shards, by one selection a batch, or from the memory map
- {ZARR}: one selection of the batch's distinct images from the same shards, `array.oindex[rows]`
- {PEER}: random order through a DataLoader with num_workers=0, which collates; cameras are AV1 video, decoded by
  pyav, as uint8 (its default decoder, torchcodec, needs FFmpeg's libraries)

"Cold" is the first batch after the data were opened afresh, median of {chosen.cold_starts}; before that their files
were synced and taken out of the page cache (posix_fadvise, DONTNEED). Each reader has a process of its own: "peak" is
the most that was resident in it (VmHWM, all of Python and mapped pages included), "own" at the end without mapped
pages (RssAnon), which the system takes back when it needs them.

- machine: {machine["cpu"]}, {machine["cores"]} cores; seed {config.seed}
- windows of state: {facts["state"]}
- windows of images: {facts["images"]}, {chosen.cameras} cameras of {chosen.camera_size}x{chosen.camera_size}

{markdown(COLUMNS, map(_cells, rows))}
Targets, by the medians above:

{markdown(TARGET_COLUMNS, target_cells(rows))}"""
