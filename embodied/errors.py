"""The exception for mistakes that a user can mend, printed as a sentence without a stack trace; and that of checks."""

from pathlib import Path


class UserError(Exception):
    """Something outside the program is not as expected.

    The message says what was expected, what was found, and what to do.
    """

    def __init__(self, *, expected: str, found: str, remedy: str) -> None:
        self.expected = expected
        self.found = found
        self.remedy = remedy
        super().__init__(f"expected {expected}; found {found}; {remedy}")

    def __reduce__(self):
        # Keyword-only arguments: without this a worker process could not send the error to its parent.
        return _rebuild, (type(self), self.expected, self.found, self.remedy)


class MisfitError(UserError):
    """Two things that were chosen do not go together, whatever happens: there is no use in trying again."""


class FaultsFound(Exception):
    """A check ran to its end and found faults, which it has printed: the exit status has to tell.

    `summary` is the path of its summary.json.
    """

    def __init__(self, summary: Path) -> None:
        self.summary = summary
        super().__init__(summary)


def first_line(error: Exception | str) -> str:
    """Of another library's message, cut to fit into one of ours; where it says nothing, what kind of error it is."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _rebuild(kind: type[UserError], expected: str, found: str, remedy: str) -> UserError:
    return kind(expected=expected, found=found, remedy=remedy)
