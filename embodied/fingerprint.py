"""What a file or a folder holds, in one word, so that a run can say which data it was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from embodied.errors import UserError


def fingerprint(path: str | Path) -> str:
    """SHA-256, in hexadecimal: of a file's bytes, or of the names and bytes of all files in a folder.

    Raises:
        UserError: there is nothing at `path`, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(expected=f"a file or folder at {path}", found="none", remedy="check the path")
    try:
        if not path.is_dir():
            return _file_digest(path)
        whole = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            # Digests have one length, so that no two folders give the same sequence of bytes.
            name = str(file.relative_to(path)).encode()
            whole.update(hashlib.sha256(name).digest() + bytes.fromhex(_file_digest(file)))
        return whole.hexdigest()
    except OSError as error:
        raise UserError(
            expected=f"to read {path}", found=str(error.strerror or error), remedy="check its permissions"
        ) from error


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
