"""A run lives in its own directory, `<run_root>/<command>/<name>/`, and the same command finds it again.

config.yaml    the resolved configuration, written first
summary.json   the result, written last: with it the run is finished
.lock          held while a process works here
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from embodied import __version__
from embodied.catalog import nearest
from embodied.console import say
from embodied.errors import UserError
from embodied.summaries import Json, describe_machine, has_schema, read_summary, validate_summary
from embodied.summaries import without_timings as without_timings  # offered here too, beside what writes summaries

# Keys that say where and how a run is done, not what: they change no result.
VOLATILE = ("hydra", "run_root", "name", "force", "resume", "workers")

CONFIG, SUMMARY, LOCK = "config.yaml", "summary.json", ".lock"


class RunDirectory:
    """One run on disk. Made by `open`."""

    def __init__(self, path: Path, command: str, config: DictConfig, volatile: Sequence[str] = VOLATILE) -> None:
        self.path = path
        self.command = command
        self.config = config  # resolved; of a resumed run the one that it began with, except for volatile keys
        self._volatile = tuple(volatile)

    @staticmethod
    def open(command: str, stem: str, config: DictConfig, *, volatile: Sequence[str] = ()) -> RunDirectory:
        """Find or make the directory for this command and configuration, and write config.yaml into it.

        Args:
            stem: what a reader should recognise, for example "robosuite-lift-sdp-seed0"; a hash is appended.
            config: with the keys of conf/run.yaml. `name` replaces stem and hash. `force` takes a new directory
                beside a finished one. `resume` continues a directory, and prints where the configuration differs.
            volatile: further dotted keys that change no result, such as a number of processes.

        Raises:
            UserError: a bad name, a `name` that belongs to another configuration, nothing to resume, or a
                directory that cannot be written.
        """
        resolved = _resolved(config)
        all_volatile = (*VOLATILE, *volatile)
        if config.get("resume") is not None:
            return _resume(command, resolved, all_volatile)
        root = Path(resolved.run_root) / command
        path = root / _name(stem, resolved, all_volatile)
        if resolved.force:
            path = _first_unfinished(path)
        run = RunDirectory(path, command, resolved, all_volatile)
        run._claim()
        return run

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_hash(self) -> str:
        """SHA-256 over the configuration without volatile keys, in hexadecimal."""
        return config_hash(self.config, self._volatile)

    @property
    def is_finished(self) -> bool:
        """Whether a readable summary.json is there."""
        return _is_finished(self.path)

    def summary(self) -> Json:
        """The run's summary.

        Raises:
            UserError: the run is not finished, or its summary does not fit the schema.
        """
        summary = read_summary(self.path / SUMMARY)
        validate_summary(self.command, summary)
        return summary

    def write_summary(self, result: Json) -> Path:
        """Finish the run: add what every summary holds, check it against its schema, write it atomically.

        Args:
            result: the command's own keys, JSON values only; what it timed belongs under `timings`.

        Returns:
            The path of summary.json.

        Raises:
            UserError: the result does not fit `embodied/schemas/<command>.schema.json`, or cannot be written.
        """
        common = {
            "command": self.command,
            "version": __version__,
            "config_hash": self.config_hash,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe_machine(),
        }
        summary = common | result | common  # in this order, and nothing of it replaced
        validate_summary(self.command, summary)
        path = self.path / SUMMARY
        _write_atomically(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this directory; ends with the process, however that ends.

        Raises:
            UserError: another one works here.
        """
        with _writing(self.path):
            file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
                raise UserError(
                    expected=f"{self.path} to be free",
                    found=f"process {holder} at work in it",
                    remedy="wait for it, end it, or give this run another name=",
                ) from error
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(file)

    def _claim(self) -> None:
        """Make the directory, or check that it is ours already."""
        saved = self.path / CONFIG
        if saved.exists():
            differences = config_differences(_load_config(self.path), self.config, self._volatile)
            if differences:
                raise UserError(
                    expected=f"{self.path} to hold a run of this configuration",
                    found=f"another one ({'; '.join(differences[:3])}{'; ...' if len(differences) > 3 else ''})",
                    remedy=f"choose another name=, or continue it with resume={self.path}",
                )
            return
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        _write_atomically(saved, OmegaConf.to_yaml(self.config))


def config_hash(config: DictConfig, volatile: Sequence[str] = VOLATILE) -> str:
    """SHA-256 over the resolved configuration without its volatile (dotted) keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(_lasting(config, volatile), sort_keys=True).encode()).hexdigest()


def config_differences(before: DictConfig, now: DictConfig, volatile: Sequence[str] = VOLATILE) -> list[str]:
    """Each difference in words, `policy.k: 2, now 1`; volatile keys aside."""
    old, new = _leaves(_lasting(before, volatile)), _leaves(_lasting(now, volatile))
    return [
        f"{key}: {_words(old, key)}, now {_words(new, key)}"
        for key in sorted(old | new)
        if (key in old) != (key in new) or old[key] != new[key]
    ]


def find_run(
    path: str | os.PathLike[str], commands: Sequence[str], run_root: str | os.PathLike[str] = "outputs"
) -> Path:
    """The run directory that a user means: a directory, its summary.json, or a name under `run_root`.

    Args:
        commands: whose runs are wanted, in order of preference.

    Raises:
        UserError: there is none, or it is a run of another command; lists the nearest.
    """
    given = Path(path)
    directory = given.parent if given.name == SUMMARY else given
    places = [directory, *(Path(run_root) / command / directory for command in commands)]
    for place in places:
        if (place / CONFIG).is_file():
            command = _command_of(place)
            if command in commands or command is None:
                return place
            raise UserError(
                expected=f"a run of {' or '.join(commands)}",
                found=f"a run of {command}, {place}",
                remedy=_suggest(directory.name, commands, run_root),
            )
    raise UserError(
        expected=f"a run directory of {' or '.join(commands)}",
        found=f"'{given}', which {'holds no ' + CONFIG if directory.is_dir() else 'does not exist'}",
        remedy=_suggest(directory.name, commands, run_root),
    )


def _suggest(name: str, commands: Sequence[str], run_root: str | os.PathLike[str]) -> str:
    """The nearest run and the newest ones, in words."""
    runs = [p.parent for c in commands for p in Path(run_root).glob(f"{c}/*/{CONFIG}")]
    if not runs:
        return f"there is none under {run_root} yet; run `embodied {commands[0]}` first"
    newest = sorted(runs, key=lambda run: run.stat().st_mtime, reverse=True)
    nearby = nearest(name, [run.name for run in newest[:8]])
    return f"{nearby} (in {Path(run_root)}/{{{','.join(commands)}}})" if len(commands) > 1 else nearby


def _command_of(path: Path) -> str | None:
    """Which command's run this is; None if nothing tells."""
    if _is_finished(path):
        return read_summary(path / SUMMARY).get("command")
    parent = path.resolve().parent.name
    return parent if has_schema(parent) else None


def _resume(command: str, config: DictConfig, volatile: Sequence[str]) -> RunDirectory:
    path = find_run(config.resume, commands=[command], run_root=config.run_root)
    saved = _load_config(path)
    for difference in config_differences(saved, config, volatile):
        say(f"resume: {difference}; the run goes on as it began")
    # What the run is stays as it began; how it is done (workers and the like) is as asked for now.
    for key in volatile:
        if (value := OmegaConf.select(config, key)) is not None or OmegaConf.select(saved, key) is not None:
            OmegaConf.update(saved, key, value, force_add=True)
    return RunDirectory(path, command, saved, volatile)


def _name(stem: str, config: DictConfig, volatile: Sequence[str]) -> str:
    if config.name is None:
        return f"{re.sub(r'[^A-Za-z0-9_.+]+', '-', stem).strip('-.')}-{config_hash(config, volatile)[:8]}"
    name = str(config.name)
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise UserError(
            expected="name= to be the name of one directory",
            found=f"'{name}'",
            remedy="put other places into run_root=",
        )
    return name


def _first_unfinished(path: Path) -> Path:
    """`path`, or the first of `<path>-2`, `-3`, ... that does not hold a finished run."""
    candidate, number = path, 1
    while _is_finished(candidate):
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def _is_finished(path: Path) -> bool:
    try:
        read_summary(path / SUMMARY)
    except UserError:
        return False
    return True


def _resolved(config: DictConfig) -> DictConfig:
    """A plain copy with every interpolation replaced and Hydra's section left out."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return OmegaConf.create({key: value for key, value in values.items() if key != "hydra"})


def _load_config(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path / CONFIG)
    except (OSError, ValueError, OmegaConfBaseException, UnicodeError) as error:
        raise UserError(
            expected=f"a readable {path / CONFIG}", found=str(error), remedy="remove the directory and run again"
        ) from error
    if not isinstance(config, DictConfig):
        raise UserError(
            expected=f"keys in {path / CONFIG}", found="a list", remedy="remove the directory and run again"
        )
    return config


def _lasting(config: DictConfig, volatile: Sequence[str]) -> Json:
    """The configuration as plain values, without volatile keys."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    for key in volatile:
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return values


def _leaves(values: Json, prefix: str = "") -> Json:
    """Dotted path -> value; lists and empty dicts are leaves."""
    leaves: Json = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            leaves.update(_leaves(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _words(leaves: Json, key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False) if key in leaves else "(absent)"


def _write_atomically(path: Path, text: str) -> None:
    """All of it or nothing, even if the machine stops."""
    with _writing(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses (no space, no right) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            expected=f"to write into {path}",
            found=str(error.strerror or error),
            remedy="make space there, or choose another place with run_root=",
        ) from error
