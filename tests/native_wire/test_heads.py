from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servicekit.errors import Code
from servicekit.http2.headers import Field, RequestFields
from servicekit.native.heads import Opening
from servicekit.native.statuses import fields_of, percent_encoded, refusal, trailers_of
from servicekit.wire import Status

ORDINARY = {
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def opening(
    *more: tuple[bytes, bytes], method: bytes = b"POST", path: bytes = b"/a.B/C", **own: bytes | None
) -> Opening:
    """Return what is made of an ordinary request with some fields more, and some of its own changed or left out."""
    fields = {**ORDINARY, **{name.replace("_", "-").encode(): value for name, value in own.items()}}
    return Opening(method, path, [*((name, value) for name, value in fields.items() if value is not None), *more])


def code(of: Opening) -> Code:
    assert of.status is not None
    return of.status.code


def test_an_ordinary_request_is_taken() -> None:
    """Path and nothing else: what is the transport's own is no metadata."""
    head = opening(
        (b"grpc-accept-encoding", b"identity, gzip,zstd"), (b"grpc-encoding", b"gzip"), (b"user-agent", b"x/1")
    )
    assert (head.http, head.status, head.path, head.timeout) == (0, None, "/a.B/C", None)
    assert head.metadata == (("user-agent", "x/1"),)
    assert head.encoding == "gzip"
    assert head.accepts == {"identity", "gzip"}


@pytest.mark.parametrize(
    ("content_type", "http"),
    [
        (b"application/grpc", 0),
        (b"application/grpc+proto", 0),
        (b"application/grpc;charset=utf-8", 0),
        (b"Application/GRPC", 0),
        (b"application/grpc-web", 415),
        (b"application/grpcx", 415),
        (b"application/json", 415),
        (b"", 415),
        (None, 415),
    ],
)
def test_only_grpc_is_spoken(content_type: bytes | None, http: int) -> None:
    """Whatever is not application/grpc gets HTTP's 415 ("Requests" in the protocol's text)."""
    assert opening(content_type=content_type).http == http


BEHIND = st.sampled_from(
    [
        *[(b"traceparent", b"00-1-2-01"), (b"a-bin", b"AQI="), (b"a-bin", b"AQ,QI"), (b"grpc-timeout", b"9u")] * 6,
        *[(b"x", b"1"), (b"x", b"2"), (b"y", b"3"), (b"grpc-timeout", b"8m")] * 6,
        *[(b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip")] * 3,
        *[(b"grpc-timeout", b"9x"), (b"a-bin", b"?"), (b"x", b"\xc3"), (b"host", b"x")],
        *[(b"grpc-encoding", b"zstd"), (b"content-type", b"text/plain"), (b"te", b"x"), (b"grpc-status", b"0")],
    ]
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"POST"] * 9 + [b"GET"]),
    st.sampled_from([tuple(ORDINARY.items())] * 9 + [(), ((b"te", b"trailers"),)]),
    st.lists(BEHIND, max_size=2),
    st.lists(BEHIND, min_size=1, max_size=4),
)
def test_a_beginning_that_is_known_changes_nothing(
    method: bytes, first: tuple[Field, ...], more: list[Field], rest: list[Field]
) -> None:
    """Whether a section is read as a whole, or what is new in it alone, it says the same."""
    lead = RequestFields({b":method": method, b":path": b"/a.B/C"}, (*first, *more), 0)
    section = lead.followed_by(tuple(rest), 0)
    whole = Opening(method, b"/a.B/C", section.regular)
    for _ in range(2):
        parted = Opening.of(section)
        assert [getattr(parted, slot) for slot in Opening.__slots__] == [
            getattr(whole, slot) for slot in Opening.__slots__
        ]


def test_only_post_is_served() -> None:
    """Another method gets 405, with the one that is allowed."""
    assert opening(method=b"GET").http == 405
    assert (b"allow", b"POST") in refusal(405)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"2H", 7200.0),
        (b"3M", 180.0),
        (b"4S", 4.0),
        (b"50m", 0.05),
        (b"60u", 60e-6),
        (b"70n", 70e-9),
        (b"99999999H", 99999999 * 3600.0),
        (b"0S", 0.0),
    ],
)
def test_timeouts_are_read(text: bytes, seconds: float) -> None:
    """One to eight digits and one of six units."""
    assert opening(grpc_timeout=text).timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", [b"", b"S", b"1", b"123456789S", b"-1S", b"1.5S", b"1s", b" 1S", b"1S ", b"1SS", "\uff11S".encode()]
)
def test_a_malformed_timeout_is_refused(text: bytes) -> None:
    """A deadline that nobody can read is not taken for none."""
    assert code(opening(grpc_timeout=text)) is Code.INTERNAL


def test_binary_metadata_is_base64_with_padding_or_without() -> None:
    """Several values may stand in one field, with commas between them."""
    head = opening((b"a-bin", b"AQI="), (b"a-bin", b"AQI"), (b"b-bin", b"AQ==, Ag,"), (b"c", b"a,b"), (b"d-bin", b""))
    assert head.metadata == (
        ("a-bin", b"\1\2"),
        ("a-bin", b"\1\2"),
        ("b-bin", b"\1"),
        ("b-bin", b"\2"),
        ("b-bin", b""),
        ("c", "a,b"),
        ("d-bin", b""),
    )


@pytest.mark.parametrize("field", [(b"a-bin", b"!!!!"), (b"a-bin", b"A"), (b"a", b"\xc3\xa4"), (b"a", b"x\ty")])
def test_bad_metadata_is_refused_by_its_key(field: tuple[bytes, bytes]) -> None:
    """INTERNAL, and the message names the key but never the value."""
    head = opening(field)
    assert code(head) is Code.INTERNAL
    assert head.status is not None
    assert repr(field[0].decode()) in head.status.message


def test_an_unknown_encoding_is_refused_with_those_that_are_known() -> None:
    """UNIMPLEMENTED with grpc-accept-encoding, as doc/compression.md of gRPC wants."""
    head = opening(grpc_encoding=b"snappy")
    assert code(head) is Code.UNIMPLEMENTED
    assert head.status is not None
    assert head.status.trailers == (("grpc-accept-encoding", "identity,deflate,gzip"),)


def test_te_is_needed() -> None:
    """Without it something on the way may drop trailers, and with them the status."""
    assert code(opening(te=None)) is Code.INTERNAL


def test_a_path_may_be_any_bytes() -> None:
    """A path that is not UTF-8 is one that nobody knows."""
    assert opening(path=b"/\xff/x").path == "/\ufffd/x"


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("plain text, 7!~", b"plain text, 7!~"),
        ("100 % ", b"100 %25 "),
        ("größer", b"gr%C3%B6%C3%9Fer"),
        ("a\nb\x7f", b"a%0Ab%7F"),
        ("\U0001f600", b"%F0%9F%98%80"),
        ("\ud800", b"?"),
    ],
)
def test_a_message_is_percent_encoded(message: str, encoded: bytes) -> None:
    """UTF-8, with everything but printable ASCII and the percent sign itself encoded."""
    assert percent_encoded(message) == encoded


def test_trailers_say_the_status() -> None:
    """Code, message where there is one, then the metadata; bytes in base64 without padding."""
    status = Status(code=Code.NOT_FOUND, message="no", trailers=(("a", "1"), ("b-bin", b"\1\2"), ("c-bin", b"")))
    assert trailers_of(status) == [
        (b"grpc-status", b"5"),
        (b"grpc-message", b"no"),
        (b"a", b"1"),
        (b"b-bin", b"AQI"),
        (b"c-bin", b""),
    ]
    assert trailers_of(Status()) == [(b"grpc-status", b"0")]
    assert fields_of((("a", ""),)) == [(b"a", b"")]
