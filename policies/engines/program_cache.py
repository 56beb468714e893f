"""Exported programs on the disk, so that a process does not export what another one has exported before.

An export takes tens of seconds. A file is found by a hash of all that the program is made of; what is read is compared
with the module like a fresh export.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

FOLDER_VARIABLE = "EMBODIED_PROGRAM_CACHE"
MOST_BYTES = 2 * 2**30  # of all files; the longest unused go first
SUFFIX = ".program"
_PLAIN = (bool, int, float, str, tuple, list, type(None))


def cache_folder() -> Path | None:
    """`EMBODIED_PROGRAM_CACHE`, where it is empty none; else `embodied/programs` in the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "embodied" / "programs"


def program_key(module: nn.Module, inputs: Sequence[Tensor], *versions: str) -> str:
    """A hash of all that makes the module, of the inputs' types, and of the versions of what exports it.

    Of the module these are weights, constants, settings, and where its classes and their bases are written: the files
    in this package, the versions of others.
    """
    digest = hashlib.sha256()
    for part in _description(module, inputs, versions):
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _description(module: nn.Module, inputs: Sequence[Tensor], versions: Sequence[str]) -> Iterator[str | bytes]:
    yield from versions
    for x in inputs:
        yield f"{x.dtype} {tuple(x.shape[1:])}"
    for name, part in module.named_modules(remove_duplicate=False):
        settings = {key: value for key, value in sorted(vars(part).items()) if isinstance(value, _PLAIN)}
        yield f"{name} {type(part).__module__}.{type(part).__qualname__} {settings}"
    files = {kind.__module__ for part in module.modules() for kind in type(part).__mro__}
    for name in sorted(files):
        if name.startswith("embodied."):
            yield inspect.getsource(sys.modules[name])
    for package in sorted({name.partition(".")[0] for name in files}):  # timm's, for one
        yield f"{package} {getattr(sys.modules[package], '__version__', '')}"
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        yield tensor.detach().cpu().contiguous().numpy().tobytes()


def read_program(key: str) -> bytes | None:
    """The program of this key, if there is one."""
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / (key + SUFFIX)
    try:
        program = path.read_bytes()
        os.utime(path)  # used now
    except OSError:
        return None
    return program


def keep_program(key: str, program: bytes) -> None:
    """Write it, and remove what was not used for longest above `MOST_BYTES`. A disk that takes nothing is no error."""
    folder = cache_folder()
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete_on_close=False) as file:
            file.write(program)
            file.close()
            os.replace(file.name, folder / (key + SUFFIX))
        _evict(folder)
    except OSError:
        return


def drop_program(key: str) -> None:
    """It is not what it should be. A disk from which nothing can be removed is no error."""
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError):
            (folder / (key + SUFFIX)).unlink()


def _evict(folder: Path) -> None:
    newest_first = sorted(folder.glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in newest_first:
        total += path.stat().st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
