"""The watchdog of processes that hang."""

import subprocess
import sys

import pytest

from embodied.errors import UserError
from embodied.hang_watchdog import REARM_S, HangWatchdog

PROGRAM = """
import sys, time
from embodied.hang_watchdog import HangWatchdog
with HangWatchdog(0.2) as watchdog:
    for _ in range(20):
        time.sleep(0.1)
        watchdog.sign_of_life()
    print("alive after many limits", flush=True)
    if sys.argv[1] == "hangs":
        time.sleep(60)
time.sleep(1.5)
print("at the end")
"""


def run(how):
    return subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=50)


def test_signs_of_life_keep_a_process_and_leaving_disarms_it():
    result = run("lives")
    assert result.returncode == 0 and result.stdout.split("\n") == ["alive after many limits", "at the end", ""]


def test_a_process_without_them_ends_and_says_where_it_was():
    result = run("hangs")
    assert result.returncode == 1 and result.stdout == "alive after many limits\n"
    assert "Timeout" in result.stderr and "<string>" in result.stderr


def test_limits_that_cannot_work():
    assert REARM_S > 0
    with pytest.raises(UserError, match="hang_after_s above 0; found 0"):
        HangWatchdog(0)
