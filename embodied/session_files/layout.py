"""How the file of an episode is laid out, and what it is called.

The file grows while the episode runs, one checked record after the other, and gets its name at the end:

    <name>.session.part    8 bytes that name the format, then records: length, CRC-32, MessagePack as on the wire
    <name>.session         the same, once the episode is over

Whatever ends the server in between, every whole record is read. Nothing in a record can name code to run.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = b"EMBSESS\x01"  # its last byte is the version
SUFFIX, OPEN_SUFFIX = ".session", ".session.part"
FRAME = struct.Struct("<II")  # length of the record and its CRC-32


def session_name(path: Path) -> str:
    """Of a file, whether its episode is over or not."""
    return path.name.removesuffix(OPEN_SUFFIX).removesuffix(SUFFIX)


def is_session_file(path: Path) -> bool:
    return path.is_file() and path.name.endswith((SUFFIX, OPEN_SUFFIX))


def session_files(folder: Path) -> list[Path]:
    """All of a run, the oldest first."""
    return sorted(
        filter(is_session_file, folder.glob("*")),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
    )
