"""Who calls, by name and password: HTTP's Basic scheme (RFC 7617) in gRPC's metadata."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy import checked
from servicekit.principal import BUSY, Principal, authenticate, authorization, invalid, roles_of

_LINK: Final = "basic_auth"
_LONGEST: Final = 4096  # of the whole entry: more is no password
_HASH: Final = re.compile(r"scrypt\$(\d{1,2})\$(\d{1,2})\$(\d{1,2})\$([0-9a-f]{32})\$([0-9a-f]{64})")
_RETRY_AFTER: Final = 1.0


class BasicAuth:
    """Lets a call pass if its ``authorization`` is one ``Basic`` entry with the name and password of one of ``users``.

    ``users`` is name -> hash, made by ``hash_password`` (scrypt): a password itself is never a setting. The ``Principal``
    (scheme "basic") has the user's name, and the ``roles`` that the setting gives to it.
    Refused: UNAUTHENTICATED, with reason MISSING_CREDENTIALS or INVALID_CREDENTIALS; an unknown name takes as long as a
    wrong password, and is answered in the same words.

    Hashing takes some 0.2 s on purpose, so it is done in ``threads`` (2) threads, once for callers that come at once with
    the same password; past a ``queue`` (32) of those who wait the answer is RESOURCE_EXHAUSTED, to come back in a second.
    A password that was right is not hashed again for ``remember`` (300 s) of the call's clock (0: always is); what is
    remembered, of ``users`` at most, is a MAC of it under a key that never leaves the process.

    Default: the server's own methods (health, reflection) pass; ``auxiliary=True`` asks them too. Decisions of
    "basic_auth": those of ``authenticate``.
    """

    checks_callers: ClassVar[bool] = True

    __slots__ = (
        "_auxiliary",
        "_known",
        "_nobody",
        "_queue",
        "_roles",
        "_secret",
        "_threads",
        "_users",
        "_waiting",
        "_work",
    )

    def __init__(  # noqa: PLR0913 - keywords with defaults
        self,
        users: Mapping[str, str],
        *,
        roles: Mapping[str, Iterable[str]] | None = None,
        remember: float = 300.0,
        threads: int = 2,
        queue: int = 32,
        auxiliary: bool = False,
    ) -> None:
        """Raise ValueError or TypeError for a setting that cannot work, never showing a hash."""
        if not checked.kind("users", users, Mapping, "mapping from names to hashes", secret=True):
            msg = "users={}: nobody could call"
            raise ValueError(msg)
        checked.seconds_or_zero("remember", remember)
        checked.count("threads", threads)
        checked.count("queue", queue, least=0)
        self._auxiliary = checked.flag("auxiliary", auxiliary)
        self._users = {name: _Hash.parse(name, text) for name, text in users.items()}
        self._roles = roles_of(roles, users)
        self._nobody = max(self._users.values(), key=lambda known: known.work).unknown()
        self._secret = os.urandom(32)
        self._known = _Remembered(most=4 * len(users), seconds=remember)
        self._work: dict[bytes, _Work] = {}
        # Its own: a thread goes on when its call was cancelled, and the loop's default pool is everybody's.
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=_LINK)
        self._queue = queue + threads
        self._waiting = 0

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Check name and password, then run the call."""
        if self._auxiliary or not call.method.auxiliary:
            await authenticate(call, _LINK, self._check)
        return await next(request, call)

    async def _check(self, call: Call) -> Principal:
        name, password = _parsed(authorization(call, "basic"))
        mark = hmac.digest(self._secret, f"{len(name)}:{name}:".encode() + password, "sha256")
        now = call.clock.time()
        if not self._known.has(mark, now):
            if not await self._right(mark, name, password):
                raise invalid()
            self._known.add(mark, call.clock.time())
        return Principal(name=name, scheme="basic", roles=self._roles.get(name, frozenset()))

    async def _right(self, mark: bytes, name: str, password: bytes) -> bool:
        """Return whether it is the right password; the work is shared by all who wait for the same answer."""
        while (work := self._work.get(mark)) is not None:
            await work.over.wait()
            if work.right is not None:  # else whoever did it was cancelled
                return work.right
        if self._waiting >= self._queue:
            raise Error(
                Code.RESOURCE_EXHAUSTED,
                "too many passwords are being checked",
                reason=BUSY,
                retry_after=_RETRY_AFTER,
            )
        self._waiting += 1
        work = self._work[mark] = _Work()
        try:
            known = self._users.get(name)
            loop = asyncio.get_running_loop()
            fits = await loop.run_in_executor(self._threads, (known or self._nobody).fits, password)
            work.right = fits and known is not None
        finally:
            self._waiting -= 1
            del self._work[mark]
            work.over.set()
        return work.right

    def __repr__(self) -> str:
        """Return how many users there are."""
        return f"BasicAuth({len(self._users)} users)"


def hash_password(password: str, *, cost: int = 14, parallel: int = 5) -> str:
    """Return what ``BasicAuth`` is given for a user with this password: salted, and slow to try out.

    The work is scrypt's (RFC 7914) with N = 2**cost, r = 8 and p = parallel; the default is OWASP's for 16 MiB. Raises
    ValueError for an empty password, and for a cost that is none (10 to 20).
    """
    checked.kind("password", password, str, "text", secret=True)
    checked.count("cost", cost)
    checked.count("parallel", parallel)
    if not password or not 10 <= cost <= 20 or not 1 <= parallel <= 16:  # noqa: PLR2004 - the limits say it
        msg = f"a password is not empty, cost={cost!r} is 10 to 20 and parallel={parallel!r} 1 to 16"
        raise ValueError(msg)
    made = _Hash(cost=cost, block=8, parallel=parallel, salt=os.urandom(16), digest=b"")
    return f"scrypt${cost}$8${parallel}${made.salt.hex()}${made.of(password.encode()).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hash:
    cost: int
    block: int
    parallel: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        found = _HASH.fullmatch(text) if isinstance(text, str) else None
        if not name or not isinstance(name, str) or ":" in name or found is None:
            who = "a hash" if isinstance(name, str) and _HASH.fullmatch(name) else repr(name)
            msg = f"users[{who}]: give a name without ':' and what hash_password() returned, never the password itself"
            raise ValueError(msg)
        cost, block, parallel = (int(number) for number in found.groups()[:3])
        if not 10 <= cost <= 20 or not 1 <= block <= 16 or not 1 <= parallel <= 16:  # noqa: PLR2004 - as in hash_password
            msg = f"users[{name!r}]: a hash with N=2**{cost}, r={block}, p={parallel} is too cheap or too dear to check"
            raise ValueError(msg)
        salt, digest = (bytes.fromhex(part) for part in found.groups()[3:])
        return cls(cost=cost, block=block, parallel=parallel, salt=salt, digest=digest)

    @property
    def work(self) -> int:
        return (1 << self.cost) * self.block * self.parallel

    def unknown(self) -> Self:
        """Return a hash that takes as long as this one, and that no password has."""
        return type(self)(
            cost=self.cost, block=self.block, parallel=self.parallel, salt=os.urandom(16), digest=os.urandom(32)
        )

    def of(self, password: bytes) -> bytes:
        memory = 128 * self.block * ((1 << self.cost) + self.parallel + 2)
        return hashlib.scrypt(
            password, salt=self.salt, n=1 << self.cost, r=self.block, p=self.parallel, maxmem=2 * memory, dklen=32
        )

    def fits(self, password: bytes) -> bool:
        return hmac.compare_digest(self.of(password), self.digest)


@dataclass(slots=True)
class _Work:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    right: bool | None = None


class _Remembered:
    """Marks of passwords that were right, until they are too old or too many."""

    __slots__ = ("_marks", "_most", "_seconds")

    def __init__(self, *, most: int, seconds: float) -> None:
        self._marks: OrderedDict[bytes, float] = OrderedDict()
        self._most = most
        self._seconds = seconds

    def has(self, mark: bytes, now: float) -> bool:
        since = self._marks.get(mark)
        return since is not None and now - since < self._seconds

    def add(self, mark: bytes, now: float) -> None:
        self._marks[mark] = now
        self._marks.move_to_end(mark)
        if len(self._marks) > self._most:
            self._marks.popitem(last=False)


def _parsed(credentials: str) -> tuple[str, bytes]:
    if len(credentials) > _LONGEST:
        raise invalid()
    try:
        name, colon, password = base64.b64decode(credentials, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        name = colon = password = ""
    if not name or not colon or not password:
        raise invalid()
    return name, password.encode()
