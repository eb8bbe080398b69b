"""What callers entrust to us is nowhere to be read: not in a log, a span, a metric or an error, however a call ends."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from encryption.v1.encryption_pb2 import (
    DecryptStreamResponse,
    EncryptRequest,
    EncryptStreamRequest,
    EncryptStreamResponse,
    EncryptStreamStart,
)
from encryption.v1.encryption_pb2_grpc import (
    EncryptionServiceServicer,
    EncryptionServiceStub,
    add_EncryptionServiceServicer_to_server,
)
from servicekit.call import Call
from servicekit.endpoint import Endpoint, Message, Middleware
from servicekit.errors import Code, Error, code_of
from servicekit.method import Kind
from servicekit.metrics.prometheus import PrometheusMetrics
from servicekit.middleware import (
    ApiKeyAuth,
    BasicAuth,
    Credentials,
    JwtAuth,
    LoadShedding,
    RateLimit,
    Retry,
    Validation,
    hash_key,
    hash_password,
    standard,
    standard_client,
)
from servicekit.telemetry import Telemetry
from servicekit.testing import pair
from servicekit.testing.pair import Over
from servicekit.transport.call_error import CallError
from servicekit.transport.channel import Channel
from tests.transport.clients import Untyped, both, every_kind

from .echo import BODY, Reached, call
from .tokens import AUDIENCE, ISSUER, bearer, jwks, token

PASSWORD, KEY = "canary-password-77", "canary-key-" + "9" * 30
TOKEN = token()
NOTE = "canary-note-41ab"
ENTRIES: dict[str, tuple[str, str]] = {
    "jwt": bearer(TOKEN),
    "basic": ("authorization", "Basic " + base64.b64encode(f"alice:{PASSWORD}".encode()).decode()),
    "api key": ("x-api-key", KEY),
}
SECRETS = [
    BODY,
    NOTE,
    PASSWORD,
    *(entry.removeprefix("Bearer ").removeprefix("Basic ") for _, entry in ENTRIES.values()),
]
SECRETS += TOKEN.split(".")  # neither the claims nor the signature alone


def authentication(name: str) -> Middleware:
    match name:
        case "jwt":
            return JwtAuth(jwks(), issuer=ISSUER, audience=AUDIENCE)
        case "basic":
            return BasicAuth({"alice": hash_password(PASSWORD, cost=10, parallel=1)})
    return ApiKeyAuth({"batch": hash_key(KEY)})


@dataclass
class Seen:
    """A telemetry of everything at its most talkative, and all that left the process by it."""

    lines: io.BytesIO = field(default_factory=io.BytesIO)
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    more: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.metrics = PrometheusMetrics(CollectorRegistry())
        self.telemetry = Telemetry(
            log="json", level="debug", stream=self.lines, traces=provider, metrics=self.metrics, old_names=True
        )

    def note(self, error: BaseException) -> None:
        """Keep all that can be printed of an error."""
        self.more += [repr(error), str(error)]
        if isinstance(error, CallError):
            self.more += [repr(error.error), repr(error.trailing_metadata()), str(error.debug_error_string())]
            self.more += [str(error.details()), repr(vars(error))]

    @property
    def texts(self) -> dict[str, str]:
        page, _ = self.metrics.render()
        return {
            "log": self.lines.getvalue().decode(),
            "spans": "\n".join(span.to_json() for span in self.spans.get_finished_spans()),
            "metrics": page.decode(),
            "errors": "\n".join(self.more),
        }

    def shows(self, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
        """Return where each of the secrets is to be read."""
        texts = {**self.texts, "logging": caplog.text}
        return [(where, secret) for where, text in texts.items() for secret in SECRETS if secret in text]


class Service(Reached):
    """Reads what it is sent; then serves, fails on purpose, or fails as nobody meant it."""

    def __init__(self, outcome: str) -> None:
        super().__init__()
        self.outcome = outcome
        self.begun = asyncio.Event()

    async def link(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """End as wanted, once the servicer has run."""
        assert call.metadata.get("x-note") == NOTE
        response = await next(request, call)
        match self.outcome:
            case "fails":
                raise Error(Code.FAILED_PRECONDITION, "not now", reason="NOT_NOW")
            case "breaks":
                raise ZeroDivisionError
            case "lasts":
                self.begun.set()
                await asyncio.get_running_loop().create_future()
        return response


ENDS = {
    "served": Code.OK,
    "fails": Code.FAILED_PRECONDITION,
    "breaks": Code.INTERNAL,
    "limited": Code.RESOURCE_EXHAUSTED,
    "refused": Code.UNAUTHENTICATED,
    "lasts": Code.CANCELLED,
}


@pytest.mark.parametrize("outcome", list(ENDS))
@pytest.mark.parametrize("name", list(ENTRIES))
@every_kind
@both
async def test_nothing_of_it_is_seen(
    kind: Kind, name: str, outcome: str, over: Over, caplog: pytest.LogCaptureFixture
) -> None:
    """Credentials, bodies and metadata of calls that end well or badly are 0 times in what anybody can read."""
    caplog.set_level(logging.DEBUG, logger="servicekit")
    seen, service = Seen(), Service(outcome)
    links = [
        *(link for link in standard(seen.telemetry) if not isinstance(link, LoadShedding)),
        LoadShedding(lag=None),
        RateLimit(per_second=1000, burst=1000),
        authentication(name),
        RateLimit(per_second=0.001, burst=1, key="principal"),
        Validation(),
        service.link,
    ]
    header, entry = ENTRIES[name]
    ended: BaseException | None = None
    shown = entry + ("x" if outcome == "refused" else "")
    once = [Retry(attempts=1) if isinstance(link, Retry) else link for link in standard_client(seen.telemetry)]
    client = [*once, Credentials(lambda: shown, header=header)]
    async with pair(service.register, over=over, middleware=links, client=client, telemetry=seen.telemetry) as ends:
        for _ in range(2 if outcome == "limited" else 1):
            task = asyncio.ensure_future(call(ends, kind, [("x-note", NOTE)]))
            if outcome == "lasts":
                await service.begun.wait()
                task.cancel()
            (ended,) = await asyncio.gather(task, return_exceptions=True)
        if ended is not None:
            seen.note(ended)
        seen.more += [repr(ends.server), repr(ends.channel), *map(repr, links)]
    assert code_of(ended.error if isinstance(ended, CallError) else ended) is ENDS[outcome]
    assert len(service.reached) == (0 if outcome == "refused" else 1)
    assert all(seen.texts.values()) or outcome == "served"  # which has no error
    assert seen.shows(caplog) == []


class Reader(EncryptionServiceServicer):
    """Reads what it is sent, and does nothing."""

    async def Encrypt(self, request: Untyped, context: Untyped) -> Untyped:
        raise NotImplementedError

    async def Decrypt(self, request: Untyped, context: Untyped) -> Untyped:
        raise NotImplementedError

    async def EncryptStream(self, request_iterator: Untyped, context: Untyped) -> Untyped:
        async for _ in request_iterator:
            yield EncryptStreamResponse()

    async def DecryptStream(self, request_iterator: Untyped, context: Untyped) -> Untyped:
        async for _ in request_iterator:
            yield DecryptStreamResponse()


async def encrypt(channel: Channel, *, streaming: bool) -> None:
    """Make a call whose ``context`` is too long, with other fields that are good."""
    stub, long = EncryptionServiceStub(channel), NOTE.encode() * 10_000
    if not streaming:
        await stub.Encrypt(EncryptRequest(key=KEY, text=BODY, context=long))
        return
    start = EncryptStreamStart(key=KEY, context=long)
    async for _ in stub.EncryptStream(iter([EncryptStreamRequest(start=start)])):
        pass


@both
@pytest.mark.parametrize("streaming", [False, True])
async def test_nothing_of_what_breaks_a_rule(streaming: bool, over: Over, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001 - a test's parameter
    """A key and a text beside a field that is too long are in none of it, nor is the field."""
    caplog.set_level(logging.DEBUG, logger="servicekit")
    seen = Seen()

    links, client = [*standard(seen.telemetry), Validation()], standard_client(seen.telemetry)
    async with pair(
        lambda server: add_EncryptionServiceServicer_to_server(Reader(), server),
        over=over,
        middleware=links,
        client=client,
        telemetry=seen.telemetry,
    ) as ends:
        with pytest.raises(CallError) as caught:
            await encrypt(ends.channel, streaming=streaming)
        seen.note(caught.value)
    assert caught.value.error.code is Code.INVALID_ARGUMENT
    assert all(seen.texts.values())
    assert seen.shows(caplog) == []


async def test_what_is_shown_would_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    """Each of the places is looked at: else the rest of this would prove nothing."""
    seen = Seen()
    assert seen.telemetry.tracer
    seen.telemetry.logger.info("told", note=NOTE)
    with seen.telemetry.tracer.start_as_current_span("told") as span:
        span.set_attribute("note", NOTE)
    seen.metrics.counter("told", "Told.", labels=["note"]).labels(NOTE).add(1)
    seen.note(Error(Code.INTERNAL, NOTE))
    logging.getLogger("servicekit").warning(NOTE)
    assert seen.shows(caplog) == [(where, NOTE) for where in ("log", "spans", "metrics", "errors", "logging")]
