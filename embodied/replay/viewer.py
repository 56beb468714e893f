"""Open a recording in Rerun's viewer, where there is a screen."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from embodied.errors import UserError

VIEWER_PORT = 9876  # the one that Rerun itself takes
START_S = 20.0  # for a viewer to open
MEMORY_LIMIT = "2GB"  # of the viewer, which would take three quarters of the machine's memory otherwise


def has_screen() -> bool:
    """Whether a window could open: a display server on Linux, no remote shell elsewhere."""
    if sys.platform.startswith("linux"):
        return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return "SSH_CONNECTION" not in os.environ


def open_recording(path: str | Path, memory_limit: str = MEMORY_LIMIT) -> bool:
    """Start a viewer on the recording and return at once; the viewer outlives this process.

    Args:
        memory_limit: of the viewer, for example "2GB" or "20%".

    Returns:
        False where there is no screen or no viewer, and then nothing was started: see `how_to_view`.
    """
    program = _viewer_program()
    if not has_screen() or program is None:
        return False
    subprocess.Popen(
        [program, str(path), "--memory-limit", memory_limit],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return True


def how_to_view(path: str | Path) -> str:
    """What a person types to see the recording, here or on another machine."""
    return (
        f"view it with `rerun {path}` on a machine with a screen, "
        f"or in a browser with `rerun {path} --web-viewer --memory-limit {MEMORY_LIMIT}`"
    )


def _viewer_program() -> str | None:
    """The viewer of this Python's environment, which fits its recordings; else the one on the PATH."""
    beside_python = Path(sys.executable).with_name("rerun")
    return str(beside_python) if beside_python.exists() else shutil.which("rerun")


def start_viewer(port: int = VIEWER_PORT, memory_limit: str = MEMORY_LIMIT) -> tuple[str, subprocess.Popen[bytes]]:
    """A viewer that waits for what is sent to it: its address, and its process, which outlives this one.

    Raises:
        UserError: there is no viewer, or it does not come up.
    """
    program = _viewer_program()
    if program is None:
        raise UserError(expected="Rerun's viewer", found="none", remedy="pip install rerun-sdk")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [program, "--port", str(port), "--memory-limit", memory_limit]
    process = subprocess.Popen(command, **quiet, start_new_session=True)
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return f"rerun+http://127.0.0.1:{port}/proxy", process
        time.sleep(0.1)
    raise UserError(
        expected="Rerun's viewer to open", found="one that does not answer", remedy="start `rerun` by hand to see why"
    )
