"""The difference between two clocks, from the time stamps of requests and answers (NTP, RFC 5905, sec. 8 and 10)."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

WINDOW = 64  # exchanges that an estimate is made of: old ones drift away


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

        robot's clock    sent_s                               returned_s
                               \\                             /
        server's clock          received_s .... answered_s

    All in s; the first and the last of the robot's clock, the others of the server's.
    """

    sent_s: float
    received_s: float
    answered_s: float
    returned_s: float

    @property
    def offset_s(self) -> float:
        """The server's clock minus the robot's, if both ways took the same time."""
        return ((self.received_s - self.sent_s) + (self.answered_s - self.returned_s)) / 2

    @property
    def delay_s(self) -> float:
        """Spent on the way, there and back; half of it bounds the error of `offset_s`."""
        return (self.returned_s - self.sent_s) - (self.answered_s - self.received_s)

    @property
    def is_possible(self) -> bool:
        """Whether clocks that run forward can have given these."""
        values = (self.sent_s, self.received_s, self.answered_s, self.returned_s)
        return all(map(math.isfinite, values)) and self.answered_s >= self.received_s and self.delay_s >= 0


class ClockOffset:
    """The offset by the exchange with the least delay among the newest ones: queues on the way only ever add to it."""

    def __init__(self, window: int = WINDOW) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=window)

    def add(self, exchange: Exchange) -> None:
        """Take an exchange into account; an impossible one is left out."""
        if exchange.is_possible:
            self._exchanges.append(exchange)

    def reset(self) -> None:
        """Another server, another clock."""
        self._exchanges.clear()

    @property
    def best(self) -> Exchange | None:
        """The exchange that the estimate is made from; None before the first."""
        return min(self._exchanges, key=lambda exchange: exchange.delay_s, default=None)

    @property
    def offset_s(self) -> float | None:
        """The server's clock minus the robot's; None before the first exchange."""
        return None if self.best is None else self.best.offset_s

    @property
    def error_s(self) -> float | None:
        """The true offset is at most so far from `offset_s`, as long as the clocks do not drift."""
        return None if self.best is None else self.best.delay_s / 2

    def to_server_s(self, robot_s: float) -> float | None:
        """A time of the robot's clock as the server's clock shows it; None before the first exchange."""
        return None if self.offset_s is None else robot_s + self.offset_s
