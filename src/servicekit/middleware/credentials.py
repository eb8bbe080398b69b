"""What a client shows to be let in: had from a factory, kept while it is good, and fresh for each attempt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import By, Code, Error
from servicekit.metadata import check
from servicekit.policy import checked
from servicekit.principal import concealed
from servicekit.refreshed import Ages, Refreshed, Unreachable

_LINK: Final = "credentials"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """Credentials: the whole ``value`` of the metadata, "Bearer …" for one, good for ``expires_in`` seconds.

    None for ``expires_in`` means for ever, that is until the server refuses it.
    """

    value: str = field(repr=False)
    expires_in: float | None = None

    def __post_init__(self) -> None:
        """Raise TypeError for a value that is no text, TypeError or ValueError for one that is not good for any time."""
        checked.kind("value", self.value, str, "text", secret=True)
        if self.expires_in is not None:
            checked.seconds_or_ever("expires_in", self.expires_in)


Factory: TypeAlias = Callable[[], "Token | str | Awaitable[Token | str]"]


class Credentials:
    """Sends what ``factory()`` returns in the metadata ``header`` ("authorization") of every attempt.

    ``factory`` is a coroutine function, or a plain one that does not wait; it returns a ``Token``, or a text that is good
    until it is refused. It runs once for all calls that need it, outside of any of them and for ``timeout`` (10 s) at most;
    again in the background ``early`` (30 s) before the token expires, or at half of its time if that is later; and after
    the server has answered UNAUTHENTICATED; never within ``interval`` (1 s) of the last time. What the caller has put
    into the header is replaced: there are never two.

    ``connect`` refuses to make a channel on which they would travel in plaintext to another machine, unless ``plaintext``
    is true: for where something else encrypts what is sent. On a channel of your own that cannot be seen.

    Without a token that is still good the call is not made: UNAVAILABLE, with the time to come back. Neither the token nor
    what the factory raises is ever shown: of the latter the log gets type and place.

    For clients, inside retry, so that each attempt has a token that is good then. Decisions of "credentials": "sent",
    "rejected" (by the server), "unavailable".
    """

    one_attempt: ClassVar[bool] = True

    __slots__ = ("_header", "_tokens", "plaintext")

    def __init__(  # noqa: PLR0913 - keywords with defaults
        self,
        factory: Factory,
        *,
        header: str = "authorization",
        early: float = 30.0,
        interval: float = 1.0,
        timeout: float = 10.0,
        plaintext: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for a setting that cannot work, naming it."""
        checked.function("factory", factory, "function that returns a Token", secret=True)
        checked.seconds_or_zero("early", early)
        checked.seconds_or_zero("interval", interval)
        checked.seconds("timeout", timeout)
        self._header = checked.header("header", header)
        self.plaintext = checked.flag("plaintext", plaintext)

        def ages(token: Token) -> Ages:
            good = math.inf if token.expires_in is None else token.expires_in
            return Ages(refresh=max(good - early, good / 2), expire=good)

        self._tokens = Refreshed(self._fetching(factory), ages=ages, interval=interval, timeout=timeout)

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Put the token on, then make the attempt."""
        if call.side is Side.SERVER:
            msg = "Credentials is a link for clients: a server checks them, with JwtAuth for one"
            raise RuntimeError(msg)
        token: Token | None = None
        failure: Exception | None = None
        after = 0.0
        try:
            token = await self._tokens.get(call.clock)
        except Unreachable as error:
            failure, after = concealed(error.why or error), error.retry_after
        if token is None:
            call.decide(_LINK, "unavailable")
            raise Error(
                Code.UNAVAILABLE,
                "no credentials to call with",
                reason="NO_CREDENTIALS",
                retry_after=after,
                begun=False,
                refused=True,
            ) from failure
        call.metadata.set(self._header, token.value)
        call.decide(_LINK, "sent")
        try:
            return await next(request, call)
        except Error as error:
            if error.code is Code.UNAUTHENTICATED and error.by is By.PEER:
                call.decide(_LINK, "rejected")
                self._tokens.discard(token, call.clock)
            raise

    def _fetching(self, factory: Factory) -> Callable[[], Awaitable[Token]]:
        header = self._header

        async def fetch() -> Token:
            made = factory()
            given = await made if inspect.isawaitable(made) else made
            token = Token(value=given) if isinstance(given, str) else given
            if not isinstance(token, Token) or not token.value:
                msg = f"the factory returned no Token and no text, but {type(given).__name__}"
                raise TypeError(msg)
            check(header, token.value)
            return token

        return fetch

    def __repr__(self) -> str:
        """Return the header; the factory may hold a secret."""
        return f"Credentials(header={self._header!r}{', plaintext=True' if self.plaintext else ''})"
