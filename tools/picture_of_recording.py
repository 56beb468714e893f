"""Draw the viewer's first sight of a Rerun recording into a PNG, on a machine without a screen.

    python tools/picture_of_recording.py RECORDING.rrd PICTURE.png [--size 1200x800]

Needs Debian's xvfb, xauth, mesa-vulkan-drivers and libxkbcommon-x11-0 (a software renderer; no GPU).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT_S = 180
PACKAGES = "apt-get install mesa-vulkan-drivers xvfb xauth libxkbcommon-x11-0"
DRIVER_FOLDERS = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")


def missing_piece() -> str | None:
    """What keeps this machine from drawing, in one line; None if nothing does."""
    for program in ("xvfb-run", "xauth"):
        if shutil.which(program) is None:
            return f"{program} is missing; {PACKAGES}"
    if "VK_ICD_FILENAMES" not in os.environ and "VK_DRIVER_FILES" not in os.environ:
        folders = [Path(folder) for folder in DRIVER_FOLDERS]
        if not any(folder.is_dir() and any(folder.glob("*.json")) for folder in folders):
            return f"no Vulkan driver is installed; {PACKAGES}"
    return None


def rerun_program() -> str | None:
    """The viewer of this Python's environment, else of the PATH."""
    beside_python = Path(sys.executable).with_name("rerun")
    return str(beside_python) if beside_python.exists() else shutil.which("rerun")


def draw(recording: Path, picture: Path, size: str = "1200x800") -> None:
    """Write the picture.

    Raises:
        RuntimeError: a piece is missing, or the viewer failed; one line says which and what to do.
    """
    missing = missing_piece()
    if missing:
        raise RuntimeError(missing)
    rerun = rerun_program()
    if rerun is None:
        raise RuntimeError("the rerun viewer is missing; pip install rerun-sdk")
    if not recording.is_file():
        raise RuntimeError(f"there is no recording at {recording}")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        # A home of its own: no welcome dialogue, no state of earlier viewers, and nothing left behind.
        environment = {**os.environ, "HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home}
        subprocess.run([rerun, "analytics", "disable"], env=environment, capture_output=True, check=False)
        viewer = [rerun, str(recording), "--screenshot-to", str(picture), "--window-size", size]
        # The pointer rests in the screen's middle: outside the window, or the viewer would show a tooltip.
        width, height = (5 * int(side) for side in size.split("x"))
        screen = f"-screen 0 {width}x{height}x24"
        command = ["xvfb-run", "-a", "-s", screen, *viewer, "--renderer", "vulkan", "--port", "auto"]
        picture.unlink(missing_ok=True)
        try:
            finished = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the viewer drew nothing within {TIMEOUT_S} s") from error
    if not picture.is_file():
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the viewer left no picture (exit code {finished.returncode}): {last}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument(
        "--size", default="1200x800", help="width x height of the window; the picture has two pixels each"
    )
    arguments = parser.parse_args()
    if not re.fullmatch(r"[1-9][0-9]{2,3}x[1-9][0-9]{2,3}", arguments.size):
        parser.error(f"--size is a width and a height such as 1200x800, not {arguments.size}")
    try:
        draw(arguments.recording, arguments.picture, arguments.size)
    except RuntimeError as error:
        sys.stderr.write(f"picture_of_recording: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
