"""What stands around an endpoint, one file each, and the order in which it does.

The order is a part of what the links promise: each has its place for the reason beside it, and none knows another.

On the server, outermost first:

=================  ====================================================================================================
request id         everything further in can name the request
tracing            all below is inside the span
access log         one line for whatever happens below
metrics            refusals are counted too
recovery           nothing unmapped passes above it: observers see what the client gets
deadline           work that is already late is not begun
load shedding      when there is too much to do, most of it is turned away here, before it costs anything
limits by peer     turning away must be cheaper than what it saves, so before the cryptography of authentication
authentication     who it is
limits by caller   now that there is a name to count under
authorization      whether they may
validation         whether the request makes sense: only for those who may ask
faults             on purpose, as if the service had failed
yours, servicer    with all of the above done
=================  ====================================================================================================

On the client, outermost first:

=================  ====================================================================================================
request id         all attempts are one request
tracing            all below is inside the span
access log         one line for the call, not for its attempts
metrics            the logical call, as the caller sees it
deadline           the total, retries included
retry, hedge       inside the total, outside the pick: another attempt may go elsewhere
attempt tracing    a span for each attempt, in that of the call
throttle           counts attempts: they are what the other side has to bear
balancer           picks the instance; what follows runs for that one
circuit breaker    judges one instance
concurrency limit  what one instance can take
credentials        fresh for each attempt, for the instance that was picked
attempt metrics    what went over the wire
faults             on purpose, as if the wire had failed
=================  ====================================================================================================

Orders that are always a mistake are refused where a chain is made: ``servicekit.order`` has the rules.

There is no recovery on the client: what the caller's own request iterator raises must reach the caller as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from servicekit.endpoint import Middleware
from servicekit.mapping import ErrorMapping, Rule
from servicekit.policy.backoff import Backoff
from servicekit.policy.budget import Budget
from servicekit.policy.checked import kind
from servicekit.principal import Principal, principal_of
from servicekit.telemetry import Telemetry

from .access_log import AccessLog
from .adaptive_throttle import AdaptiveThrottle
from .api_key_auth import ApiKeyAuth, hash_key, new_key
from .authorize import Access, Authorize
from .basic_auth import BasicAuth, hash_password
from .bulkhead import Bulkhead
from .circuit_breaker import CircuitBreaker
from .credentials import Credentials, Token
from .deadline import Deadline
from .faults import Faults
from .hedge import Hedge
from .jwt_auth import JwtAuth
from .load_shedding import LoadShedding
from .metrics import Metrics
from .mtls_identity import MtlsIdentity
from .rate_limit import RateLimit
from .recovery import Recovery
from .request_id import RequestId
from .retry import Retry
from .stream_idle import StreamIdle
from .tracing import AttemptTracing, Tracing
from .validation import Validation

# RedisLimit is public too, but a name for those who have its extra: `import *` must work for all others.
if TYPE_CHECKING:
    from .redis_limit import RedisLimit as RedisLimit
else:  # hidden from type checkers, which would believe in any name of a module that answers for names

    def __getattr__(name: str) -> object:
        """Return RedisLimit. Raises ImportError, naming the extra, where that is not installed."""
        if name != "RedisLimit":
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        from .redis_limit import RedisLimit  # noqa: PLC0415 - an extra: imported by who asks for it

        return RedisLimit


__all__ = [
    "Access",
    "AccessLog",
    "AdaptiveThrottle",
    "ApiKeyAuth",
    "AttemptTracing",
    "Authorize",
    "Backoff",
    "BasicAuth",
    "Budget",
    "Bulkhead",
    "CircuitBreaker",
    "Credentials",
    "Deadline",
    "Faults",
    "Hedge",
    "JwtAuth",
    "LoadShedding",
    "Metrics",
    "MtlsIdentity",
    "Principal",
    "RateLimit",
    "Recovery",
    "RequestId",
    "Retry",
    "StreamIdle",
    "Token",
    "Tracing",
    "Validation",
    "hash_key",
    "hash_password",
    "new_key",
    "principal_of",
    "standard",
    "standard_client",
]


def standard(
    telemetry: Telemetry, *, errors: Mapping[type[Exception], Rule] | ErrorMapping | None = None
) -> list[Middleware]:
    """Return what a server should have around every method, in order; your own links go after it.

    ``errors`` are the rules of recovery. An observer without anything in ``telemetry`` to write to is not there. Load is
    shed with the defaults; a ``LoadShedding`` of your own takes the place of the one here. Raises TypeError for what is no
    Telemetry.
    """
    return [
        RequestId(),
        *_observers(telemetry),
        Recovery(errors),
        Deadline(),
        LoadShedding(),
    ]


def standard_client(telemetry: Telemetry, *, target: str = "") -> list[Middleware]:
    """Return what a client should have around every call, in order; one list for each channel.

    A call gets no deadline that nobody asked for: put a ``Deadline(default=...)`` in the place of the one here. Retry
    has a budget for one target, so a list is not for several. With a tracer each attempt has a span of its own. Raises
    TypeError for what is no Telemetry, and for a target that is no text.
    """
    kind("target", target, str, "text")
    links: list[Middleware] = [
        RequestId(),
        *_observers(telemetry, target),
        Deadline(default=None, cap=None),
        Retry(),
    ]
    if telemetry.tracer is not None:
        links.append(AttemptTracing(telemetry))
    return links


def _observers(telemetry: Telemetry, target: str = "") -> list[Middleware]:
    kind("telemetry", telemetry, Telemetry, "Telemetry")
    links: list[Middleware] = []
    if telemetry.tracer is not None:
        links.append(Tracing(telemetry, target=target))
    if telemetry.log is not None:
        links.append(AccessLog(telemetry))
    if telemetry.metrics is not None:
        links.append(Metrics(telemetry))
    return links
