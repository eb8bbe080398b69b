"""One name for a request and for all that is done for it: the same on every hop, in every log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.policy.checked import header

# Nothing that a log, a shell, a URL or a header would read as anything but a name.
_WELL_FORMED = re.compile(r"[0-9A-Za-z._:/+=@~-]{1,128}")
_STATE = "request_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestId:
    """Gives each call an id, in ``call.state["request_id"]``.

    Default: always on, in the metadata ``x-request-id`` (``header``). On the server the client's id is taken if it is
    1 to 128 of the characters ``0-9 A-Z a-z . _ : / + = @ ~ -``, else a new one is made; the caller gets it back in
    the trailing metadata. On the client the caller's own is taken, else that of the call being served, else a new one
    is made; it is sent along. A new one is 26 random hex digits: a name, not a secret.
    """

    keeps_messages: ClassVar[bool] = True

    header: str = "x-request-id"

    def __post_init__(self) -> None:
        """Raise ValueError or TypeError for a header that cannot hold the id."""
        header("header", self.header)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Name the call, then run it."""
        given = _checked(call.metadata.get(self.header))
        if call.side is Side.SERVER:
            name = given or _fresh(call)
            call.trailers.add(self.header, name)
        elif given is not None:
            name = given
        else:
            name = (call.parent and _checked(call.parent.state.get(_STATE))) or _fresh(call)
            call.metadata.set(self.header, name)
        call.state[_STATE] = name
        return await next(request, call)


def _checked(name: object) -> str | None:
    return name if isinstance(name, str) and _WELL_FORMED.fullmatch(name) else None


def _fresh(call: Call) -> str:
    # Two draws of 52 bits, all that a float in [0, 1) is good for.
    random = call.clock.random
    return f"{int(random() * 2**52):013x}{int(random() * 2**52):013x}"
