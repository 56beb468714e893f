"""A store larger than what sampling it takes of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "sampling_memory.py"


def sampled(folder, place):
    words = [sys.executable, str(TOOL), str(folder), "0.4", place]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.heavy
def test_sampling_takes_a_fraction_of_the_store(tmp_path):
    """At the highest point all that is resident, as the system counts it; of a map what is the process's own."""
    shards, mapped = sampled(tmp_path, "shards"), sampled(tmp_path, "map")
    assert shards["store_mb"] >= 400 and (shards["place"], mapped["place"]) == ("shards", "map")
    assert shards["peak_mb"] - shards["started_mb"] < shards["store_mb"] / 2.5
    assert mapped["own_mb"] - mapped["started_mb"] < mapped["store_mb"] / 2
    assert shards["sum"] == mapped["sum"]
