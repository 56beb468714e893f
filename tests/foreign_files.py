"""Files of other formats that tests make, and what the importers' tests share."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numcodecs
import numpy as np

from embodied.datasets.episode_store import EpisodeStore


def decode_zarr_v2(path: Path, key: str) -> np.ndarray:
    """An array read by nothing but the Zarr v2 specification: chunk after chunk, with numcodecs."""

    def content(name: str) -> bytes:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    metadata = json.loads(content(f"{key}/.zarray"))
    assert metadata["zarr_format"] == 2 and metadata["order"] == "C" and not metadata["filters"]
    shape, chunks, dtype = metadata["shape"], metadata["chunks"], np.dtype(metadata["dtype"])
    codec = numcodecs.get_codec(metadata["compressor"])
    values = np.empty(shape, dtype)
    for place in product(*(range(-(-size // chunk)) for size, chunk in zip(shape, chunks, strict=True))):
        block = np.frombuffer(codec.decode(content(f"{key}/" + ".".join(map(str, place)))), dtype).reshape(chunks)
        where = tuple(
            slice(i * chunk, min((i + 1) * chunk, size)) for i, chunk, size in zip(place, chunks, shape, strict=True)
        )
        values[where] = block[tuple(slice(part.stop - part.start) for part in where)]
    return values


def assert_same_store(one: EpisodeStore, other: EpisodeStore) -> None:
    """In all that a store holds of its kept episodes, the provenance included."""
    assert one.content_hash() == other.content_hash()
    assert (one.spec, one.provenance, one.expected_episodes) == (other.spec, other.provenance, other.expected_episodes)
    assert [row.provenance for row in one.rows] == [row.provenance for row in other.rows]


@contextmanager
def nothing_left_in(folder: Path) -> Iterator[None]:
    """A conversion that fails leaves the folder as it was."""
    before = sorted(folder.iterdir())
    yield
    assert sorted(folder.iterdir()) == before
