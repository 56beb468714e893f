"""Ends a process that hangs, where nothing in Python can: in a driver's first rendering, or in a simulator's loop."""

from __future__ import annotations

import faulthandler
import time

from embodied.errors import UserError

STDERR = 2  # the descriptor: `sys.stderr` may have been replaced
REARM_S = 1.0  # arming starts a thread; signs of life that follow sooner change nothing


class HangWatchdog:
    """Inside `with watchdog:` the process ends itself once signs of life stop, with all its tracebacks on stderr.

    The clock is the C library's own thread: it also runs out while a call that never returns keeps Python's lock. One
    at a time in a process.
    """

    def __init__(self, limit_s: float) -> None:
        """
        Args:
            limit_s: without a sign of life; the end comes within `REARM_S` after it.

        Raises:
            UserError: a limit that is not above 0.
        """
        if limit_s <= 0:
            raise UserError(expected="hang_after_s above 0", found=str(limit_s), remedy="choose 120, for example")
        self._limit_s = limit_s
        self._armed_s: float | None = None  # when; None: not armed

    def __enter__(self) -> HangWatchdog:
        self.sign_of_life()
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._armed_s = None

    def sign_of_life(self) -> None:
        now_s = time.monotonic()
        if self._armed_s is None or now_s - self._armed_s >= REARM_S:
            faulthandler.dump_traceback_later(self._limit_s + REARM_S, exit=True, file=STDERR)
            self._armed_s = now_s
