"""Resident memory of sampling windows from a store of camera noise that is as large as you like.

    python tools/sampling_memory.py FOLDER GIGABYTES [shards|map]

Makes FOLDER/noise-<GIGABYTES>.zarr, unless it is there, with two 96x96 cameras; noise does not compress, so that the
store is as large on the disk as in memory. Then a process of its own samples it, batch by batch with read-ahead, and
one JSON object is printed. `peak_mb` is the most that was resident (VmHWM of /proc/self/status), all that Python holds
and mapped pages of files included; `own_mb` is what at the end was the process's own (RssAnon), without mapped pages,
which the system takes back when it needs them. The page cache that reading fills belongs to no process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from embodied.datasets.episode_store import EpisodeStore
from embodied.datasets.image_rows import ImageRows
from embodied.datasets.read_ahead import ReadAhead
from embodied.datasets.window_sampler import WindowSampler
from embodied.types import ActionSpec, CameraSpec, Episode, StateSpec, TaskSpec

SIZE, EPISODE_STEPS, STATE, ACTION = 96, 512, 5, 2
BATCH, BATCHES, AHEAD = 64, 40, 4
STEP_BYTES = 2 * SIZE * SIZE * 3


def main(folder: Path, gigabytes: float, place: str) -> None:
    path = folder / f"noise-{gigabytes:g}.zarr"
    make_store(path, gigabytes)
    words = [sys.executable, __file__, "--sample", str(path), place]
    subprocess.run(words, check=True)


def make_store(path: Path, gigabytes: float) -> None:
    """Noise images of at least this size, in whole episodes; an unfinished store is gone on with."""
    steps = EPISODE_STEPS
    action = ActionSpec(("x", "y"), ("m", "m"), (-1.0, -1.0), (1.0, 1.0), (False, False), "absolute", "none")
    state = StateSpec("state", tuple(f"s{i}" for i in range(STATE)), "m")
    cameras = tuple(CameraSpec(name, SIZE, SIZE) for name in ("front", "wrist"))
    spec = TaskSpec("made/noise", (state,), cameras, action, 20.0, steps)
    episodes = -int(-gigabytes * 1e9 // (steps * STEP_BYTES))
    provenance = {"made": "camera noise"}
    with EpisodeStore.create(
        path, spec, expected_episodes=episodes, provenance=provenance, expected_bytes=int(gigabytes * 1.1e9)
    ) as store:
        for seed in range(len(store), episodes):
            store.commit(_noise_episode(spec, seed))


def _noise_episode(spec: TaskSpec, seed: int) -> Episode:
    random, steps = np.random.default_rng(seed), EPISODE_STEPS
    action = random.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    return Episode(
        task=spec.task,
        seed=seed,
        state={"state": random.normal(size=(steps, STATE)).astype(np.float32)},
        images={c.name: random.integers(0, 256, (steps, SIZE, SIZE, 3), np.uint8) for c in spec.cameras},
        action=action,
        executed=action,
        reward=np.zeros(steps, np.float32),
        success=np.ones(steps, bool),
        time_s=np.arange(steps) / spec.control_hz,
        physics=np.zeros((steps, 0)),
    )


def sample(path: Path, place: str) -> None:
    """Gather batches of this process's store, and print what it took."""
    store = EpisodeStore.open(path)
    cache = path.parent / "image_cache" if place == "map" else None
    images = ImageRows(store, store.spec.cameras, cache=cache)
    windows = WindowSampler.from_store(store, history=2, horizon=16, images=images)
    started_mb = _status_mb("VmRSS")
    with ReadAhead(windows, windows.batches(0, BATCH), AHEAD) as ready:
        total = sum(int(next(ready).images["front"][:, -1, 0, 0, 0].sum()) for _ in range(BATCHES))
    figures = {
        "store_mb": store.total_steps * STEP_BYTES / 1e6,
        "place": "map" if images.are_mapped else "shards",
        "windows": BATCH * BATCHES,
        "started_mb": started_mb,
        "peak_mb": _status_mb("VmHWM"),
        "own_mb": _status_mb("RssAnon"),
        "sum": total,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


if __name__ == "__main__":
    if sys.argv[1] == "--sample":
        sample(Path(sys.argv[2]), sys.argv[3])
    else:
        main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "shards")
