"""Whether the request makes sense: the rules in its proto."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from grpc_tools import protoc

from servicekit.call import Side
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware import AccessLog, Recovery, Validation
from servicekit.server import Server
from servicekit.testing import Pair, make_call, pair, run, scripted, sends
from servicekit.testing.pair import Over
from servicekit.transport.call_error import CallError

from .probes import Log

Untyped: TypeAlias = Any
"""A message of a proto that is made here, or what grpc leaves untyped."""

PROTO = """
syntax = "proto3";
package rules.v1;
import "buf/validate/validate.proto";

message Inner {
  string deep = 1 [(buf.validate.field).string.max_bytes = 4];
  option (buf.validate.message).cel = {id: "inner.no", message: "must not say no", expression: "this.deep != 'no'"};
}
message Ruled {
  string text = 1 [debug_redact = true, (buf.validate.field).string.max_bytes = 16];
  map<string, Inner> named = 2 [(buf.validate.field).map.keys.string.max_len = 8];
  repeated Inner many = 3;
  map<int32, Inner> numbered = 4;
  string told = 5 [(buf.validate.field).cel = {
    id: "told.dynamic", expression: "this.startsWith('canary') ? 'told ' + this : ''"
  }];
  string kept = 6 [(buf.validate.field).cel = {
    id: "kept.fixed", message: "must not be it", expression: "!this.startsWith('canary')"
  }];
  string bare = 7 [(buf.validate.field).cel_expression = "!this.startsWith('canary')"];
  Ruled again = 8;
  option (buf.validate.message).cel = {
    id: "ruled.dynamic", expression: "this.text == this.kept && this.text != '' ? 'both are ' + this.text : ''"
  };
}
message Required { string name = 1 [(buf.validate.field).required = true]; }
message Failing { int32 a = 1 [(buf.validate.field).cel = {id: "failing", expression: "10 / this > 0"}]; }
message Broken { int32 a = 1 [(buf.validate.field).cel = {id: "broken", expression: "no such thing"}]; }
message Free { string text = 1; }
"""
CANARY = "canary-51c0"


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Untyped:
    """The messages above, as `make gen` would make them."""
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.proto").write_text(PROTO)
    places = [folder, Path(__file__).parent.parent.parent / "protos", Path(str(protoc.__file__)).parent / "_proto"]
    assert protoc.main(["", *(f"-I{place}" for place in places), f"--python_out={folder}", "rules.proto"]) == 0
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("rules_pb2")
    finally:
        sys.path.remove(str(folder))


async def refused(
    request: Untyped, kind: Kind = Kind.UNARY, side: Side = Side.SERVER, link: Validation | None = None
) -> Error:
    """Why the request did not pass; a unary one reaches no endpoint."""
    endpoint = scripted(sends() if kind.response_streaming else "ok")
    with pytest.raises(Error) as caught:
        await run(link or Validation(), endpoint, request, make_call(kind=kind, side=side))
    assert kind.request_streaming or endpoint.calls == []
    return caught.value


def fields(error: Error) -> list[tuple[str, str, str]]:
    detail = error.detail(BadRequest)
    assert detail is not None
    return [(found.field, found.reason, found.description) for found in detail.field_violations]


async def test_every_broken_rule_is_a_field_violation(rules: Untyped) -> None:
    """With the field's path and what the rule says; the first one is the message, too."""
    deep = rules.Inner(deep="x" * 5)
    error = await refused(rules.Ruled(text="x" * 17, many=[rules.Inner(), deep], again=rules.Ruled(many=[deep])))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert fields(error) == [
        ("text", "string.max_bytes", "must be at most 16 bytes"),
        ("many[1].deep", "string.max_bytes", "must be at most 4 bytes"),
        ("again.many[0].deep", "string.max_bytes", "must be at most 4 bytes"),
    ]
    assert error.message == "text: must be at most 16 bytes (and 2 more)"


async def test_the_offending_value_is_nowhere(rules: Untyped) -> None:
    """Not in a message, a path, a description or the log: CEL that quotes it is told by its name."""
    bad = rules.Ruled(
        text=CANARY,
        named={CANARY: rules.Inner(deep=CANARY), "ok": rules.Inner(deep="no")},
        numbered={514200: rules.Inner(deep=CANARY)},
        told=CANARY,
        kept=CANARY,
        bare=CANARY,
    )
    log = Log()
    with pytest.raises(Error) as caught:
        await run([AccessLog(log.telemetry), Recovery(), Validation()], scripted(), bad, make_call())
    error = caught.value
    assert sorted(fields(error)) == [
        ("", "ruled.dynamic", "breaks the rule ruled.dynamic"),
        ("bare", "!this.startsWith('canary')", "\"!this.startsWith('canary')\" returned false"),
        ("kept", "kept.fixed", "must not be it"),
        ("named[*]", "inner.no", "must not say no"),
        ("named[*]", "string.max_len", "must be at most 8 characters"),
        ("named[*].deep", "string.max_bytes", "must be at most 4 bytes"),
        ("numbered[*].deep", "string.max_bytes", "must be at most 4 bytes"),
        ("told", "told.dynamic", "breaks the rule told.dynamic"),
    ]
    for shown in (repr(error), str(error), str(error.detail(BadRequest)), log.text):
        assert CANARY not in shown
        assert "514200" not in shown


async def test_what_fits_is_sent(rules: Untyped) -> None:
    """A thousand broken fields do not cost the client the first ones; one is enough where that is asked for."""
    bad = rules.Ruled(many=[rules.Inner(deep="xxxxx")] * 1000)
    found = fields(await refused(bad))
    assert 20 < len(found) < 1000
    assert len(fields(await refused(bad, link=Validation(first_only=True)))) == 1
    async with serving(rules) as ends:
        with pytest.raises(CallError) as caught:
            await begin(ends, rules, Kind.UNARY, [bad])
        assert fields(caught.value.error) == found


@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("kind", list(Kind))
async def test_every_kind_on_both_sides(rules: Untyped, kind: Kind, side: Side) -> None:
    """A good request passes as it is, a bad one is refused; a client's has not left it."""
    good, bad = rules.Ruled(text="good"), rules.Ruled(text="x" * 17)
    endpoint = scripted(sends() if kind.response_streaming else "ok")
    request = [good, good] if kind.request_streaming else good
    await run(Validation(), endpoint, request, make_call(kind=kind, side=side))
    assert endpoint.requests == [request]
    error = await refused([good, bad, good] if kind.request_streaming else bad, kind, side)
    assert error.code is Code.INVALID_ARGUMENT
    assert (error.refused, error.begun) == ((True, False) if side is Side.CLIENT else (False, True))


async def test_the_decision_is_told_once(rules: Untyped) -> None:
    """In one word."""
    for kind in Kind:
        told: list[tuple[str, str]] = []
        call = make_call(kind=kind)
        call.on_decision(lambda *said, told=told: told.append(said))
        bad = rules.Ruled(text="x" * 17)
        with pytest.raises(Error):
            await run(Validation(), scripted(sends()), [bad, bad] if kind.request_streaming else bad, call)
        assert told == [("validation", "invalid")]


async def test_an_empty_message_that_lacks_something(rules: Untyped) -> None:
    """It is refused before the servicer has it, as any other."""
    endpoint = scripted("ok")
    with pytest.raises(Error) as caught:
        await run(Validation(), endpoint, rules.Required(), make_call())
    assert fields(caught.value) == [("name", "required", "value is required")]
    assert endpoint.calls == []


async def test_what_has_no_rules_passes(rules: Untyped) -> None:
    """And so does what is no protobuf message."""
    for request in (rules.Free(text="x" * 1000), b"bytes", "text", None):
        assert await run(Validation(), scripted("ok"), request, make_call()) == "ok"


async def test_rules_that_do_not_work_let_nothing_pass(rules: Untyped) -> None:
    """INTERNAL, as for any mistake in the service; the log names the message, and no value."""
    for bad in (rules.Failing(a=0), rules.Broken(a=51420)):
        log, endpoint = Log(), scripted("ok")
        with pytest.raises(Error) as caught:
            await run([AccessLog(log.telemetry), Recovery(), Validation()], endpoint, bad, make_call())
        assert caught.value.code is Code.INTERNAL
        assert endpoint.calls == []
        assert f"the rules of rules.v1.{type(bad).__name__} cannot be applied" in log.text
        assert "51420" not in log.text


def test_the_repr_tells_the_setting() -> None:
    """There is one."""
    assert repr(Validation()) == "Validation(first_only=False)"


# On the wire

NAMES = {Kind.UNARY: "One", Kind.CLIENT_STREAM: "In", Kind.SERVER_STREAM: "Out", Kind.BIDI_STREAM: "Both"}


def serving(rules: Untyped, over: Over = "memory", seen: list[Untyped] | None = None) -> Untyped:
    """A service of all four kinds that answers with what it gets, over messages with rules."""
    seen = seen if seen is not None else []

    async def one(request: Untyped, _context: object) -> Untyped:
        seen.append(request.text)
        return request

    async def several(request: Untyped, _context: object) -> AsyncIterator[Untyped]:
        seen.append(request.text)
        yield request

    async def gathered(requests: AsyncIterator[Untyped], _context: object) -> Untyped:
        async for request in requests:
            seen.append(request.text)
        return rules.Ruled()

    async def both(requests: AsyncIterator[Untyped], _context: object) -> AsyncIterator[Untyped]:
        async for request in requests:
            seen.append(request.text)
            yield request

    codec: dict[str, Untyped] = {
        "request_deserializer": rules.Ruled.FromString,
        "response_serializer": rules.Ruled.SerializeToString,
    }
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(one, **codec),
        "Out": grpc.unary_stream_rpc_method_handler(several, **codec),
        "In": grpc.stream_unary_rpc_method_handler(gathered, **codec),
        "Both": grpc.stream_stream_rpc_method_handler(both, **codec),
    }

    def register(server: Server) -> None:
        server.add_registered_method_handlers("rules.v1.Service", handlers)

    return pair(register, over=over, middleware=[Validation()])


async def begin(ends: Pair, rules: Untyped, kind: Kind, requests: Iterable[Untyped], encode: Untyped = None) -> None:
    """Call the method of that kind, and take all of its answer."""
    shapes = {
        Kind.UNARY: ends.channel.unary_unary,
        Kind.SERVER_STREAM: ends.channel.unary_stream,
        Kind.CLIENT_STREAM: ends.channel.stream_unary,
        Kind.BIDI_STREAM: ends.channel.stream_stream,
    }
    make: Untyped = shapes[kind]
    stub = make(f"/rules.v1.Service/{NAMES[kind]}", encode or rules.Ruled.SerializeToString, rules.Ruled.FromString)
    call = stub(iter(requests) if kind.request_streaming else next(iter(requests)))
    if kind.response_streaming:
        async for _ in call:
            pass
    else:
        await call


@pytest.mark.parametrize("over", ["memory", "socket", "native"])
@pytest.mark.parametrize("kind", list(Kind))
async def test_a_client_reads_the_violations_back(rules: Untyped, kind: Kind, over: Over) -> None:
    """Typed, from the error that it catches; the servicer has seen what came before, and nothing else."""
    seen: list[str] = []
    good, bad = rules.Ruled(text="good"), rules.Ruled(text="x" * 17)
    async with serving(rules, over, seen) as ends:
        with pytest.raises(CallError) as caught:
            await begin(ends, rules, kind, [good, bad, good] if kind.request_streaming else [bad])
        await begin(ends, rules, kind, [good])
    error = caught.value.error
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert fields(error) == [("text", "string.max_bytes", "must be at most 16 bytes")]
    assert seen == (["good", "good"] if kind.request_streaming else ["good"])


@pytest.mark.parametrize("kind", list(Kind))
async def test_what_cannot_be_decoded_is_told_as_that(rules: Untyped, kind: Kind) -> None:
    """Not as the broken rules of the blank message that stands in its place."""
    async with serving(rules) as ends:
        with pytest.raises(CallError) as caught:
            await begin(ends, rules, kind, [b"\xff\xff"], encode=lambda data: data)
    assert caught.value.details() == "malformed request message"


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the part that needs it, when it is made: importing the package needs no extra."""
    monkeypatch.setitem(sys.modules, "protovalidate", None)
    with pytest.raises(ImportError, match=r"servicekit\[validate\]"):
        Validation()
