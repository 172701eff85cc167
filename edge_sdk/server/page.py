"""The files of the page, read once: what a client asks for is looked up here, never on the disk."""

from __future__ import annotations

from importlib import resources

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

# Nothing from elsewhere, nothing inline, no frame around it. The websocket's address is that of the page.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' {socket}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",  # a token may stand in the address
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def read_page() -> dict[str, tuple[str, bytes]]:
    """name -> (content type, bytes) of every file of the page."""
    folder = resources.files("edge_sdk") / "server" / "page"
    found = {}
    for file in folder.iterdir():
        kind = _TYPES.get(file.name.rpartition(".")[2])
        if kind and file.is_file():
            found[file.name] = (kind, file.read_bytes())
    return found


def headers_for(host: str) -> dict[str, str]:
    socket = f"ws://{host} wss://{host}" if _plain(host) else ""
    return {name: value.format(socket=socket) for name, value in HEADERS.items()}


def _plain(host: str) -> bool:
    """It goes into a header."""
    return bool(host) and all(c.isalnum() or c in ".-_:[]" for c in host)
