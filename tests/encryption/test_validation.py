"""The rules that stand in the proto, asked before the service is: they say what it would say, and nothing of a decryption."""

from collections.abc import AsyncGenerator, Awaitable

import pytest
from google.rpc.error_details_pb2 import BadRequest

from encryption.service import CONTEXT_MAX, TEXT_MAX, EncryptionService
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
from servicekit import CallError, Code, Telemetry, connect, middleware, standard
from servicekit.testing import pair
from tests.encryption.test_main import running, serving

START = EncryptStreamRequest(start=EncryptStreamStart(key_id="new"))
OPEN = DecryptStreamRequest(start=DecryptStreamStart(key_id="new"))


@pytest.fixture
async def stub(service: EncryptionService) -> AsyncGenerator[EncryptionServiceStub, None]:
    """The service in the chain of main."""
    async with pair(
        lambda server: add_EncryptionServiceServicer_to_server(EncryptionServicer(service), server),
        middleware=[*standard(Telemetry(log=None)), middleware.Validation()],
        errors=ERRORS,
    ) as ends:
        yield EncryptionServiceStub(ends.channel)


async def refusal(work: Awaitable[object]) -> CallError:
    with pytest.raises(CallError) as caught:
        await work
    return caught.value


async def drained(call: object) -> None:
    async for _ in call:  # type: ignore[attr-defined]  # the stub's call objects are all of this kind
        pass


@pytest.mark.parametrize(
    ("request_", "field", "description"),
    [
        (EncryptRequest(text="text"), "secret", "exactly one field is required in oneof"),
        (EncryptRequest(key_id="new", text="é" * (TEXT_MAX // 2) + "x"), "text", "must be at most 1048576 bytes"),
        (EncryptRequest(key_id="new", context=bytes(CONTEXT_MAX + 1)), "context", "must be at most 65536 bytes"),
    ],
    ids=["no secret", "long text", "long context"],
)
async def test_what_breaks_a_rule_of_the_proto(
    stub: EncryptionServiceStub, request_: EncryptRequest, field: str, description: str
) -> None:
    """INVALID_ARGUMENT as before, now with the field for programs, too."""
    error = (await refusal(stub.Encrypt(request_))).error
    detail = error.detail(BadRequest)
    assert error.code is Code.INVALID_ARGUMENT
    assert detail is not None
    assert [(found.field, found.description) for found in detail.field_violations] == [(field, description)]


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([EncryptStreamRequest()], "part: exactly one field is required in oneof"),
        ([EncryptStreamRequest(start=EncryptStreamStart())], "start.secret: exactly one field is required in oneof"),
        ([START, EncryptStreamRequest(chunk=bytes(CHUNK_MAX + 1))], "chunk: must be at most 65536 bytes"),
        ([START, START], "start came again: it is the first message of a stream, and no other"),
    ],
    ids=["no part", "no secret", "long chunk", "out of order"],
)
async def test_each_message_of_a_stream(
    stub: EncryptionServiceStub, requests: list[EncryptStreamRequest], message: str
) -> None:
    """What one message must be stands in the proto; their order is the servicer's affair."""
    error = (await refusal(drained(stub.EncryptStream(iter(requests))))).error
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, message)


async def test_a_refused_decryption_has_one_answer(stub: EncryptionServiceStub) -> None:
    """However long or wrong what it was given: no rule of the proto tells the difference."""
    answers = []
    for work in (
        stub.Decrypt(DecryptRequest(key_id="new")),
        stub.Decrypt(DecryptRequest(key_id="new", envelope="A" * (2 * TEXT_MAX))),
        stub.Decrypt(DecryptRequest(key_id="new", envelope="enc_", context=bytes(CONTEXT_MAX + 1))),
        stub.Decrypt(DecryptRequest(key="", envelope="enc_")),
        stub.Decrypt(DecryptRequest(key_id="", envelope="enc_")),
        drained(stub.DecryptStream(iter([OPEN, DecryptStreamRequest(chunk=bytes(CHUNK_MAX + 1))]))),
        drained(stub.DecryptStream(iter([OPEN]))),
    ):
        error = await refusal(work)
        trailers = [pair for pair in error.trailing_metadata() if pair[0] != "x-request-id"]
        answers.append((error.code(), error.details(), trailers))
    assert answers == [answers[0]] * 7
    assert (answers[0][1], answers[0][2]) == ("decryption failed", [])


async def test_main_asks_the_rules() -> None:
    """They are in the chain of the process, too."""
    async with (
        running("main", ADDRESS="127.0.0.1:0") as server,
        connect(await serving(server), middleware=[]) as channel,
    ):
        error = await refusal(EncryptionServiceStub(channel).Encrypt(EncryptRequest(text="text")))
    assert error.error.detail(BadRequest) is not None
