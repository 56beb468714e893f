"""Something measured in a process of its own, which answers one question after another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from embodied.errors import UserError


class AnsweringProcess:
    """Calls an object that was made in a spawned process."""

    def __init__(
        self,
        make: Callable[[], Callable[..., Any]],
        failed: Callable[[str], UserError],
        starting: AbstractContextManager[object] | None = None,
    ) -> None:
        """
        Args:
            make: of what is called; importable, since the process is spawned.
            failed: the error for what went wrong there, in words.
            starting: in which the process is started.
        """
        context = get_context("spawn")
        self._failed = failed
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_answer, args=(other, make), daemon=True)
        with starting or nullcontext():
            self._process.start()
        other.close()

    def ask(self, *question: object) -> Any:
        """What the call with these arguments returned.

        Raises:
            UserError: it failed, making the object failed, or the process died.
        """
        try:
            self._connection.send(question)
            answer, failure = self._connection.recv()
        except (EOFError, BrokenPipeError) as error:
            raise self._failed("its process died") from error
        if failure is not None:
            raise self._failed(failure)
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        self._process.kill()


def _answer(connection: Connection, make: Callable[[], Callable[..., Any]]) -> None:
    try:
        called = make()
        while True:
            connection.send((called(*connection.recv()), None))
    except EOFError:  # the other side has seen enough
        return
    except Exception as error:
        connection.send((None, f"{type(error).__name__}: {error}"))
