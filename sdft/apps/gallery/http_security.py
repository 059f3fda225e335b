"""Security of the gallery: only localhost, only reading, and no scripts but this project's own."""

import base64
import hashlib
import re

from sdft.evaluation.plots.templates import TEMPLATE_FOLDER

ALLOWED_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?")  # against DNS rebinding
ALLOWED_METHODS = ("GET", "HEAD")
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def build_report_policy() -> str:
    """Policy for HTML files in run folders: no origin, no network, and only the script of `report.html`."""
    scripts = re.findall(
        r"<script>(.*?)</script>", (TEMPLATE_FOLDER / "report.html").read_text(encoding="utf-8"), re.DOTALL
    )
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {sources}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class SecurityMiddleware:
    """ASGI middleware that refuses other hosts and methods, and adds security headers."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                new = [
                    (name.encode(), value.encode())
                    for name, value in SECURITY_HEADERS.items()
                    if name.encode() not in present
                ]
                message = message | {"headers": [*message["headers"], *new]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not ALLOWED_HOST.fullmatch(hosts[0]):
            await send_refusal(send_with_headers, 421, "Use the address 127.0.0.1 or localhost.")
        elif scope["method"] not in ALLOWED_METHODS:
            await send_refusal(send_with_headers, 405, "The gallery is read-only.", (b"allow", b"GET, HEAD"))
        else:
            await self.app(scope, receive, send_with_headers)


async def send_refusal(send, status: int, text: str, *extra_headers: tuple[bytes, bytes]) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        *extra_headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
