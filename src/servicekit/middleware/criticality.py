"""On the way out, how critical a call is: as critical as the one that it is made for."""

from __future__ import annotations

from dataclasses import dataclass

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.policy.criticality import HEADER, SHARES, STATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Criticality:
    """Sends the metadata ``x-criticality`` along with a call, for the other side's load shedding.

    Default: the word that the caller has put into the metadata; else that of the call being served, if ``LoadShedding``
    has believed one; else ``default``, and when that is None nothing: the call is then "critical" like any other. For
    every kind, on the client; on the server it does nothing.
    """

    default: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a word that is none of the four."""
        if self.default is not None and not (isinstance(self.default, str) and self.default in SHARES):
            msg = f"default={self.default!r} is none of {', '.join(SHARES)}"
            raise ValueError(msg)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Say how critical the call is, then run it."""
        if call.side is Side.CLIENT and HEADER not in call.metadata:
            word = None if call.parent is None else call.parent.state.get(STATE)
            word = self.default if word is None else word
            if isinstance(word, str):
                call.metadata.set(HEADER, word)
        return await next(request, call)
