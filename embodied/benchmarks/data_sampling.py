"""How many training windows a second different readers of the same data give, and what memory that takes them."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from embodied.benchmarks.answering_process import AnsweringProcess
from embodied.benchmarks.window_readers import WindowReader
from embodied.errors import UserError
from embodied.types import Json


@dataclass(frozen=True)
class SamplingBenchmark:
    """How much to measure."""

    blocks: int  # of each reader, in turn
    block_s: float  # a block goes on for so long, and to the end of its batch
    cold_starts: int  # of each reader, in turn
    batch_size: int  # windows
    seed: int

    def __post_init__(self) -> None:
        for name in ("blocks", "cold_starts", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    expected=f"data.{name} of at least 1", found=str(getattr(self, name)), remedy="raise it"
                )
        if not self.block_s > 0:
            raise UserError(expected="data.block_s above 0", found=str(self.block_s), remedy="for example 1")


class TimedReader(Protocol):
    """A reader that is measured: as `ReaderProcess`, which says what these are."""

    def start(self, batch_size: int, seed: int) -> Json: ...

    def windows_per_s(self, batch_size: int, seed: int, seconds: float) -> float: ...

    def memory(self) -> Json: ...


class ReaderProcess:
    """A reader in a process of its own, so that its memory is its own."""

    def __init__(self, make: Callable[[], WindowReader], folder: Path) -> None:
        """
        Args:
            make: opens the data; importable, since the process is spawned.
            folder: of all files that the reader reads.
        """
        self._process = AnsweringProcess(functools.partial(MeasuredReader, make, folder), _failed)

    def start(self, batch_size: int, seed: int) -> Json:
        """Open the data afresh after its files were taken out of the page cache, and read one batch.

        Returns:
            "open_s", and "windows_per_s" of that batch.

        Raises:
            UserError: the reader fails.
        """
        return self._process.ask("start", batch_size, seed)

    def windows_per_s(self, batch_size: int, seed: int, seconds: float) -> float:
        """Of what is open, over at least so many seconds, in an order that depends on the seed.

        Raises:
            UserError: the reader fails.
        """
        return self._process.ask("windows_per_s", batch_size, seed, seconds)

    def memory(self) -> Json:
        """Of the process so far: "peak_mb", all that was resident, mapped pages of files included; "own_mb" is without
        those, now.

        Raises:
            UserError: the reader fails.
        """
        return self._process.ask("memory")

    def close(self) -> None:
        self._process.close()


def _failed(reason: str) -> UserError:
    return UserError(
        expected="a reader that gives windows", found=reason, remedy="give the command again with fewer data.episodes"
    )


class MeasuredReader:
    """What `ReaderProcess` asks for, in its process."""

    def __init__(self, make: Callable[[], WindowReader], folder: Path) -> None:
        self._make, self._folder = make, folder
        make()  # for what it imports, which is none of the data's
        self._reader: WindowReader | None = None

    def __call__(self, name: str, *arguments: Any) -> Any:
        return getattr(self, name)(*arguments)

    def start(self, batch_size: int, seed: int) -> Json:
        self._reader = None
        gc.collect()  # mapped pages stay in the page cache
        forget_files(self._folder)
        begun_s = time.perf_counter()
        self._reader = reader = self._make()
        opened_s = time.perf_counter()
        indices = np.random.default_rng(seed).integers(len(reader), size=batch_size)
        gather_s = -time.perf_counter()
        reader.gather(indices)
        gather_s += time.perf_counter()
        return {"open_s": opened_s - begun_s, "windows_per_s": batch_size / gather_s}

    def windows_per_s(self, batch_size: int, seed: int, seconds: float) -> float:
        reader = self._reader
        assert reader is not None, "start comes first"
        order = np.random.default_rng(seed).permutation(max(len(reader), batch_size)) % len(reader)
        batches = [order[place : place + batch_size] for place in range(0, len(order) - batch_size + 1, batch_size)]
        count, elapsed_s, begun_s = 0, 0.0, time.perf_counter()
        while elapsed_s < seconds:
            reader.gather(batches[count % len(batches)])
            count += 1
            elapsed_s = time.perf_counter() - begun_s
        return count * batch_size / elapsed_s

    def memory(self) -> Json:
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        return {
            name: int(sizes[key].split()[0]) * 1024 / 1e6 for name, key in (("peak_mb", "VmHWM"), ("own_mb", "RssAnon"))
        }


def forget_files(folder: Path) -> None:
    """Take the files below a folder out of the system's page cache, as far as no process has them mapped."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what is not on the disk yet stays
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def measure(
    readers: Mapping[str, TimedReader],
    settings: SamplingBenchmark,
    references: Sequence[str],
    report: Callable[[], None],
) -> dict[str, Json]:
    """The figures of each reader, by its name. They take turns, start by start and then block by block, so that
    whatever slows the machine slows all of them; a first block of each warms up and does not count.

    Args:
        references: names of readers to compare the others with, block by block; those that are not there are left out.
        report: called after each start and each block of one reader.

    Returns:
        of each: "windows_per_s" and "cold_windows_per_s" as median, lowest and highest; "open_s", the median; "peak_mb"
        and "own_mb"; "ratios", how many times as fast as each reference, as median, lowest and highest.

    Raises:
        UserError: a reader that fails.
    """
    starts: dict[str, list[Json]] = {name: [] for name in readers}
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(settings.cold_starts):
        for name, reader in readers.items():
            starts[name].append(reader.start(settings.batch_size, settings.seed + turn))
            report()
    for block in range(settings.blocks + 1):
        for name, reader in readers.items():
            rates[name].append(reader.windows_per_s(settings.batch_size, settings.seed + block, settings.block_s))
            report()
    counted = {name: np.array(values[1:]) for name, values in rates.items()}
    return {
        name: {
            "windows_per_s": _spread(counted[name]),
            "cold_windows_per_s": _spread(np.array([start["windows_per_s"] for start in starts[name]])),
            "open_s": float(np.median([start["open_s"] for start in starts[name]])),
            **reader.memory(),
            "ratios": {
                other: _spread(counted[name] / counted[other])
                for other in references
                if other in readers and other != name
            },
        }
        for name, reader in readers.items()
    }


def _spread(values: np.ndarray) -> Json:
    return {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())}
