"""Workers that process and Ray pools build in tests: one that works, and those that die."""

from __future__ import annotations

import os
import signal
import time


def _square(item):
    return item * item


def make_square():
    return _square


def make_suicide():
    return lambda item: os.kill(os.getpid(), signal.SIGKILL)


def make_mortal(folder):
    """Dies at every third item, but only the first time that it is given."""

    def work(item):
        trace = folder / str(item)
        if item % 3 == 1 and not trace.exists():
            trace.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return work


def make_waiting(folder):
    """Item 0 ends once items 1 and 2 are marked in the folder, by whoever took their results; the others at once."""

    def work(item):
        ends_s = time.monotonic() + 60
        while item == 0 and not all((folder / str(other)).exists() for other in (1, 2)):
            if time.monotonic() > ends_s:
                raise TimeoutError("nobody took the results of items 1 and 2")
            time.sleep(0.01)
        return item * item

    return work
