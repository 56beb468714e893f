"""The open-source stack that turns a slow or privileged robot teacher into a policy that runs at control rate."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout `sim/`, `policies/`, `datasets/` and `conf/` stand beside this folder; in a wheel they stand inside it.
if __name__ == "embodied" and not (Path(__file__).parent / "policies").is_dir():
    __path__.append(str(Path(__file__).parent.parent))
