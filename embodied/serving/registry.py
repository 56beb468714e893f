"""Which sessions there are, and to whom they belong."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from embodied.errors import UserError
from embodied.serving.served_session import ServedSession


class SessionTaken(UserError):
    """Somebody else holds a session of that name."""


class SessionsFull(UserError):
    """There are as many sessions as the server was told to have."""


class SessionRegistry:
    """Sessions by name. Not for several threads at once: `Sessions` holds a lock around it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sessions: dict[str, ServedSession] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[ServedSession]:
        return iter(self._sessions.values())

    def open(self, name: str, owner: Hashable, make: Callable[[], ServedSession]) -> None:
        """
        Raises:
            SessionTaken: another owner holds a session of this name.
            SessionsFull: no more are allowed.
        """
        held = self._sessions.get(name)
        if held is not None and held.owner == owner:
            return
        if held is not None:
            raise SessionTaken(
                expected=f"session '{name}' to be free",
                found="another client that holds it",
                remedy="choose another key, or end the other client; one that vanished is noticed within seconds",
            )
        if len(self._sessions) >= self._most:
            raise SessionsFull(
                expected=f"at most {self._most} sessions",
                found="one more",
                remedy="close one, or start the server with a higher sessions.most_sessions",
            )
        self._sessions[name] = make()

    def remove(self, name: str, owner: Hashable) -> ServedSession | None:
        """The session that this owner had, which is no more."""
        session = self._sessions.get(name)
        return self._sessions.pop(name) if session is not None and session.owner == owner else None

    def names_of(self, owner: Hashable) -> list[str]:
        return [name for name, session in self._sessions.items() if session.owner == owner]

    def of(self, name: str, owner: Hashable) -> ServedSession:
        """
        Raises:
            UserError: this owner has no session of this name.
        """
        session = self._sessions.get(name)
        if session is None or session.owner != owner:
            raise UserError(expected="an open session", found=f"none called '{name}'", remedy="open one first")
        return session
