"""An error that is made often, and mostly when there is no time: described once, made anew at a fifth of the price."""

from __future__ import annotations

from servicekit.errors import Code, Error


class Refusal:
    """Makes Errors that a link raises in the place of a call: nobody was asked, and no work was begun.

    A new one each time: an exception that is raised again and again gathers tracebacks, and keeps what they hold.
    """

    __slots__ = ("_arguments", "_fields")

    def __init__(self, code: Code, message: str, *, reason: str, retry_after: float | None = None) -> None:
        """Take what all of them say; see Error."""
        model = Error(code, message, reason=reason, retry_after=retry_after, refused=True, begun=False)
        self._arguments = model.args
        self._fields = dict(vars(model))

    def error(self, *, retry_after: float | None = None) -> Error:
        """Return one; ``retry_after`` is for this one only."""
        error = Error.__new__(Error, *self._arguments)
        error.__dict__ = self._fields.copy()
        if retry_after is not None:
            error.retry_after = retry_after
        return error
