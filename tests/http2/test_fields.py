"""Which messages are well-formed: RFC 9113, section 8."""

from __future__ import annotations

from collections.abc import Callable

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.http2 import frames
from servicekit.http2.errors import ErrorCode, StreamFault
from servicekit.http2.events import Data, RequestReceived, Trailers
from servicekit.http2.frames import END_HEADERS, frame
from servicekit.http2.headers import Field, Leads, RequestFields, request
from servicekit.http2.hpack_decoder import HeaderBlock
from servicekit.http2.hpack_encoder import encode_stateless
from tests.http2.conversation import REQUEST, TRAILERS, Conversation, Fields, data, headers

METHOD, SCHEME, PATH, AUTHORITY, TE = REQUEST


@pytest.mark.parametrize(
    "fields",
    [
        (SCHEME, PATH),  # 8.3.1
        (METHOD, PATH),
        (METHOD, SCHEME),
        (METHOD, SCHEME, (b":path", b"")),
        (METHOD, METHOD, SCHEME, PATH),  # 8.3
        (METHOD, SCHEME, PATH, PATH),
        (METHOD, SCHEME, TE, PATH),
        (*REQUEST, (b":authority", b"x")),
        (*REQUEST[:4], (b":status", b"200")),
        (*REQUEST[:4], (b":unknown", b"x")),
        (*REQUEST, (b"", b"x")),  # 8.2.1
        (*REQUEST, (b"Upper", b"x")),
        (*REQUEST, (b"a b", b"x")),
        (*REQUEST, (b"a:b", b"x")),
        (*REQUEST, (b"a\x00", b"x")),
        (*REQUEST, (b"a\x7f", b"x")),
        (*REQUEST, (b"\xc3\xa4", b"x")),
        (*REQUEST, (b"x", b"a\r\nb")),
        (*REQUEST, (b"x", b"a\nb")),
        (*REQUEST, (b"x", b"\x00")),
        (*REQUEST, (b"x", b" a")),
        (*REQUEST, (b"x", b"a\t")),
        (*REQUEST, (b"x", b" "), (b"y", b"z")),
        (*REQUEST, (b"connection", b"close")),  # 8.2.2
        (*REQUEST, (b"proxy-connection", b"x")),
        (*REQUEST, (b"keep-alive", b"x")),
        (*REQUEST, (b"transfer-encoding", b"chunked")),
        (*REQUEST, (b"upgrade", b"x")),
        (*REQUEST[:4], (b"te", b"gzip")),
        (*REQUEST, (b"te", b"gzip")),
        (*REQUEST, (b"te", b"trailers, deflate")),
        (*REQUEST, (b"content-length", b"-1")),  # 8.1.1
        (*REQUEST, (b"content-length", b"")),
        (*REQUEST, (b"content-length", b"1" * 30)),
        (*REQUEST, (b"content-length", b"1"), (b"content-length", b"2")),
        ((b":method", b"CONNECT"), SCHEME, AUTHORITY),  # 8.5
        ((b":method", b"CONNECT"), PATH, AUTHORITY),
        ((b":method", b"CONNECT"),),
        (),
    ],
)
def test_a_malformed_request_is_a_stream_error(fields: Fields) -> None:
    """It is refused before anybody sees it, and its neighbours go on (8.1.1)."""
    talk = Conversation()
    assert talk.refused_by(1, headers(1, fields)) == ErrorCode.PROTOCOL_ERROR
    assert talk.connection.streams == 0


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST,
        REQUEST[:3],
        (PATH, SCHEME, METHOD),
        (*REQUEST, (b"x", b"")),
        (*REQUEST, (b"x", b"a b \x01 \xff")),
        (*REQUEST, (b"!#$%&'*+-.^_`|~09", b"x")),
        (*REQUEST, (b"te", b"trailers")),
        (*REQUEST, (b"te", b"trailers"), (b"te", b"trailers")),
        (*REQUEST, (b"content-length", b"0")),
        ((b":method", b"CONNECT"), AUTHORITY),
    ],
)
def test_a_well_formed_request_is_taken(fields: Fields) -> None:
    """The rules forbid no more than they say."""
    (received,) = Conversation().say(headers(1, fields, end=True))
    assert isinstance(received, RequestReceived)
    assert received.headers.regular == tuple(field for field in fields if not field[0].startswith(b":"))
    assert received.headers.method == dict(fields)[b":method"]


WHOLE = st.sampled_from([REQUEST] * 6 + [REQUEST[:4], (*REQUEST[:2], TE), (METHOD, SCHEME, TE, PATH), (SCHEME, PATH)])
ONE = st.sampled_from(
    [
        *[(b"traceparent", b"00-1-2-01"), (b"x-request-id", b"a"), (b"grpc-timeout", b"9u"), (b"cookie", b"")] * 4,
        *[TE, (b"te", b"gzip"), (b"content-length", b"1"), (b"content-length", b"2"), (b"connection", b"close")],
        *[(b":path", b"/x"), (b":status", b"200"), (b"a:b", b"x"), (b"", b"x"), (b"Upper", b"x"), (b"x", b" a")],
        *[(b"x", b"a\n"), (b"x", b"\x00"), (b"x", b"a\tb"), (b"x", b"\xff")],
    ]
)
SLOTS = [slot for slot in RequestFields.__slots__ if slot not in {"lead", "memo", "rest"}]


def checked(check: Callable[[int, HeaderBlock], RequestFields], block: HeaderBlock) -> object:
    try:
        made = check(1, block)
    except StreamFault as fault:
        return fault.stream_id, fault.code, str(fault)
    return [getattr(made, slot) for slot in SLOTS]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(WHOLE, st.lists(ONE, max_size=2), st.lists(ONE, min_size=1, max_size=4)), max_size=20))
def test_a_beginning_that_is_known_changes_nothing(requests: list[tuple[Fields, list[Field], list[Field]]]) -> None:
    """Whether it is checked as a whole, or what is new in it alone, a section is found to be the same."""
    leads = Leads()
    for first, more, rest in requests:
        fields = (*first, *more, *rest)
        size = sum(map(len, fields))
        parted = HeaderBlock(fields, size, leading=len(first) + len(more))
        assert checked(leads.request, parted) == checked(request, HeaderBlock(fields, size))


@pytest.mark.parametrize("size", [1, 600])
def test_a_client_cannot_fill_the_memory_with_beginnings(size: int) -> None:
    """Those that are known are few, and short."""
    leads = Leads()
    for number in range(1000):
        agent = (b"user-agent", b"%d" % number + b"x" * size)
        leads.request(1, HeaderBlock((*REQUEST, agent, (b"y", b"")), 0, leading=len(REQUEST) + 1))
    assert len(leads._known) == (1000 % 16 if size == 1 else 0)


def test_no_secret_is_kept_with_a_beginning() -> None:
    """A table forgets what its client wants it to forget; nobody else remembers."""
    leads = Leads()
    fields = (*REQUEST, (b"authorization", b"Bearer secret"), (b"a-bin", b",,,,"), (b"y", b""))
    made = leads.request(1, HeaderBlock(fields, 0, leading=len(fields) - 1))
    assert made.regular == fields[4:]
    assert list(leads._known) == [REQUEST]


def test_a_beginning_from_the_tables_is_checked_once() -> None:
    """Requests that differ in what is new in them share the rest, wherever in the tables that is by then."""
    encoder = hpack.Encoder()
    talk = Conversation()
    found = []
    for number in range(4):
        fields = [*REQUEST, (b"user-agent", b"x/1"), (b"x-request-id", b"%d" % number)]
        (event,) = talk.say(frame(frames.HEADERS, END_HEADERS, 2 * number + 1, encoder.encode(fields)))
        assert isinstance(event, RequestReceived)
        assert event.headers.regular == tuple(fields[4:])
        found.append(event.headers)
    assert found[1].lead is not None
    assert found[1].lead.regular == (TE, (b"user-agent", b"x/1"))
    assert found[1].lead is found[2].lead is found[3].lead


def test_the_same_block_is_checked_once() -> None:
    """What was made of a block's fields is kept with them, for every call that sends the same octets."""
    first, second = Conversation().say(headers(1), headers(3))
    assert isinstance(first, RequestReceived)
    assert isinstance(second, RequestReceived)
    assert first.headers is second.headers


def test_a_request_is_not_taken_for_trailers() -> None:
    """The same octets are judged by where they stand (8.1)."""
    talk = Conversation()
    talk.say(headers(1), headers(3, end=True))
    assert talk.refused_by(1, headers(1, end=True)) == ErrorCode.PROTOCOL_ERROR
    assert [type(event) for event in talk.say(headers(5))] == [RequestReceived]


@pytest.mark.parametrize(
    "fields", [(PATH,), ((b":status", b"200"),), ((b"Grpc-Status", b"0"),), ((b"connection", b"x"),)]
)
def test_malformed_trailers_are_a_stream_error(fields: Fields) -> None:
    """Trailers have no pseudo-header fields (8.1)."""
    talk = Conversation()
    talk.say(headers(1))
    assert talk.refused_by(1, headers(1, fields, end=True)) == ErrorCode.PROTOCOL_ERROR


def test_trailers_end_the_request() -> None:
    """Fields after the content must say that it is the end (8.1)."""
    talk = Conversation()
    talk.say(headers(1), headers(3))
    assert talk.refused_by(1, headers(1, TRAILERS)) == ErrorCode.PROTOCOL_ERROR
    (trailers,) = talk.say(headers(3, TRAILERS, end=True))
    assert isinstance(trailers, Trailers)
    assert trailers.trailers.regular == TRAILERS


@pytest.mark.parametrize(
    "said",
    [
        (headers(1, (*REQUEST, (b"content-length", b"3")), end=True),),
        (headers(1, (*REQUEST, (b"content-length", b"3"))), data(1, b"ab", end=True)),
        (headers(1, (*REQUEST, (b"content-length", b"3"))), data(1, b"abcd")),
        (headers(1, (*REQUEST, (b"content-length", b"3"))), data(1, b"ab"), data(1, b"cd", end=True)),
        (headers(1, (*REQUEST, (b"content-length", b"3"))), data(1, b"ab"), headers(1, TRAILERS, end=True)),
    ],
)
def test_content_must_be_as_long_as_was_said(said: tuple[bytes, ...]) -> None:
    """Another length than content-length is malformed (8.1.1)."""
    assert Conversation().refused_by(1, *said) == ErrorCode.PROTOCOL_ERROR


def test_padding_is_no_content() -> None:
    """The length is that of the content alone (6.1, 8.1.1)."""
    talk = Conversation()
    padded = frame(frames.DATA, frames.PADDED | frames.END_STREAM, 1, b"\x05abc" + bytes(5))
    _, content = talk.say(headers(1, (*REQUEST, (b"content-length", b"3"))), padded)
    assert content == Data(1, b"abc", 9, end_stream=True)


def test_too_large_a_list_costs_its_stream_only() -> None:
    """The table stays in step, so the next request is read right (10.5.1)."""
    talk = Conversation()
    large = (*REQUEST, (b"x", b"y" * 16_000), (b"z", b"y" * 500))
    block = encode_stateless(large)
    said = frame(frames.HEADERS, 0, 1, block[:9000]) + frame(frames.CONTINUATION, END_HEADERS, 1, block[9000:])
    assert talk.refused_by(1, said) == ErrorCode.ENHANCE_YOUR_CALM
    assert [type(event) for event in talk.say(headers(3))] == [RequestReceived]


def test_a_reason_never_quotes_what_the_peer_sent() -> None:
    """Names and values of fields may be secrets: reasons are logged, and sent back."""
    talk = Conversation()
    events = talk.say(headers(1), headers(1, ((b":s3cret", b"s3cret"), (b"S3CRET", b"s3cret")), end=True))
    assert "s3cret" not in repr(events).lower()
