import asyncio
import base64
import io
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import AsyncGeneratorType
from typing import TypeAlias

import pytest
from hypothesis import given as whatever
from hypothesis import settings
from hypothesis import strategies as st

from encryption.envelope import armor, dearmor
from encryption.errors import EncryptionError
from encryption.keys import KeyId, Passphrase, Secret
from encryption.service import EncryptionService
from encryption.servicer import ERRORS, EncryptionServicer
from encryption.stream import CHUNK_MAX
from encryption.v1.encryption_pb2 import (
    DecryptRequest,
    DecryptStreamRequest,
    DecryptStreamStart,
    EncryptRequest,
    EncryptStreamRequest,
    EncryptStreamStart,
)
from encryption.v1.encryption_pb2_grpc import EncryptionServiceStub, add_EncryptionServiceServicer_to_server
from servicekit import CallError, Code, Middleware, Telemetry, standard, standard_client
from servicekit.testing.pair import Over, Pair, pair
from tests.encryption.samples import (
    KEY_ID,
    KEYRING,
    PASSPHRASE,
    flipped,
    given,
    joined,
    recut,
    taken_apart,
    without_a_free_thread,
)

KIB = 1024
MIB = 1024 * KIB
CONTEXT = b"letters/1"
OVER: tuple[Over, ...] = ("memory", "socket", "native")


class Caller:
    """The generated stub, with what the tests say again and again."""

    def __init__(self, ends: Pair) -> None:
        self.ends = ends
        self.stub = EncryptionServiceStub(ends.channel)

    async def encrypt(self, secret: Secret, text: str, context: bytes = CONTEXT) -> str:
        key, key_id = _fields(secret)
        request = EncryptRequest(key=key, key_id=key_id, text=text, context=context)
        return (await self.stub.Encrypt(request)).envelope

    async def decrypt(self, secret: Secret, envelope: str, context: bytes = CONTEXT) -> str:
        key, key_id = _fields(secret)
        request = DecryptRequest(key=key, key_id=key_id, envelope=envelope, context=context)
        return (await self.stub.Decrypt(request)).text

    async def encrypt_stream(
        self, secret: Secret, chunks: AsyncIterable[bytes], context: bytes = CONTEXT
    ) -> AsyncGenerator[bytes, None]:
        key, key_id = _fields(secret)

        async def requests() -> AsyncIterator[EncryptStreamRequest]:
            yield EncryptStreamRequest(start=EncryptStreamStart(key=key, key_id=key_id, context=context))
            async for chunk in chunks:
                yield EncryptStreamRequest(chunk=chunk)

        async for response in self.stub.EncryptStream(requests()):
            yield response.chunk

    async def decrypt_stream(
        self, secret: Secret, chunks: AsyncIterable[bytes], context: bytes = CONTEXT
    ) -> AsyncGenerator[bytes, None]:
        key, key_id = _fields(secret)

        async def requests() -> AsyncIterator[DecryptStreamRequest]:
            yield DecryptStreamRequest(start=DecryptStreamStart(key=key, key_id=key_id, context=context))
            async for chunk in chunks:
                yield DecryptStreamRequest(chunk=chunk)

        async for response in self.stub.DecryptStream(requests()):
            yield response.chunk


def _fields(secret: Secret) -> tuple[str | None, str | None]:
    return (secret.value, None) if isinstance(secret, Passphrase) else (None, secret.value)


@asynccontextmanager
async def calling(
    service: EncryptionService,
    over: Over = "memory",
    telemetry: Telemetry | None = None,
    client: Sequence[Middleware] | None = None,
) -> AsyncGenerator[Caller, None]:
    """Serve as main does, and call it; with the standard chain of a client, or through ``client``."""
    telemetry = telemetry or Telemetry(log=None)
    async with pair(
        lambda server: add_EncryptionServiceServicer_to_server(EncryptionServicer(service), server),
        over=over,
        middleware=standard(telemetry),
        client=standard_client(telemetry) if client is None else client,
        errors=ERRORS,
    ) as ends:
        yield Caller(ends)


@pytest.fixture
async def caller(service: EncryptionService) -> AsyncGenerator[Caller, None]:
    async with calling(service) as caller:
        yield caller


async def refusal(work: Awaitable[object]) -> CallError:
    with pytest.raises(CallError) as caught:
        await work
    return caught.value


def status(error: CallError) -> tuple[object, ...]:
    """All that a refused client gets, but for the ids that name this one request."""
    trailers = [(key, value) for key, value in error.trailing_metadata() if key != "x-request-id"]
    return error.code(), error.details(), trailers, list(error.initial_metadata())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what it waits for sets no event
            await asyncio.sleep(0.001)


def tasks() -> set[asyncio.Task[object]]:
    """All tasks but the one in which grpcio waits for the next call: each call makes it another one."""
    return {task for task in asyncio.all_tasks() if "_request_call" not in repr(task)}


# There and back


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("secret", [KEY_ID, PASSPHRASE], ids=["key id", "passphrase"])
async def test_a_text_comes_back(service: EncryptionService, over: Over, secret: Secret) -> None:
    """Through both unary methods, over both wires, with both kinds of secret."""
    async with calling(service, over) as caller:
        for text in ("", "a\x00b é 世 \U0001f510"):
            assert await caller.decrypt(secret, await caller.encrypt(secret, text)) == text


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("secret", [KEY_ID, PASSPHRASE], ids=["key id", "passphrase"])
async def test_a_stream_comes_back(service: EncryptionService, over: Over, secret: Secret) -> None:
    """Through both streaming methods, over both wires, with both kinds of secret; each response is a chunk to send on."""
    async with calling(service, over) as caller:
        for chunks in ((), (b"",), (b"a", b"", bytes(CHUNK_MAX), b"z" * 1000)):
            sealed = [chunk async for chunk in caller.encrypt_stream(secret, given(*chunks))]
            assert max(map(len, sealed)) <= CHUNK_MAX
            assert await joined(caller.decrypt_stream(secret, given(*sealed))) == b"".join(chunks)


@settings(max_examples=15, deadline=None, derandomize=True)
@whatever(sizes=st.lists(st.integers(0, CHUNK_MAX), max_size=4), cut=st.integers(KIB, CHUNK_MAX))
async def test_a_stream_comes_back_however_it_was_cut(sizes: list[int], cut: int) -> None:
    """The chunks of the plaintext and those of the sealed stream may have any size up to 64 KiB."""
    plain = [bytes([number]) * size for number, size in enumerate(sizes)]
    async with EncryptionService(KEYRING) as service, calling(service) as caller:
        sealed = await joined(caller.encrypt_stream(KEY_ID, given(*plain)))
        assert await joined(caller.decrypt_stream(KEY_ID, recut(sealed, cut))) == b"".join(plain)


@pytest.mark.parametrize("over", OVER)
async def test_each_chunk_is_answered_before_the_next_is_sent(service: EncryptionService, over: Over) -> None:
    """A stream is a conversation: nothing waits for its end, in either direction."""
    async with calling(service, over) as caller:
        encrypting, decrypting = caller.stub.EncryptStream(), caller.stub.DecryptStream()
        await encrypting.write(EncryptStreamRequest(start=EncryptStreamStart(key_id="new")))
        await decrypting.write(DecryptStreamRequest(start=DecryptStreamStart(key_id="new")))
        async with asyncio.timeout(5):
            header = await anext(aiter(encrypting))
            await decrypting.write(DecryptStreamRequest(chunk=header.chunk))
            for plain in (b"one", b"two"):
                await encrypting.write(EncryptStreamRequest(chunk=plain))
                segment = await anext(aiter(encrypting))
                await decrypting.write(DecryptStreamRequest(chunk=segment.chunk))
                assert (await anext(aiter(decrypting))).chunk == plain


async def test_the_unary_and_the_streaming_form_are_the_business_own(
    service: EncryptionService, caller: Caller
) -> None:
    """What was made over the wire opens without one, and the other way round: the servicer adds and takes nothing."""
    assert await service.decrypt(KEY_ID, await caller.encrypt(KEY_ID, "text"), CONTEXT) == "text"
    assert await caller.decrypt(KEY_ID, await service.encrypt(KEY_ID, "text", CONTEXT)) == "text"
    sealed = await joined(caller.encrypt_stream(KEY_ID, given(b"chunk")))
    assert await joined(service.decrypt_stream(KEY_ID, given(sealed), CONTEXT)) == b"chunk"


async def test_a_passphrase_may_be_composed_differently_at_each_end(caller: Caller) -> None:
    """Normalised (NFC) by the service, whatever the client's keyboard made."""
    envelope = await caller.encrypt(Passphrase("Äpfel und Öl"), "text")
    assert await caller.decrypt(Passphrase("A\u0308pfel und O\u0308l"), envelope) == "text"


@pytest.mark.parametrize("over", OVER)
async def test_the_largest_text_and_the_largest_context_pass(service: EncryptionService, over: Over) -> None:
    """No limit of the wire's own is in the way of 1 MiB of text."""
    async with calling(service, over) as caller:
        text, context = "é" * (MIB // 2), bytes(64 * KIB)
        assert await caller.decrypt(KEY_ID, await caller.encrypt(KEY_ID, text, context), context) == text


# Refused


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (EncryptRequest(text="text"), "secret is missing: key or key_id is required"),
        (EncryptRequest(key="", text="text"), "key is empty"),
        (EncryptRequest(key="1234567"), "key is not 8 to 1024 bytes of UTF-8 (as NFC)"),
        (EncryptRequest(key="x" * 1025), "key is not 8 to 1024 bytes of UTF-8 (as NFC)"),
        (EncryptRequest(key_id="new", text="x" * (MIB + 1)), "text is longer than 1048576 bytes of UTF-8"),
        (EncryptRequest(key_id="new", context=bytes(64 * KIB + 1)), "context is longer than 65536 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_breaks_a_rule_is_refused_by_name(caller: Caller, request_: EncryptRequest, details: str) -> None:
    """INVALID_ARGUMENT, with the field and the rule, and never the value."""
    error = await refusal(caller.stub.Encrypt(request_))
    assert (error.error.code, error.error.message) == (Code.INVALID_ARGUMENT, details)


@pytest.mark.parametrize("key_id", ["", "old", "nobody's"])
async def test_a_key_that_does_not_encrypt_here_is_not_found(caller: Caller, key_id: str) -> None:
    """One that is unknown and one that was rotated out, in the same words."""
    for work in (caller.encrypt(KeyId(key_id), "text"), joined(caller.encrypt_stream(KeyId(key_id), given(b"text")))):
        error = await refusal(work)
        assert error.error.code is Code.NOT_FOUND
        assert error.error.message == "key_id does not encrypt here: it is unknown or was rotated out"


async def test_decryption_asks_for_a_secret_too(caller: Caller) -> None:
    """A request without one is malformed, and says nothing about any envelope."""
    error = await refusal(caller.stub.Decrypt(DecryptRequest(envelope="enc_")))
    assert error.error.code is Code.INVALID_ARGUMENT
    assert error.error.message == "secret is missing: key or key_id is required"


NO_START = "start is missing: it is the first message of a stream"
AGAIN = "start came again: it is the first message of a stream, and no other"
NO_PART = "part is missing: after its start, each message of a stream has a chunk"
NO_SECRET = "secret is missing: key or key_id is required"
ENCRYPT_START = EncryptStreamRequest(start=EncryptStreamStart(key_id="new"))
DECRYPT_START = DecryptStreamRequest(start=DecryptStreamStart(key_id="new"))


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize(
    ("requests", "details"),
    [
        ([], NO_START),
        ([EncryptStreamRequest()], NO_START),
        ([EncryptStreamRequest(chunk=b"x"), ENCRYPT_START], NO_START),
        ([EncryptStreamRequest(start=EncryptStreamStart())], NO_SECRET),
        ([ENCRYPT_START, ENCRYPT_START], AGAIN),
        ([ENCRYPT_START, EncryptStreamRequest(chunk=b"x"), ENCRYPT_START], AGAIN),
        ([ENCRYPT_START, EncryptStreamRequest()], NO_PART),
        ([ENCRYPT_START, EncryptStreamRequest(chunk=bytes(CHUNK_MAX + 1))], "chunk is longer than 65536 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
async def test_a_stream_to_encrypt_that_is_no_stream_is_refused(
    service: EncryptionService, over: Over, requests: list[EncryptStreamRequest], details: str
) -> None:
    """INVALID_ARGUMENT, naming what is missing or out of place."""
    async with calling(service, over) as caller:
        error = await refusal(_drained(caller.stub.EncryptStream(iter(requests))))
        assert (error.error.code, error.error.message) == (Code.INVALID_ARGUMENT, details)


@pytest.mark.parametrize(
    ("requests", "details"),
    [
        ([], NO_START),
        ([DecryptStreamRequest()], NO_START),
        ([DecryptStreamRequest(chunk=b"x"), DECRYPT_START], NO_START),
        ([DecryptStreamRequest(start=DecryptStreamStart())], NO_SECRET),
        ([DECRYPT_START, DECRYPT_START], AGAIN),
        ([DECRYPT_START, DecryptStreamRequest(chunk=b"x"), DECRYPT_START], AGAIN),
        ([DECRYPT_START, DecryptStreamRequest()], NO_PART),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
async def test_a_stream_to_decrypt_that_is_no_stream_is_refused(
    caller: Caller, requests: list[DecryptStreamRequest], details: str
) -> None:
    """As one to encrypt: it is the order of messages that is wrong, not what is in them."""
    error = await refusal(_drained(caller.stub.DecryptStream(iter(requests))))
    assert (error.error.code, error.error.message) == (Code.INVALID_ARGUMENT, details)


async def test_all_refused_decryptions_are_the_same_to_the_byte(service: EncryptionService) -> None:
    """Whatever was wrong, unary or streaming: the same code, the same details, the same metadata."""
    async with calling(service) as caller:
        by_id, by_passphrase = await caller.encrypt(KEY_ID, "text"), await caller.encrypt(PASSPHRASE, "text")
        stream = await joined(caller.encrypt_stream(KEY_ID, given(b"one", b"two")))
        stretched = await joined(caller.encrypt_stream(PASSPHRASE, given(b"one")))
        header, segments = taken_apart(stream)
        wrong: list[Awaitable[object]] = [
            *(caller.decrypt(secret, by_id) for secret in OTHERS),
            *(caller.decrypt(secret, by_passphrase) for secret in (*OTHERS, KEY_ID)),
            caller.decrypt(KEY_ID, by_id, b"letters/2"),
            caller.decrypt(KEY_ID, by_id, bytes(64 * KIB + 1)),
            *(caller.decrypt(KEY_ID, bad) for bad in ("", "enc_", "?", by_id[:-1], by_id + "A", "A" * (2 * MIB))),
            *(caller.decrypt(KEY_ID, armor(flipped(dearmor(by_id), bit))) for bit in FLIPPED),
            caller.decrypt(KEY_ID, armor(stream)),
            *(joined(caller.decrypt_stream(secret, given(stream))) for secret in OTHERS),
            *(joined(caller.decrypt_stream(secret, given(stretched))) for secret in (*OTHERS, KEY_ID)),
            joined(caller.decrypt_stream(KEY_ID, given(stream), b"letters/2")),
            joined(caller.decrypt_stream(KEY_ID, given(stream), bytes(64 * KIB + 1))),
            *(joined(caller.decrypt_stream(KEY_ID, given(stream[:length]))) for length in (0, 1, 71, 72, 80)),
            joined(caller.decrypt_stream(KEY_ID, given())),
            joined(caller.decrypt_stream(KEY_ID, given(stream + b"\x00"))),
            joined(caller.decrypt_stream(KEY_ID, given(bytes(CHUNK_MAX + 1)))),
            joined(caller.decrypt_stream(KEY_ID, given(header, segments[1], segments[0], segments[2]))),
            joined(caller.decrypt_stream(KEY_ID, given(header, *segments[:-1]))),
            joined(caller.decrypt_stream(KEY_ID, given(dearmor(by_id)))),
        ]
        answers = [status(await refusal(work)) for work in wrong]
    assert [answer for answer in answers if answer != answers[0]] == []
    code, details, trailers, headers = answers[0]
    assert (str(code), details) == ("StatusCode.INVALID_ARGUMENT", "decryption failed")
    assert (trailers, headers) == ([], [])


# One of each field: magic, version, suite, kdf, salt, nonce, commitment, ciphertext, tag.
FLIPPED = (0, 30, 34, 44, 100, 230, 330, 580, 730)
OTHERS: tuple[Secret, ...] = (
    Passphrase(""),
    Passphrase("short"),
    Passphrase("x" * 1025),
    Passphrase("another passphrase"),
    KeyId(""),
    KeyId("old"),
    KeyId("nobody's"),
)


@pytest.mark.parametrize("over", OVER)
async def test_busy_says_when_to_come_back(over: Over) -> None:
    """RESOURCE_EXHAUSTED from all four methods, in the words that gRPC clients obey; key ids are served on."""
    async with (
        EncryptionService(KEYRING, kdf_threads=1, kdf_queue=0) as service,
        calling(service, over, client=[]) as caller,  # none that would come back when told to
    ):
        envelope = await caller.encrypt(PASSPHRASE, "text")
        sealed = await joined(caller.encrypt_stream(PASSPHRASE, given(b"text")))
        async with without_a_free_thread(service):
            for work in (
                caller.encrypt(PASSPHRASE, "text"),
                caller.decrypt(PASSPHRASE, envelope),
                joined(caller.encrypt_stream(PASSPHRASE, given(b"text"))),
                joined(caller.decrypt_stream(PASSPHRASE, given(sealed))),
            ):
                error = await refusal(work)
                assert error.error.code is Code.RESOURCE_EXHAUSTED
                assert (error.reason, error.retry_after) == ("BUSY", 0.5)
                assert ("grpc-retry-pushback-ms", "500") in [tuple(pair) for pair in error.trailing_metadata()]
            assert await caller.decrypt(KEY_ID, await caller.encrypt(KEY_ID, "text")) == "text"


# Left open


@contextmanager
def open_generators() -> Generator[Callable[[], list[str]], None, None]:
    """Give the names of the reference service's generators that are open; no garbage collector closes one here."""
    made: list[AsyncGeneratorType[object, object]] = []
    outer = sys.get_asyncgen_hooks()

    def begun(generator: AsyncGenerator[object, object]) -> None:
        assert isinstance(generator, AsyncGeneratorType)
        made.append(generator)
        if outer.firstiter is not None:
            outer.firstiter(generator)

    def still_open() -> list[str]:
        frames = [generator.ag_frame for generator in made if generator.ag_frame is not None]
        return [frame.f_code.co_name for frame in frames if frame.f_globals["__name__"].startswith("encryption.")]

    sys.set_asyncgen_hooks(firstiter=begun)
    try:
        yield still_open
    finally:
        sys.set_asyncgen_hooks(*outer)


Cancel: TypeAlias = Callable[[], object]


async def encrypting(caller: Caller, _: bytes) -> Cancel:
    call = caller.stub.EncryptStream()
    await call.write(ENCRYPT_START)
    await anext(aiter(call))
    return call.cancel


async def decrypting(caller: Caller, sealed: bytes) -> Cancel:
    call = caller.stub.DecryptStream()
    await call.write(DECRYPT_START)
    await call.write(DecryptStreamRequest(chunk=sealed[:-1]))
    await anext(aiter(call))
    return call.cancel


async def not_reading(caller: Caller, _: bytes) -> Cancel:
    chunk = EncryptStreamRequest(chunk=bytes(CHUNK_MAX))
    call = caller.stub.EncryptStream(chunk if number else ENCRYPT_START for number in range(1000))
    await anext(aiter(call))
    if caller.ends.over == "memory":
        await caller.ends.clock.advance(0)  # until nobody can go on
    return call.cancel


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize(
    "begin", [encrypting, decrypting, not_reading], ids=["encrypting", "decrypting", "not reading"]
)
async def test_a_cancelled_stream_leaves_nothing(
    service: EncryptionService, over: Over, begin: Callable[[Caller, bytes], Awaitable[Cancel]]
) -> None:
    """No task, no call in flight and no open generator, whether it was waiting for a chunk or for its reader."""
    async with calling(service, over) as caller:
        sealed = await joined(caller.encrypt_stream(KEY_ID, given(b"one"), b""))
        before = tasks()
        with open_generators() as still_open:
            cancel = await begin(caller, sealed)
            await until(lambda: len(still_open()) == 3)
            cancel()
            await until(lambda: caller.ends.server.in_flight == 0 and tasks() <= before)
            assert still_open() == []


# Secrets


async def test_no_secret_is_ever_shown() -> None:
    """Not in a log line of either side, an error, metadata or a repr; the lines themselves are there."""
    log = io.StringIO()
    telemetry = Telemetry(log="json", level="debug", stream=log)
    shown: list[str] = []
    passphrase, text = Passphrase("canary passphrase"), "canary text"
    async with EncryptionService(KEYRING) as service, calling(service, telemetry=telemetry) as caller:
        envelope = await caller.encrypt(passphrase, text)
        assert await caller.decrypt(passphrase, envelope) == text
        sealed = await joined(caller.encrypt_stream(passphrase, given(text.encode())))
        assert await joined(caller.decrypt_stream(passphrase, given(sealed))) == text.encode()
        wrong = Passphrase("canary of another passphrase")
        for work in (
            caller.encrypt(Passphrase("canary"), text),
            caller.encrypt(Passphrase("canary" * 200), text),
            caller.encrypt(KeyId("canary passphrase"), text),
            caller.encrypt(KEY_ID, text * (MIB // 8)),
            caller.decrypt(wrong, envelope),
            caller.decrypt(passphrase, text),
            caller.decrypt(KeyId("canary passphrase"), envelope),
            joined(caller.encrypt_stream(Passphrase("canary"), given(text.encode()))),
            joined(caller.encrypt_stream(KEY_ID, given(text.encode() * CHUNK_MAX))),
            joined(caller.decrypt_stream(wrong, given(sealed))),
            joined(caller.decrypt_stream(passphrase, given(text.encode()))),
        ):
            error = await refusal(work)
            shown += [repr(error), str(error), repr(error.__cause__), *map(repr, status(error)), repr(error.error)]
        shown += [repr(service), repr(EncryptionServicer(service)), repr(caller.ends), repr(caller.ends.server)]
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    rpcs = [line for line in lines if line["event"] == "rpc"]
    assert len(rpcs) == 2 * 15
    assert {line["side"] for line in rpcs} == {"server", "client"}
    keys = [base64.b64encode(key).decode() for key in KEYRING.keys.values()]
    for secret in ("canary", text, *keys, *(repr(key)[2:-1] for key in KEYRING.keys.values())):
        assert secret not in log.getvalue()
        assert secret not in "\n".join(shown)


def test_every_exception_of_the_business_has_a_code() -> None:
    """None of them reaches a client as an internal error."""
    assert set(ERRORS) == set(EncryptionError.__subclasses__())


async def _drained(call: AsyncIterable[object]) -> list[object]:
    return [response async for response in call]
