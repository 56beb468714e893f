"""A real link, whose answers a test holds back for so much virtual time."""

from __future__ import annotations

from collections.abc import Callable

from embodied.robot.server_link import Reply


class DelayedLink:
    """Waits for each answer in real time, and hands it over `delay_s(number)` later in virtual time.

    The number is 0 for the first request of an episode, and more for the others.
    """

    def __init__(self, link, delay_s: Callable[[int], float]) -> None:
        self._link, self._delay = link, delay_s
        self.now_s, self.delay_s, self.replies, self.requests = 0.0, 0.0, [], []
        self._coming: list[tuple[float, Reply]] = []

    def tick(self, now_s: float) -> None:
        self.now_s = now_s

    def ask(self, request):
        ticket = self._link.ask(request)
        self.requests.append(request)
        reply = self._link.poll(20.0)
        assert reply is not None and reply.ticket == ticket
        self.replies.append(reply)
        number = 0 if request.get("reset") else len(self.replies)
        self._coming.append((self.now_s + self._delay(number), reply))
        return ticket

    def settle(self) -> None:
        """Nothing is held back any more."""
        self._coming = [(-float("inf"), reply) for _, reply in self._coming]

    def poll(self, wait_s=0.0):
        if self._coming and self._coming[0][0] <= self.now_s + 1e-9:
            return self._coming.pop(0)[1]
        return None
