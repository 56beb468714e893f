"""Make `build/typing/embodied/`, a tree of links in which every module stands where it is imported from.

`sim/`, `policies/`, `datasets/` and `conf/` are imported as `embodied.*`, which a type checker cannot see in a
checkout. Run it before pyright; it replaces the tree of an earlier run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("conf", "datasets", "policies", "sim")


def make_links(root: Path) -> Path:
    """Link `embodied/*` and the mapped folders of the checkout `root` into one package; returns its folder."""
    package = root / "build" / "typing" / "embodied"
    if package.exists():
        shutil.rmtree(package)
    package.mkdir(parents=True)
    for entry in sorted((root / "embodied").iterdir()):
        if entry.name != "__pycache__":
            _link(package / entry.name, entry)
    for name in MAPPED:
        _link(package / name, root / name)
    return package


def _link(link: Path, target: Path) -> None:
    link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=target.is_dir())


if __name__ == "__main__":
    make_links(ROOT)
