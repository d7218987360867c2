"""A model behind HTTP: which requests are accepted, and what is answered?

The event loop only receives and sends. Bodies are parsed and images decoded in a few threads, and
one thread runs the model on what has arrived together. What is accepted is answered; what would
have to wait too long is refused at once, so that memory and waiting stay bounded under any load.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor
from uvicorn.config import Config
from uvicorn.server import Server

from vitc.deploy.batching import Batcher
from vitc.deploy.classifier import Classifier
from vitc.deploy.predict import best_classes
from vitc.deploy.uploads import (
    MOST_PIXEL_BYTES,
    Limits,
    Refused,
    Upload,
    memory_of,
    read_upload,
    read_uploads,
)
from vitc.errors import ConfigError
from vitc.machine import cores, memory_kept, sigterm_raises
from vitc.views.html import render_template
from vitc.wording import counted

UNKNOWN = "unknown"
DECODERS = 4  # threads at most
PACE_KEPT = 0.9  # of the running mean of seconds an image
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LONGEST_LENGTH = 15  # digits of a Content-Length


@dataclass(frozen=True)
class Answers:
    """How predictions are given: the best `topk` classes; "unknown" where the best probability is
    below `threshold`. A batch has at most `batch` images and waits `window` seconds for them."""

    topk: int = 5
    threshold: float = 0.0
    batch: int = 16
    window: float = 0.005
    limits: Limits = field(default_factory=Limits)


class Metrics:
    """What Prometheus reads from /metrics."""

    def __init__(self, pending: Callable[[], int]) -> None:
        self.registry = all = CollectorRegistry()
        ProcessCollector(registry=all)
        self.requests = Counter(
            "vitc_requests", "Requests to /predict by HTTP status", ["status"], registry=all
        )
        self.errors = Counter(
            "vitc_errors", "Requests to /predict without predictions", ["kind"], registry=all
        )
        self.images = Counter("vitc_images", "Images that were classified", registry=all)
        self.seconds = Histogram(
            "vitc_request_seconds",
            "Time from a request's header to its answer",
            buckets=SECONDS,
            registry=all,
        )
        self.batches = Histogram(
            "vitc_batch_images",
            "Images in a batch of the model",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=all,
        )
        Gauge("vitc_queue_images", "Images accepted, not yet answered", registry=all).set_function(
            pending
        )


class Room:
    """Memory of `size` bytes that threads share; each waits until there is enough for it."""

    def __init__(self, size: int) -> None:
        self.size, self.taken, self.changed = size, 0, Condition()

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or self.taken + size <= self.size)
            self.taken += size
        try:
            yield
        finally:
            with self.changed:
                self.taken -= size
                self.changed.notify_all()


class Service:
    """A classifier that answers requests, under a name. `close` ends its threads."""

    def __init__(self, classifier: Classifier, answers: Answers, name: str) -> None:
        self.name = name
        self.classifier, self.answers, self.limits = classifier, answers, answers.limits
        self.pending = 0
        """Images accepted and not yet answered."""
        self.metrics = Metrics(lambda: self.pending)
        self.pool = ThreadPoolExecutor(min(DECODERS, cores()), "decode")
        self.room = Room(MOST_PIXEL_BYTES * self.limits.max_pixels)
        self.batcher = Batcher(
            classifier.probabilities,
            answers.batch,
            answers.window,
            lambda: self.pending,
            self.metrics.batches.observe,
        )
        blank = classifier.prepare(np.zeros((64, 64, classifier.in_chans), np.uint8))
        self.batcher.submit(blank).result()  # the first batch is slower: memory, kernels
        start = time.perf_counter()
        self.batcher.submit(blank).result()
        self.pace = time.perf_counter() - start
        """Seconds until an answer for each image that is pending, a running mean."""

    def close(self) -> None:
        self.pool.shutdown()
        self.batcher.close()

    async def predict(self, request: Request) -> Response:
        """POST /predict: the best classes of each image, or one error for the request."""
        start = time.perf_counter()
        try:
            response: Response = JSONResponse({"images": await self._classified(request)})
        except Refused as refused:
            response = self._error(refused)
        except ClientDisconnect:
            response = self._error(Refused(400, "disconnected", "The request is incomplete."))
        except Exception:
            logging.getLogger("vitc").exception("A request to /predict failed.")
            message = "The model or the service failed on this request; its log has the traceback."
            response = self._error(Refused(500, "internal", message))
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.perf_counter() - start)
        return response

    def _error(self, refused: Refused) -> Response:
        self.metrics.errors.labels(refused.kind).inc()
        return _refusal(refused)

    async def _classified(self, request: Request) -> list[dict[str, Any]]:
        topk = _topk(request, self.answers.topk)
        self._accept(1)  # before the body is received, whose memory counts
        accepted = 1
        try:
            body = await _received(request, self.limits)
            start, ahead = time.perf_counter(), self.pending
            kind = request.headers.get("content-type", "")
            async with self._in_time():
                uploads = await asyncio.to_thread(read_uploads, body, kind, self.limits)
                del body
                self._accept(len(uploads) - 1, own=1)
                accepted = len(uploads)
                rows = await self._rows(uploads)
            each = (time.perf_counter() - start) / max(ahead, accepted)
            self.pace = PACE_KEPT * self.pace + (1 - PACE_KEPT) * each
        finally:
            self.pending -= accepted
        self.metrics.images.inc(accepted)
        return [self._shown(u.name, row, topk) for u, row in zip(uploads, rows, strict=True)]

    def _accept(self, images: int, own: int = 0) -> None:
        """Raises Refused: more images would wait than may, or longer than half the time to answer.

        `own`: images of the same request that are accepted already. One is accepted by an idle
        service whatever the pace, which only answers can correct.
        """
        most = self.limits.timeout / 2
        ahead, many = self.pending - own, own + images
        possible = max(1, min(self.limits.queue, int(most / self.pace)))
        if images and many > possible:
            message = f"{counted(many, 'image')} would take about {many * self.pace:.1f} s"
            message += f", more than half of the {self.limits.timeout:g} s to answer them."
            hint = f"Send at most {possible:,} at once, or start the service with a longer"
            raise Refused(413, "too many images", message, f"{hint} --timeout.")
        full = ahead + many > self.limits.queue
        if images and (full or (ahead > 0 and (ahead + many) * self.pace > most)):
            retry = {"Retry-After": str(max(1, math.ceil(ahead * self.pace)))}
            waiting = f"{counted(ahead, 'image')} {'is' if ahead == 1 else 'are'} waiting"
            message = f"The service is busy: {waiting}."
            raise Refused(503, "busy", message, "Send the request again later.", retry)
        self.pending += images

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self.limits.timeout):
                yield
        except TimeoutError as error:
            message = f"The answer was not ready within {self.limits.timeout:g} s."
            retry = {"Retry-After": str(math.ceil(self.limits.timeout))}
            raise Refused(503, "timeout", message, "Send it again later.", retry) from error

    async def _rows(self, uploads: list[Upload]) -> list[NDArray[np.float32]]:
        """Probabilities (K,) of each image."""
        tasks = [asyncio.ensure_future(self._row(upload)) for upload in uploads]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after a refusal: what has not begun does not begin
                task.cancel()

    async def _row(self, upload: Upload) -> NDArray[np.float32]:
        decoding = asyncio.get_running_loop().run_in_executor(self.pool, self._prepared, upload)
        return await asyncio.wrap_future(self.batcher.submit(await decoding))

    def _prepared(self, upload: Upload) -> Tensor:
        with self.room.of(memory_of(upload, self.limits)):
            pixels = read_upload(upload, self.classifier.in_chans, self.limits)
            return self.classifier.prepare(pixels)

    def _shown(self, name: str, row: NDArray[np.float32], topk: int) -> dict[str, Any]:
        best = best_classes(row, self.classifier.classes, topk)
        known = best[0][1] >= self.answers.threshold
        return {
            "image": name,
            "class": best[0][0] if known else UNKNOWN,
            "known": known,
            "top": [{"class": label, "probability": p} for label, p in best],
        }

    # -- the other routes

    async def health(self, request: Request) -> Response:
        """GET /healthz: 200 while the model's thread lives."""
        alive = self.batcher.thread.is_alive()
        about = {
            "status": "ok" if alive else "failed",
            "model": self.name,
            "classes": len(self.classifier.classes),
            "queue": self.pending,
        }
        return JSONResponse(about, 200 if alive else 503)

    async def measured(self, request: Request) -> Response:
        """GET /metrics"""
        shown = generate_latest(self.metrics.registry)
        return Response(shown, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def page(self, request: Request) -> Response:
        """GET /: a page to drop images on, which loads nothing from elsewhere."""
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src blob:; connect-src 'self'; frame-ancestors 'self'; base-uri 'none'"
        )
        text = render_template(
            "serve.html",
            nonce=nonce,
            name=self.name,
            classes=len(self.classifier.classes),
            threshold=self.answers.threshold,
            topk=min(self.answers.topk, len(self.classifier.classes)),
            megabytes=self.limits.max_bytes / 1e6,
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def application(
    classifier: Classifier, answers: Answers | None = None, name: str | None = None
) -> Starlette:
    """The ASGI application of a model, for any server. Its `state.service` is the Service.

    name: what visitors see; None: the classifier's, which has its folder.
    """
    service = Service(classifier, answers or Answers(), name or classifier.name)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.scope['path'][:100]}: {error.detail}."
        hint = "POST /predict, GET /, /healthz or /metrics."
        refused = Refused(error.status_code, "no route", message, hint, error.headers)
        return _refusal(refused)

    app = Starlette(
        routes=[
            Route("/", service.page),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/healthz", service.health),
            Route("/metrics", service.measured),
        ],
        exception_handlers={HTTPException: no_route},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _refusal(refused: Refused) -> Response:
    values = {"status": "failed", "kind": refused.kind, "error": refused.message}
    if refused.hint is not None:
        values["hint"] = refused.hint
    return JSONResponse(values, refused.status, headers=refused.headers)


def _topk(request: Request, default: int) -> int:
    """Of the query, `?topk=3`."""
    unknown = [name for name in request.query_params if name != "topk"]
    if unknown:
        message = f"Unknown query parameter {unknown[0][:60]!r}."
        raise Refused(400, "query", message, "The only one is topk, an integer of at least 1.")
    text = request.query_params.get("topk", str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        message = f"topk is {text[:60]!r}; it must be an integer of at least 1."
        raise Refused(400, "query", message)
    return int(text)


async def _received(request: Request, limits: Limits) -> bytes:
    """The body of a request. Raises Refused: too many bytes, or too slow."""
    hint = "Send a smaller image, or fewer at once."
    many = Refused(413, "too large", f"The body exceeds {limits.max_bytes:,} bytes.", hint)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > LONGEST_LENGTH or int(length) > limits.max_bytes):
        raise many
    chunks, received = [], 0
    try:
        async with asyncio.timeout(limits.timeout):
            async for chunk in request.stream():
                received += len(chunk)
                if received > limits.max_bytes:
                    raise many
                chunks.append(chunk)
    except TimeoutError as error:
        message = f"The body did not arrive within {limits.timeout:g} s."
        raise Refused(408, "slow", message, headers={"Connection": "close"}) from error
    return b"".join(chunks)


# -- over a port -----------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ConfigError: the address is taken, unknown or not allowed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except (OSError, UnicodeError) as error:  # the latter for a name that none can have
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The service cannot listen on {host!r} port {port}: {why}.",
            "Choose another with --host and --port; --port 0 takes any free one.",
        ) from error


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def is_public(listening: socket.socket) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def run(app: Starlette, listening: socket.socket, timeout: float) -> None:
    """Answer requests until Ctrl-C or SIGTERM; then those that were accepted, and end.

    timeout: seconds in which one is received, and answered. Raises KeyboardInterrupt or
    InterruptedRun.
    """
    config = Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(2 * timeout) + 1,
    )
    # The server holds SIGTERM back, then raises it again.
    with memory_kept(), sigterm_raises("Stopped by SIGTERM, after the accepted requests."):
        Server(config).run(sockets=[listening])
