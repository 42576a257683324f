"""Addresses as messages may show them: without the credentials that one may hold."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

LOCAL = ("file", "local")
"""Kinds of address that name a folder of this machine, and hold no credentials."""


def shown(url: str) -> str:
    """The address with ``***`` for its account, password and query: ``ftp://***@host/x``."""
    kind, account, place, query = _parts(url)
    if "?" in account:  # of the query or of the password
        return f"{kind}***"
    return kind + ("***@" if account else "") + place + ("?***" if query else "")


def secrets(url: str) -> set[str]:
    """What must not be shown of an address: account, password, and the values of its query, as they stand, decoded and encoded."""
    _, account, _, query = _parts(url)
    queries = {query, url.partition("?")[2]} if "?" in account else {query}  # an ``@`` may be of the query
    values = {each.partition("=")[2] for text in queries for each in text.split("&")}
    found = {account, *account.partition(":")[::2], *queries, *values}
    return {form for each in found for form in (each, unquote(each), quote(unquote(each), safe=""))} - {""}


def hidden(text: str, secret: Iterable[str]) -> str:
    """The text with ``***`` for each of these secrets."""
    for each in sorted(secret, key=len, reverse=True):  # the longest first, for one may begin another
        text = text.replace(each, "***")
    return text


def _parts(url: str) -> tuple[str, str, str, str]:
    """(kind with ``://``, account, place, query). All before the last ``@`` is the account: a password may hold any letter."""
    kind, slashes, rest = url.partition("://") if "://" in url else ("", "", url)
    if kind in LOCAL:
        return kind + slashes, "", rest, ""
    account, _, where = rest.rpartition("@")
    place, _, query = where.partition("?")
    return kind + slashes, account, place, query
