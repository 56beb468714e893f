"""A collection whose processes are killed at random points: what survives must be what nobody had disturbed."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from embodied.datasets.manifest import MANIFEST_NAME, EpisodeRow, read_lines
from embodied.errors import UserError

PATIENCE_S = 120.0  # without any progress
ORPHANS_S = 10.0  # by when a killed parent's processes have ended


@dataclass(frozen=True)
class Kills:
    """How many processes were killed, by their part in the collection, and how often it was started."""

    committers: int
    workers: int
    starts: int


class CommittedEpisodes:
    """What the manifest of a store that somebody else writes has committed, and whether any of it goes away again."""

    def __init__(self, store: Path) -> None:
        self._manifest = store / MANIFEST_NAME
        self._size = 0
        self.seen: set[str] = set()  # ids
        self.lost: set[str] = set()  # seen, and missing later
        self.doubled: set[str] = set()  # committed by two lines at once

    def grew(self) -> bool:
        """Whether there are more than at the last call."""
        size = self._manifest.stat().st_size if self._manifest.exists() else 0
        if size == self._size:
            return False
        self._size, before = size, len(self.seen)
        ids = [line.row.id for line in read_lines(self._manifest) if isinstance(line.row, EpisodeRow)]
        self.lost |= self.seen.difference(ids)
        self.doubled |= {id for id, times in Counter(ids).items() if times > 1}
        self.seen.update(ids)
        return len(self.seen) > before


def collect_under_kills(
    command: Sequence[str],
    is_under_way: Callable[[], bool],
    *,
    kills: int,
    longest_wait_s: float,
    seed: int,
    log: Path,
    killed: Callable[[], None] = lambda: None,
) -> Kills:
    """Run a collection to its end, with SIGKILL for its committer or one of its workers at random points on the way.

    Each kill comes a random time after the processes began to make episodes; the command is given again whenever its
    committer died. A collection that ends before the last kill is left at that.

    Args:
        command: starts or continues the collection; its child processes are the workers.
        is_under_way: whether an episode was finished since it was asked last.
        longest_wait_s: kills come uniformly within so long after the first sign of work.
        seed: of the points in time and the victims.
        log: a file for what the command prints.
        killed: called after every kill.

    Raises:
        UserError: no progress for long, a collection that fails, or processes that outlive their killed parent.
    """
    random = np.random.default_rng(seed)
    committers = workers = starts = 0
    with log.open("ab") as output:
        while True:
            process = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            starts += 1
            while committers + workers < kills and _works(process, is_under_way, log):
                time.sleep(float(random.uniform(0.0, longest_wait_s)))
                children = [child for child in _children(process) if "spawn_main" in " ".join(_command_line(child))]
                if random.random() < 0.5 or not children:
                    process.kill()
                    committers += 1
                    _require_end(children)
                    killed()
                    break
                children[int(random.integers(len(children)))].kill()
                workers += 1
                killed()
            code = process.wait()
            if code == 0:
                return Kills(committers, workers, starts)
            if code > 0:
                raise UserError(
                    expected="a collection that goes on after its processes were killed",
                    found=f"exit status {code} after {committers + workers} kills",
                    remedy=f"read {log}",
                )


def _works(process: psutil.Popen, is_under_way: Callable[[], bool], log: Path) -> bool:
    """Wait until an episode is finished; False if the collection ended instead."""
    begun_s = time.monotonic()
    is_under_way()
    while process.poll() is None:
        if is_under_way():
            return True
        if time.monotonic() - begun_s > PATIENCE_S:
            process.kill()
            raise UserError(
                expected=f"an episode within {PATIENCE_S:g} s", found="none", remedy=f"read {log}: what keeps it?"
            )
        time.sleep(0.01)
    return False


def _children(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _require_end(children: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(children, timeout=ORPHANS_S)
    for child in alive:
        child.kill()
    if alive:
        raise UserError(
            expected=f"simulation processes that end within {ORPHANS_S:g} s of their parent",
            found=f"{len(alive)} that were still there",
            remedy="look for what keeps them in embodied/process_pool.py",
        )
