"""Chains in words, for whoever wants to see what stands around a method: settings as each link shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .endpoint import Chain, Middleware, Only, shown
from .method import Idempotency, Method


def explained(title: str, blocks: Iterable[str], notes: Sequence[str]) -> str:
    """Return ``blocks`` under ``title``, and under them what holds for every call without being a link."""
    always = "\n".join(["Always, and not links:", *(f"   - {note}" for note in notes)])
    return "\n\n".join([title, *blocks, always]) + "\n"


def blocks(links: Chain, methods: Iterable[Method], inside: Sequence[str]) -> list[str]:
    """Return a block for all ``methods`` with the same links around them, and ``inside`` of these what stands there.

    Sorted by path, the server's own methods last. What ``only`` keeps from all of them has a block of its own: it is
    often a mistyped path.
    """
    known = sorted(methods, key=lambda method: (method.auxiliary, method.path))
    groups: dict[tuple[bool, tuple[Middleware, ...]], list[Method]] = {}
    for method in known:
        groups.setdefault((method.auxiliary, tuple(links.of(method))), []).append(method)
    found = [block([_described(method) for method in group], around, inside) for (_, around), group in groups.items()]
    idle = [link for link in links.links if isinstance(link, Only) and not any(map(link.applied, known))]
    if known and idle:
        found.append("\n".join(["Around none of these methods:", *(f"   - {shown(link)}" for link in idle)]))
    return found


def block(heads: Sequence[str], around: Iterable[Middleware], inside: Sequence[str]) -> str:
    """Return ``heads``, one a line, and under them the links, outermost first, and then what they stand around."""
    lines = [f"{number:>4}. {shown(link)}" for number, link in enumerate(around, 1)]
    return "\n".join([*heads, *lines, *(f"   -> {what}" for what in inside)])


def _described(method: Method) -> str:
    words = [method.kind.value]
    if method.idempotency is not Idempotency.UNKNOWN:
        words.append(method.idempotency.value)
    if method.auxiliary:
        words.append("the server's own: limits on load and time let it pass")
    return f"{method.path} ({', '.join(words)})"
