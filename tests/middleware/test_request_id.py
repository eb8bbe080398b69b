"""One id for a request, on every hop."""

from __future__ import annotations

import pytest

from servicekit.call import Side
from servicekit.endpoint import chain, only
from servicekit.errors import Code, Error
from servicekit.method import Kind
from servicekit.middleware import RequestId
from servicekit.testing import make_call, run, scripted, sends


async def test_takes_the_clients_id() -> None:
    """On the server a well-formed id of the client is the call's id, and is echoed in the trailing metadata."""
    call = make_call(metadata=[("x-request-id", "abc-123")])
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.state["request_id"] == "abc-123"
    assert call.trailers.get_all("x-request-id") == ["abc-123"]


async def test_makes_one_when_none_came() -> None:
    """On the server a call without an id gets one, and no two get the same."""
    first, second = make_call(), make_call()
    second.clock.random()
    for call in (first, second):
        await run(RequestId(), scripted("ok"), "hi", call)
    name = first.state["request_id"]
    assert isinstance(name, str)
    assert len(name) == 26
    assert int(name, 16) >= 0
    assert first.trailers.text("x-request-id") == name != second.state["request_id"]


@pytest.mark.parametrize(
    "given", ["", " ", "a b", "a\tb", 'a"b', "a\\b", "a;b", "a" * 129, "a\n", "a%0Ab", "<b>", "{x}"]
)
async def test_replaces_what_is_not_well_formed(given: str) -> None:
    """On the server an id that is empty, too long or holds anything unsafe is not taken over."""
    call = make_call()
    call.metadata = type(call.metadata)([("x-request-id", given)])  # unchecked, as from the wire
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.state["request_id"] != given
    assert call.trailers.get_all("x-request-id") == [call.state["request_id"]]


async def test_takes_an_id_of_128_characters() -> None:
    """128 characters are allowed, and every one of the safe set."""
    name = "0aZ._:/+=@~-".ljust(128, "x")
    call = make_call(metadata=[("x-request-id", name)])
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.state["request_id"] == name


async def test_echoes_it_after_a_failure() -> None:
    """A caller whose call failed gets the id too: that is when it asks for it."""
    call = make_call(metadata=[("x-request-id", "abc")])
    with pytest.raises(Error):
        await run(RequestId(), scripted(Error(Code.NOT_FOUND)), "hi", call)
    assert call.trailers.text("x-request-id") == "abc"


async def test_client_sends_the_callers_own() -> None:
    """On the client an id that the caller gave is sent as it is."""
    call = make_call(side=Side.CLIENT, metadata=[("x-request-id", "mine")])
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.metadata.get_all("x-request-id") == ["mine"]
    assert call.state["request_id"] == "mine"


async def test_client_makes_one() -> None:
    """On the client a call of its own gets a new id, which is sent."""
    call = make_call(side=Side.CLIENT)
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.metadata.text("x-request-id") == call.state["request_id"]
    assert "x-request-id" not in call.trailers


async def test_client_replaces_one_that_the_server_would_not_take() -> None:
    """On the client a malformed id is replaced, not sent beside the new one."""
    call = make_call(side=Side.CLIENT, metadata=[("x-request-id", "not well formed")])
    await run(RequestId(), scripted("ok"), "hi", call)
    assert call.metadata.get_all("x-request-id") == [call.state["request_id"]]


@pytest.mark.parametrize("kind", list(Kind))
async def test_the_same_id_two_hops_down(kind: Kind) -> None:
    """What the first client sent is what the server behind the server behind it sees, for every kind."""
    request = ["hi"] if kind.request_streaming else "hi"
    outcome = sends("ok") if kind.response_streaming else "ok"
    first = make_call(side=Side.CLIENT, kind=kind)
    await run(RequestId(), scripted(outcome), request, first)
    served = make_call(kind=kind, metadata=first.metadata)
    await run(RequestId(), scripted(outcome), request, served)
    outgoing = make_call(side=Side.CLIENT, kind=kind, parent=served)
    await run(RequestId(), scripted(outcome), request, outgoing)
    last = make_call(kind=kind, metadata=outgoing.metadata)
    await run(RequestId(), scripted(outcome), request, last)
    assert last.state["request_id"] == first.state["request_id"]


async def test_another_header() -> None:
    """``header`` names the metadata; the call's state has the same key for all of them."""
    call = make_call(metadata=[("x-correlation-id", "abc"), ("x-request-id", "other")])
    await run(RequestId(header="x-correlation-id"), scripted("ok"), "hi", call)
    assert call.state["request_id"] == "abc"
    assert call.trailers.text("x-correlation-id") == "abc"


@pytest.mark.parametrize("header", ["X-Request-Id", "x request id", "", "x-id-bin", "grpc-status"])
def test_refuses_a_header_that_cannot_hold_it(header: str) -> None:
    """A header that is no metadata key for text is refused where it is written, naming setting and value."""
    with pytest.raises((ValueError, TypeError), match=f"header='{header}'"):
        RequestId(header=header)


async def test_only_some_methods() -> None:
    """Inside ``only`` it is there for the methods that match, and for no others."""
    call = make_call()
    await run(only("/test.Service/Other", RequestId()), scripted("ok"), "hi", call)
    assert "request_id" not in call.state
    await run(only("/test.Service/*", RequestId()), scripted("ok"), "hi", call)
    assert "request_id" in call.state


def test_repr_in_a_chain() -> None:
    """A chain's repr shows its settings."""
    assert repr(chain(RequestId())) == "chain(RequestId(header='x-request-id'))"
