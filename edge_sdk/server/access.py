"""Who may come in: by the name the server was called, the page that asks, and a token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge_sdk.errors import Error

PROTOCOL = "realtime"
_KEY_PROTOCOL = "openai-insecure-api-key."  # how browsers, which can set no header, hand over a key
_BEARER = "Bearer "
MIN_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """
    Args:
        token: what clients must know; None lets everybody in who reaches the server.
        hosts: names the server may be called, beside addresses and localhost.
        origins: pages of other servers that may open a websocket, as "https://app.example".
    """

    token: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def knows_host(self, host: str) -> bool:
        """A name that an attacker's DNS points here is none of ours; an address cannot be pointed anywhere."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name == "localhost" or name in self.hosts or is_address(name)

    def knows_origin(self, origin: str | None, host: str, scheme: str) -> bool:
        """Browsers say which page opens a websocket; other programs say nothing."""
        if origin is None:
            return True
        return origin in self.origins or origin.lower() == f"{scheme}://{host}".lower()

    def has_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
        """In the Authorization header, a websocket subprotocol or the query."""
        if self.token is None:
            return True
        given = []
        if (header := headers.get("Authorization", "")).startswith(_BEARER):
            given.append(header.removeprefix(_BEARER))
        for protocol in headers.get("Sec-WebSocket-Protocol", "").split(","):
            if (protocol := protocol.strip()).startswith(_KEY_PROTOCOL):
                given.append(protocol.removeprefix(_KEY_PROTOCOL))
        given.append(query.get("token", ""))
        wanted = self.token.encode()
        return any(hmac.compare_digest(g.encode("utf-8", "replace"), wanted) for g in given)  # each in constant time


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def check_access(host: str, token: str | None, *, open_to_all: bool) -> None:
    """
    Raises:
        Error: others could reach the server, and nothing would ask them who they are.
    """
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise Error(
            f"the token must be at least {MIN_TOKEN} printable ASCII characters without spaces: make one with "
            "`python3 -c 'import secrets; print(secrets.token_urlsafe(24))'`"
        )
    if not is_loopback(host) and token is None and not open_to_all:
        raise Error(
            f"'{host}' can be reached from other machines: give a token (EDGE_SDK_TOKEN, --token), or say "
            "--open-to-all if everybody there may use the model"
        )
