"""Workers that process and Ray pools build in tests: one that works, and those that die."""

from __future__ import annotations

import os
import signal


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
