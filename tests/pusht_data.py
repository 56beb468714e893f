"""Push-T demonstrations in Diffusion Policy's Zarr v2: the human ones, if the tests are given them, and made ones."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Blosc

SHARED_DATA = "EMBODIED_SHARED_DATA"
NAME = "pusht_cchi_v7_replay.zarr"
CHUNK_ROWS = 16


def human_demonstrations() -> Path:
    """The folder of the original Zarr store; skips the test where there is none."""
    folder = os.environ.get(SHARED_DATA)
    if not folder:
        pytest.skip(f"{SHARED_DATA} does not name a folder that holds {NAME}")
    path = Path(folder) / NAME
    if not path.is_dir():
        pytest.skip(f"{SHARED_DATA}={folder} holds no {NAME}")
    return path


def made_arrays(lengths: tuple[int, ...] = (30, 21, 25)) -> dict[str, np.ndarray]:
    """What a store of that format holds, from walks of agent and block; the first block ends upon its goal."""
    generator, rows = np.random.default_rng(5), sum(lengths)
    steps = generator.normal(0, 2, (rows, 5)) * [1, 1, 1, 1, 0.02]
    states = np.cumsum(steps, axis=0) + np.array([200, 300, 256, 256, 3.0])
    states[lengths[0] - 3 : lengths[0], 2:] = [256, 256, np.pi / 4]
    images = np.floor(generator.uniform(0, 256, (rows, 24, 24, 3)))
    return {
        "data/state": states.astype("f4"),
        "data/action": (states[:, :2] + generator.normal(0, 5, (rows, 2))).astype("f4"),
        "data/img": images.astype("f4"),
        "data/keypoint": generator.uniform(0, 512, (rows, 9, 2)).astype("f4"),
        "data/n_contacts": np.ones((rows, 1), "f4"),
        "meta/episode_ends": np.cumsum(lengths),
    }


def write_zarr_v2(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write the arrays as Diffusion Policy did: Zarr v2, Blosc with zstd, several chunks each."""
    group = zarr.create_group(path, zarr_format=2)
    for key, values in arrays.items():
        group.create_array(
            key,
            data=values,
            chunks=(CHUNK_ROWS, *values.shape[1:]),
            compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
        )
    return path
