"""What a peer may ask for that costs it nothing: the known attacks, and the honest peers that look a little like them."""

from __future__ import annotations

import pytest

from servicekit.http2 import frames
from servicekit.http2.budget import Budget
from servicekit.http2.errors import ErrorCode
from servicekit.http2.events import Event, Terminated
from servicekit.http2.frames import PADDED, frame
from servicekit.http2.hpack_encoder import encode_stateless
from servicekit.http2.limits import Limits
from servicekit.http2.settings import Setting
from tests.http2.conversation import (
    PING,
    REQUEST,
    RESPONSE,
    SETTINGS,
    SETTINGS_ACK,
    Conversation,
    data,
    headers,
    reset,
    setting,
    update,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM


def test_a_budget_is_its_burst_and_then_its_rate() -> None:
    """So many at once, so many a second, and never more than the burst saved up."""
    budget = Budget(3, 2, now=10.0)
    assert [budget.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(11.0) for _ in range(3)] == [True, True, False]
    assert [budget.spend(1000.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(999.0)


def spent(talk: Conversation, one: bytes, times: int) -> list[Event]:
    """Say one thing many times, a little at a time, as a peer that reads would."""
    events: list[Event] = []
    for _ in range(times):
        events += talk.say(one)
        talk.hear()
    return events


@pytest.mark.parametrize(
    "one",
    [
        SETTINGS,
        SETTINGS_ACK,
        frame(frames.PRIORITY, 0, 1, bytes(5)),
        frame(frames.PING, frames.ACK, 0, bytes(8)),
        update(0, 1),
        update(1, 1),
        data(1, b""),
        data(1, b"x") + data(1, b"") + data(1, b"x"),
        frame(frames.DATA, PADDED, 1, b"\x00"),
        frame(frames.DATA, PADDED, 1, b"\x09" + bytes(9)),
        frame(frames.GOAWAY, 0, 0, bytes(8)),
        frame(0xAB, 0, 0),
    ],
)
def test_control_frames_have_a_budget(one: bytes) -> None:
    """500 at once and 250 a second are enough for anybody (CVE-2019-9512, -9515, -9518)."""
    talk = Conversation()
    talk.say(headers(1))
    used = 2  # the greeting's
    assert not any(isinstance(event, Terminated) for event in spent(talk, one, 500 - used))
    assert talk.ended_by(one) == CALM
    later = Conversation()
    later.say(headers(1))
    spent(later, one, 500 - used)
    later.now += 1.0
    spent(later, one, 250)
    assert later.ended_by(one) == CALM


def test_pings_have_a_budget_too() -> None:
    """A PING asks for an answer (CVE-2019-9512); without the strikes for pinging, the budget ends it."""
    talk = Conversation(limits=Limits(min_ping_interval=0.0))
    spent(talk, PING, 498)
    assert talk.ended_by(PING) == CALM


def test_answers_to_our_content_are_free() -> None:
    """A reader's updates, and the PING of those that measure the path, are no attack, however many there are."""
    talk = Conversation()
    for number in range(1, 4001, 2):
        talk.say(headers(number, end=True))
        talk.connection.respond(number, encode_stateless(RESPONSE), b"x" * 100, b"\x88")
        talk.hear()
        talk.say(PING, update(0, 100))
    talk.alive()


def test_answers_are_as_many_as_what_they_answer() -> None:
    """Three control frames for a DATA frame of ours; the next ones are the peer's own idea."""
    talk = Conversation()
    talk.say(headers(1, end=True))
    talk.connection.respond(1, b"\x88", b"x" * 100, b"\x88")
    talk.hear()
    spent(talk, update(0, 1), 498 + 3)
    assert talk.ended_by(update(0, 1)) == CALM


def test_updates_by_an_octet_earn_nothing() -> None:
    """A window that is opened by a little at a time makes us send frames of nothing (CVE-2019-9511)."""
    talk = Conversation()
    talk.say(setting(Setting.INITIAL_WINDOW_SIZE, 0), headers(1, end=True))
    talk.connection.send_headers(1, RESPONSE)
    talk.connection.send_data(1, bytes(10_000), end_stream=True)
    events = spent(talk, update(1, 1), 600)
    assert isinstance(events[-1], Terminated)
    assert events[-1].code == CALM


def test_rapid_resets_end_the_connection() -> None:
    """Opening and resetting at once makes work for nothing: 100 at once, 50 a second (CVE-2023-44487)."""
    talk = Conversation()
    for number in range(1, 201, 2):
        talk.say(headers(number, end=True), reset(number))
    assert not talk.connection.closed
    talk.now += 1.0
    for number in range(201, 301, 2):
        talk.say(headers(number, end=True), reset(number))
    assert talk.ended_by(headers(301), reset(301)) == CALM


def test_refusals_end_the_connection() -> None:
    """A peer that breaks rule after rule on stream after stream has had its chances (MadeYouReset, CVE-2025-8671)."""
    talk = Conversation()
    for number in range(1, 201, 2):
        talk.say(headers(number), update(number, 0))
        talk.hear()
    assert talk.ended_by(headers(201), update(201, 0)) == CALM


def test_continuations_are_few() -> None:
    """A block that never ends is not waited for (CVE-2024-27316)."""
    block = encode_stateless(REQUEST)
    talk = Conversation()
    more = frame(frames.CONTINUATION, 0, 1, b"")
    talk.say(frame(frames.HEADERS, 0, 1, block), *[more] * 7)
    assert [type(event).__name__ for event in talk.say(frame(frames.CONTINUATION, 4, 1, b""))] == ["RequestReceived"]
    talk.say(frame(frames.HEADERS, 0, 3, block), *[frame(frames.CONTINUATION, 0, 3, b"")] * 8)
    assert talk.ended_by(frame(frames.CONTINUATION, 0, 3, b"")) == CALM


def test_answers_left_unread_end_the_connection() -> None:
    """Who asks and does not listen is not answered for ever: what waits is bounded."""
    talk = Conversation(limits=Limits(control_output=1000, min_ping_interval=0.0))
    talk.say(*[PING] * 58)
    assert talk.ended_by(PING) == CALM


def test_a_hurried_pinger_is_sent_away() -> None:
    """Two PINGs within 30 s are let pass, the third ends the connection, in the words that clients know (gRFC A8)."""
    talk = Conversation()
    talk.say(PING)
    for _ in range(2):
        talk.now += 29.0
        assert talk.say(PING) == []
    talk.now += 29.0
    (ended,) = talk.say(PING)
    assert ended == Terminated(CALM, "too_many_pings")
    assert talk.hear()[-1].payload[8:] == b"too_many_pings"


def test_a_patient_pinger_is_not() -> None:
    """One PING every 30 s is what is allowed."""
    talk = Conversation()
    for _ in range(20):
        talk.now += 30.0
        assert talk.say(PING) == []


def test_a_pinger_that_was_sent_something_is_not() -> None:
    """Content in between makes up for strikes: clients measure the path by pinging when content comes (gRFC A8)."""
    talk = Conversation()
    for number in range(1, 41, 2):
        talk.say(headers(number, end=True))
        talk.connection.respond(number, b"\x88", b"x", b"\x88")
        assert talk.say(PING, PING) == []
