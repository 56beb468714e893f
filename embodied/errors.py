"""The one exception for mistakes that a user can mend: it is printed as a sentence, without a stack trace."""


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


def _rebuild(kind: type[UserError], expected: str, found: str, remedy: str) -> UserError:
    return kind(expected=expected, found=found, remedy=remedy)
