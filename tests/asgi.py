"""Requests to an ASGI application without a port, for the tests of the service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

BOUNDARY = "vitc-test-boundary"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def send(
    app: Any,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    content_type: str = "",
    headers: Sequence[tuple[str, str]] = (),
    delay: float = 0.0,
) -> Answer:
    """One request. `body`: whole, or in chunks with `delay` seconds before each; a chunk of None
    is a client that has gone."""
    chunks = [body] if isinstance(body, bytes) else list(body)
    given = [("content-type", content_type)] if content_type else []
    given += [("content-length", str(len(body)))] if isinstance(body, bytes) else []
    target, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": target,
        "raw_path": target.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in [*given, *headers]],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(delay)
        chunk = chunks.pop(0)
        if chunk is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

    async def reply(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, reply)
    start = sent[0]
    found = {k.decode(): v.decode("latin-1") for k, v in start["headers"]}
    return Answer(start["status"], found, b"".join(m.get("body", b"") for m in sent[1:]))


def form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart body of (name, content), and its Content-Type."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(
        parts
    ) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"
