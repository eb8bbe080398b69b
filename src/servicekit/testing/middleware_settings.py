"""Conformance cases: a middleware's settings are shown, and wrong ones refused."""

# ruff: noqa: S101 - a case asserts: its module is a test that ships

from __future__ import annotations

from collections.abc import Mapping

from servicekit.endpoint import chain

from .middleware_ground import Ground, Subject


async def repr_shows_settings_and_no_secrets(ground: Ground) -> None:
    """``repr()`` names the middleware and has its settings; a secret is never in it, before a call and after one."""
    subject = ground.subject
    name = getattr(ground.link, "__name__", type(ground.link).__name__)
    for _ in range(2):
        shown = repr(ground.link)
        for word in (name, *subject.shown):
            assert word in shown, f"{word!r} is not in {shown}"
        for secret in subject.secrets:
            assert secret not in shown + repr(chain(ground.link)), "a secret is in the repr"
        await ground.call()


async def wrong_settings_are_refused(ground: Ground) -> None:
    """A setting that makes no sense is refused where it is written, by an exception that names its value."""
    for wrong in ground.subject.wrong:
        text = _refusal_of(ground.subject, wrong)
        assert text is not None, f"{wrong} was taken"
        for name, value in wrong.items():
            for part in value if isinstance(value, list | tuple) else [value]:
                assert repr(part) in text, f"{name}={value!r} is not named in: {text}"


def _refusal_of(subject: Subject, settings: Mapping[str, object]) -> str | None:
    try:
        subject.make(**settings)
    except (ValueError, TypeError) as error:
        return str(error)
    return None
