"""The service answers what it accepts, refuses the rest clearly, and stays within its limits."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vitc
from tests.asgi import Answer, form, send
from tests.browser import FLAGS
from vitc.cli.main import main
from vitc.data.preprocessing import Preprocessing
from vitc.deploy.classifier import Classifier
from vitc.deploy.predict import Predictor

MISSING = "NO SERVICE: pip install -c constraints.txt -e '.[serve]' to have it tested"
pytest.importorskip("starlette", reason=MISSING)
pytest.importorskip("uvicorn", reason=MISSING)
pytest.importorskip("python_multipart", reason=MISSING)
pytest.importorskip("prometheus_client", reason=MISSING)

from starlette.requests import Request  # noqa: E402
from starlette.responses import HTMLResponse  # noqa: E402
from starlette.routing import Route  # noqa: E402
from uvicorn.config import Config  # noqa: E402
from uvicorn.server import Server  # noqa: E402

from vitc.deploy import serve  # noqa: E402
from vitc.deploy.serve import Answers, application  # noqa: E402
from vitc.deploy.uploads import Limits  # noqa: E402

CLASSES = ("blue", "green", "red")
Capture = pytest.CaptureFixture[str]


def encoded(seed: int = 0, kind: str = "JPEG", size: tuple[int, int] = (50, 40)) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = vitc.create_model("vit_p_tiny", num_classes=3, img_size=32, in_chans=3)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    preprocessing = Preprocessing(
        mean=(0.4,) * 3,
        std=(0.2,) * 3,
        interpolation="bilinear",
        crop=0.875,
        img_size=(32, 32),
    )
    folder = tmp_path_factory.mktemp("served") / "model"
    return vitc.save_pretrained(model, folder, classes=CLASSES, preprocessing=preprocessing)


@pytest.fixture(scope="module")
def classifier(saved: Path) -> Classifier:
    return Classifier.load(saved, "cpu")


class Client:
    """An application, and requests to it that each run alone."""

    def __init__(self, classifier: Any, answers: Answers | None = None, name: str = "m") -> None:
        self.app = application(classifier, answers, name)
        self.service = self.app.state.service

    def post(self, body: Any, content_type: str = "", query: str = "", **more: Any) -> Answer:
        return asyncio.run(send(self.app, "POST", f"/predict{query}", body, content_type, **more))

    def get(self, path: str) -> Answer:
        return asyncio.run(send(self.app, "GET", path))

    def together(self, *bodies: bytes) -> list[Answer]:
        async def all() -> list[Answer]:
            return await asyncio.gather(*(send(self.app, "POST", "/predict", b) for b in bodies))

        return asyncio.run(all())

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.M)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def client(classifier: Classifier) -> Iterator[Client]:
    client = Client(classifier)
    yield client
    client.service.close()


class Slow:
    """A classifier that takes `seconds` an image, or fails."""

    def __init__(self, inner: Classifier, seconds: float = 0.0, fails: bool = False) -> None:
        self.inner, self.seconds, self.fails = inner, seconds, fails
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def probabilities(self, images: list[Tensor]) -> Any:
        self.batches.append(len(images))
        time.sleep(self.seconds * len(images))
        if self.fails:
            raise RuntimeError("no")
        return self.inner.probabilities(images)


def slow(classifier: Classifier, seconds: float, **limits: Any) -> Client:
    return Client(Slow(classifier, seconds), Answers(batch=4, limits=Limits(**limits)))


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_image_is_answered_as_vitc_predict_answers_it(
    client: Client, saved: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"photo.{kind.lower()}"
    file.write_bytes(encoded(1, kind))
    answer = client.post(file.read_bytes())
    assert answer.status == 200
    (found,) = answer.json["images"]
    expected = Predictor(saved)(file).topk(5)[0]
    assert [one["class"] for one in found["top"]] == [label for label, _ in expected]
    given = [one["probability"] for one in found["top"]]
    assert given == pytest.approx([p for _, p in expected], abs=1e-6)
    assert (found["image"], found["class"], found["known"]) == ("image 0", expected[0][0], True)


def test_several_images_are_answered_in_their_order_and_by_name(client: Client) -> None:
    photos = [encoded(i, "PNG") for i in range(5)]
    body, kind = form(*((f"\u00e9 {i}.png", data) for i, data in enumerate(photos)))
    images = client.post(body, kind, "?topk=2").json["images"]
    assert [one["image"] for one in images] == [f"\u00e9 {i}.png" for i in range(5)]
    assert [len(one["top"]) for one in images] == [2] * 5
    alone = [client.post(data).json["images"][0]["top"][0] for data in photos]
    assert [one["top"][0]["class"] for one in images] == [one["class"] for one in alone]


def test_the_answer_is_unknown_below_the_threshold(classifier: Classifier) -> None:
    client = Client(classifier, Answers(threshold=0.999))
    (found,) = client.post(encoded()).json["images"]
    client.service.close()
    assert (found["class"], found["known"]) == ("unknown", False)
    assert found["top"][0]["class"] in CLASSES


def test_requests_that_come_together_share_a_batch(classifier: Classifier) -> None:
    client = slow(classifier, 0.02)
    model = client.service.classifier
    answers = client.together(*(encoded(i) for i in range(9)))
    client.service.close()
    assert [a.status for a in answers] == [200] * 9
    assert max(model.batches) > 1
    assert max(model.batches) <= 4
    assert sum(model.batches) == 9 + 2  # and two to warm up


def test_an_answer_does_not_depend_on_what_it_is_computed_with(classifier: Classifier) -> None:
    client = slow(classifier, 0.01)
    photos = [encoded(i) for i in range(6)]
    together = [a.json["images"][0]["top"][0] for a in client.together(*photos)]
    alone = [client.post(data).json["images"][0]["top"][0] for data in photos]
    client.service.close()
    assert [t["class"] for t in together] == [t["class"] for t in alone]
    assert [t["probability"] for t in together] == pytest.approx(
        [t["probability"] for t in alone], abs=1e-5
    )


# -- refusals --------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of that stated size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def patched(kind: str, at: int, size: bytes) -> bytes:
    """A small image that states another size."""
    data = encoded(0, kind)
    return data[:at] + size + data[at + len(size) :]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is there 3,000 times."""
    file = io.BytesIO()
    Image.new("RGB", (2000, 2000), "teal").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + b"\xff\xd9"


def bomb() -> bytes:
    """100 million pixels in 15 kB."""
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    return file.getvalue()


HOSTILE = {
    "png of 60,000 px": lambda: (png(60_000, 60_000), 413),
    "png of 2 billion px a side": lambda: (png(2**31 - 1, 2**31 - 1), 413),
    "jpeg of 60,000 px": lambda: (
        patched("JPEG", encoded().index(b"\xff\xc0") + 5, struct.pack(">HH", 60_000, 60_000)),
        413,
    ),
    "gif of 60,000 px": lambda: (patched("GIF", 6, struct.pack("<HH", 60_000, 60_000)), 413),
    "bmp of 60,000 px": lambda: (patched("BMP", 18, struct.pack("<ii", 60_000, 60_000)), 413),
    "bomb": lambda: (bomb(), 413),
    "jpeg of many scans": lambda: (many_scans(), 413),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_images_are_refused_in_under_a_second(client: Client, what: str) -> None:
    data, status = HOSTILE[what]()
    start = time.process_time()
    answer = client.post(data)
    assert time.process_time() - start < 1
    assert (answer.status, answer.json["kind"]) == (status, "too large")
    assert answer.json["error"].endswith(".")


@pytest.mark.parametrize(
    ("body", "content_type", "query", "status", "kind"),
    [
        (b"", "", "", 400, "empty"),
        (b"hello", "", "", 415, "no image"),
        (b"hello", "image/jpeg", "", 415, "no image"),
        (encoded()[:400], "image/jpeg", "", 400, "damaged"),
        (encoded(kind="ICO"), "", "", 415, "unsupported"),
        (encoded(kind="PPM"), "", "", 415, "unsupported"),
        (encoded(kind="JPEG2000"), "", "", 415, "unsupported"),
        (encoded(), "", "?topk=0", 400, "query"),
        (encoded(), "", "?topk=\u0663", 400, "query"),
        (encoded(), "", "?topk=1e9", 400, "query"),
        (encoded(), "", "?file=/etc/passwd", 400, "query"),
        (encoded(), "multipart/form-data", "", 400, "form"),
        (encoded(), "multipart/form-data; boundary=x", "", 400, "form"),
        (encoded(), "multipart/mixed; boundary=x", "", 415, "form"),
        (form()[0], form()[1], "", 400, "form"),
        (form(("a", b""))[0], form()[1], "", 400, "empty"),
        (form(("a", encoded()))[0][:-20], form()[1], "", 400, "form"),
        (form(*[("a", encoded())] * 33)[0], form()[1], "", 413, "too many images"),
        (form(("a", encoded()), ("b", b"junk"))[0], form()[1], "", 415, "no image"),
        (bytes(20_000_001), "", "", 413, "too large"),
    ],
)
def test_a_mistake_is_one_clear_error(
    client: Client, body: bytes, content_type: str, query: str, status: int, kind: str
) -> None:
    answer = client.post(body, content_type, query)
    assert (answer.status, answer.json["kind"]) == (status, kind)
    assert answer.json["status"] == "failed"
    assert answer.json["error"].endswith(".")
    assert "Traceback" not in answer.body.decode()


@pytest.mark.parametrize("name", ["--data.bad_files", "training"])
def test_an_error_speaks_of_the_upload_and_not_of_training(client: Client, name: str) -> None:
    assert name not in client.post(encoded()[:400]).body.decode()


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client: Client) -> None:
    chunks = [bytes(1_000_000)] * 30
    assert client.post(chunks).status == 413


@pytest.mark.parametrize("length", ["20000001", "9" * 400])
def test_a_body_is_refused_by_its_stated_length(client: Client, length: str) -> None:
    answer = client.post([b"x"], headers=[("content-length", length)])
    assert answer.status == 413


def test_a_slow_body_is_ended(classifier: Classifier) -> None:
    client = slow(classifier, 0, timeout=0.2)
    answer = client.post([b"x"] * 50, delay=0.05)
    client.service.close()
    assert (answer.status, answer.json["kind"]) == (408, "slow")


def test_a_client_that_leaves_frees_its_place(client: Client) -> None:
    assert client.post([b"x", None]).status == 400
    assert client.service.pending == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("POST", "/healthz", 405),
        ("GET", "/etc/passwd", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/static/serve.html", 404),
    ],
)
def test_there_are_four_routes_and_no_files(
    client: Client, method: str, path: str, status: int
) -> None:
    for host in ("x", "[::1", "\xff"):
        answer = asyncio.run(send(client.app, method, path, headers=[("host", host)]))
        assert (answer.status, answer.json["status"]) == (status, "failed")


def fuzzed(count: int) -> Iterator[tuple[bytes, str]]:
    """Bodies of which none is a whole image, and their Content-Types."""
    rng = np.random.default_rng(7)
    kinds = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
    for i in range(count):
        kind = kinds[i % len(kinds)]
        good = bytearray(encoded(i, kind, (int(rng.integers(20, 90)), int(rng.integers(20, 90)))))
        junk = rng.bytes(int(rng.integers(1, 3000)))
        way = int(rng.integers(8))
        if way == 0:
            yield junk, "image/png"
        elif way == 1:  # the start alone
            yield bytes(good[: int(rng.integers(1, max(2, len(good) // 2)))]), "image/jpeg"
        elif way == 2:  # the right first bytes, then anything
            yield bytes(good[: int(rng.integers(4, 13))]) + junk, "application/octet-stream"
        elif way == 3:  # a PNG's checksums find any change
            good = bytearray(encoded(i, "PNG"))
            good[int(rng.integers(8, len(good) - 12))] ^= 1 << int(rng.integers(8))
            yield bytes(good), ""
        elif way == 4:  # a form that does not end
            body, content_type = form(("a", bytes(good)), ("b", junk))
            yield body[: int(rng.integers(1, len(body) - 5))], content_type
        elif way == 5:  # a form with an image that is none
            body, content_type = form(("a", bytes(good)), (junk[:9].hex(), junk))
            yield body, content_type
        elif way == 6:  # a form by name only
            yield bytes(good), f"multipart/form-data; boundary={junk[:40].hex()}; charset=idna"
        else:
            yield png(*(int(v) for v in rng.integers(20_000, 2**31, 2)), junk), "image/png"


def refused(client: Client, count: int) -> None:
    for i, (body, content_type) in enumerate(fuzzed(count)):
        answer = client.post(body, content_type)
        assert 400 <= answer.status < 500, (i, content_type, body[:60], answer)
        assert answer.json["error"], i
    assert client.service.pending == 0


def test_fuzzed_uploads_are_refused(client: Client) -> None:
    refused(client, 64)


@pytest.mark.slow
def test_a_thousand_fuzzed_uploads_are_refused(client: Client) -> None:
    refused(client, 1000)


def test_flipped_bits_never_fail_the_service(client: Client) -> None:
    rng = np.random.default_rng(3)
    for i in range(40):
        data = bytearray(encoded(i, ("JPEG", "WEBP", "GIF", "TIFF")[i % 4]))
        for at in rng.integers(0, len(data), 3):
            data[at] ^= 1 << int(rng.integers(8))
        assert client.post(bytes(data)).status in (200, 400, 413, 415)


# -- overload, failures ----------------------------------------------------------------------------


def test_what_is_accepted_is_answered_and_the_rest_refused(classifier: Classifier) -> None:
    client = slow(classifier, 0.01, queue=8, max_images=8)
    answers = client.together(*(encoded(i % 5) for i in range(60)))
    counts = {status: [a.status for a in answers].count(status) for status in (200, 503)}
    assert counts == {200: 8, 503: 52}
    retry = [int(a.headers["retry-after"]) for a in answers if a.status == 503]
    assert min(retry) >= 1
    assert client.service.pending == 0
    assert client.metric('vitc_requests_total{status="503"}') == 52
    assert client.metric('vitc_errors_total{kind="busy"}') == 52
    client.service.close()


def test_images_that_would_wait_too_long_are_refused(classifier: Classifier) -> None:
    client = slow(classifier, 0.1, timeout=0.8)
    statuses = [a.status for a in client.together(*[encoded()] * 30)]
    assert set(statuses) == {200, 503}
    assert 1 <= statuses.count(200) <= 8
    client.service.close()


def form_of(count: int) -> tuple[bytes, str]:
    return form(*[(f"{i}.jpg", encoded()) for i in range(count)])


def test_images_of_a_request_do_not_wait_for_themselves(classifier: Classifier) -> None:
    client = slow(classifier, 0.0, timeout=2)
    client.service.pace = 0.12  # 8 images in half of the time
    many = client.post(*form_of(9))
    assert (many.status, many.json["kind"]) == (413, "too many images")
    assert "9 images would take about 1.1 s" in many.json["error"]
    assert "at most 8 at once" in many.json["hint"]
    assert "retry-after" not in many.headers
    client.service.pace = 0.12
    assert client.post(*form_of(8)).status == 200
    client.service.pace, client.service.pending = 0.12, 1  # another's
    busy = client.post(*form_of(8))
    assert (busy.status, busy.json["error"]) == (503, "The service is busy: 1 image is waiting.")
    assert client.post(*form_of(7)).status == 200
    client.service.pending = 0
    client.service.close()


def test_pictures_that_take_much_memory_are_decoded_one_after_the_other(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    many: list[int] = []
    inside: set[int] = set()
    prepare = Classifier.prepare

    def slowly(self: Classifier, pixels: Any) -> Tensor:
        inside.add(threading.get_ident())
        time.sleep(0.1)
        many.append(len(inside))
        inside.discard(threading.get_ident())
        return prepare(self, pixels)

    monkeypatch.setattr(serve, "cores", lambda: 4)
    # PNGs of 160,000 pixels, for four of which there is room; then for one.
    for pixels, at_once in ((640_000, 4), (200_000, 1)):
        client = Client(classifier, Answers(limits=Limits(max_pixels=pixels)))
        monkeypatch.setattr(Classifier, "prepare", slowly)
        many.clear()
        answers = client.together(*[encoded(kind="PNG", size=(400, 400))] * 4)
        assert [a.status for a in answers] == [200] * 4
        assert max(many) <= at_once
        assert at_once == 1 or max(many) > 1
        monkeypatch.undo()
        monkeypatch.setattr(serve, "cores", lambda: 4)
        client.service.close()


def test_waiting_for_a_decoder_counts_as_time_to_answer(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "cores", lambda: 1)
    client = slow(classifier, 0.0, timeout=0.3)
    client.service.pool.submit(time.sleep, 1)
    late = client.post(*form_of(1))
    assert (late.status, late.json["kind"]) == (503, "timeout")
    client.service.close()


def test_an_answer_that_is_late_is_an_error_and_costs_no_other(classifier: Classifier) -> None:
    client = slow(classifier, 0.0, timeout=0.2)
    client.service.classifier.seconds = 0.5
    late = client.post(encoded())
    assert (late.status, late.json["kind"]) == (503, "timeout")
    assert "retry-after" in late.headers
    client.service.classifier.seconds = 0.0
    time.sleep(0.4)
    assert client.post(encoded()).status == 200
    client.service.close()


def test_a_failure_of_the_model_is_logged_and_answered(
    classifier: Classifier, caplog: pytest.LogCaptureFixture
) -> None:
    client = slow(classifier, 0.0)
    client.service.classifier.fails = True
    answers = client.together(*[encoded()] * 3)
    client.service.classifier.fails = False
    assert [(a.status, a.json["kind"]) for a in answers] == [(500, "internal")] * 3
    assert "RuntimeError: no" in caplog.text
    assert "RuntimeError" not in answers[0].body.decode()
    assert client.post(encoded()).status == 200
    client.service.close()


# -- what is around it -----------------------------------------------------------------------------


def test_health_and_metrics(classifier: Classifier) -> None:
    client = Client(classifier)
    client.post(encoded())
    client.post(b"junk")
    health = client.get("/healthz")
    assert (health.status, health.json["status"], health.json["classes"]) == (200, "ok", 3)
    assert client.metric('vitc_requests_total{status="200"}') == 1
    assert client.metric('vitc_errors_total{kind="no image"}') == 1
    assert client.metric("vitc_images_total") == 1
    assert client.metric("vitc_request_seconds_count") == 2
    assert client.metric("vitc_batch_images_count") == 3  # two to warm up
    assert client.metric("vitc_queue_images") == 0
    client.service.close()
    assert client.get("/healthz").status == 503


def test_the_page_loads_nothing_and_escapes_names(classifier: Classifier) -> None:
    client = Client(classifier, Answers(threshold=0.6), "<script>alert(1)</script>")
    page = client.get("/")
    client.service.close()
    text = page.body.decode()
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script>alert" not in text
    assert "60 %" in text
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org)", text)


PROBE = """<iframe id="f" width="%d" height="2000" src="/"></iframe><pre id="o"></pre><script>
onload = async () => {
  const d = f.contentDocument, files = new f.contentWindow.DataTransfer();
  const bytes = Uint8Array.from(atob("%s"), c => c.charCodeAt(0));
  files.items.add(new File(["junk"], "notes.jpg"));
  files.items.add(new File([bytes], "a_photo_with_a_long_name" + "x".repeat(90) + ".png"));
  d.getElementById("files").files = files.files;
  d.getElementById("files").dispatchEvent(new f.contentWindow.Event("change"));
  while (d.querySelectorAll(".image h2, .image .stop").length < 2)
    await new Promise(done => setTimeout(done, 50));
  const text = query => [...d.querySelectorAll(query)].map(e => e.textContent);
  o.textContent = JSON.stringify({
    title: text(".image h2"), error: text(".stop"), rows: text(".tops > span"),
    bars: [...d.querySelectorAll(".tops rect")].map(r => r.getBoundingClientRect().width),
    scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth });
};</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_images_put_on_the_page_get_bars_or_an_error(
    classifier: Classifier, tmp_path: Path, width: int
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("NO CHROMIUM: run scripts/install_browser.sh to have the page looked at")
    app = application(classifier, Answers(threshold=0.2), "m")
    probe = PROBE % (width, base64.b64encode(encoded(1, "PNG")).decode())

    async def outer(request: Request) -> HTMLResponse:
        return HTMLResponse(probe)

    app.router.routes.append(Route("/probe", outer))
    listening = serve.listen("127.0.0.1", 0)
    server = Server(Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]))
    thread.start()
    words = [chromium, *FLAGS.split(), f"--user-data-dir={tmp_path}", "--window-size=1400,1200"]
    words += ["--dump-dom", f"{serve.url_of(listening)}/probe"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=True)
    server.should_exit = True
    thread.join()
    assert "CONSOLE" not in done.stderr
    seen = json.loads(done.stdout.partition('id="o">')[2].partition("</pre>")[0])
    assert seen["error"] == [
        "'notes.jpg' cannot be used: it is not an image in a supported format."
    ]
    assert seen["title"][0] in CLASSES
    assert {seen["rows"][0], seen["rows"][3], seen["rows"][6]} == set(CLASSES)
    assert seen["bars"] == sorted(seen["bars"], reverse=True)
    assert seen["bars"][0] > seen["bars"][-1] > 0
    assert seen["scroll"] <= seen["client"]


# -- the command -----------------------------------------------------------------------------------


class Running:
    """`vitc serve` on a free port of this machine."""

    def __init__(self, saved: Path, *words: str) -> None:
        command = [sys.executable, "-m", "vitc", "serve", str(saved), "--port", "0", *words]
        pipe = subprocess.PIPE
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert ": http://127.0.0.1:" in line, self.process.communicate()
        self.url = line.rpartition(": ")[2].strip()

    def post(self, data: bytes) -> tuple[int, Any]:
        request = urllib.request.Request(f"{self.url}/predict", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


def test_over_loopback_sigterm_ends_it_after_the_accepted_requests(saved: Path) -> None:
    running = Running(saved, "--threshold", "0.5", "--window", "2000", "--batch", "64")
    try:
        status, answer = running.post(encoded())
        assert (status, len(answer["images"])) == (200, 1)
        assert running.post(b"junk")[0] == 415
        body, kind = form(*[("a.jpg", encoded())] * 20)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + body[:1000])
            time.sleep(0.3)
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[1000:])
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.startswith(b"HTTP/1.1 200")
        assert len(json.loads(received.partition(b"\r\n\r\n")[2])["images"]) == 20
        _, err = running.process.communicate(timeout=30)
        assert running.process.returncode == 143
        assert "SIGTERM" in err
        assert "Traceback" not in err
    finally:
        running.process.kill()


def test_an_address_that_cannot_be_had_is_one_message(saved: Path, capsys: Capture) -> None:
    with serve.listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert not serve.is_public(taken)
        assert main(["serve", str(saved), "--port", port]) == 2
        err = capsys.readouterr().err
        assert port in err
        assert "--port" in err
    for host in ("no.such.host.invalid", "no..host", ""):
        assert main(["serve", str(saved), "--host", host]) == 2
        assert "--host" in capsys.readouterr().err
    with serve.listen("0.0.0.0", 0) as public:
        assert serve.is_public(public)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--port 70000", "0 to 65535"),
        ("--threshold 60", "0 to 1"),
        ("--timeout 0", "from 0.001 to 3600"),
        ("--window -1", "from 0 to 10000"),
        ("--batch 0", "at least 1"),
        ("--max-images 100", "--max-images 100 exceeds --queue 64"),
    ],
)
def test_wrong_options_are_named(saved: Path, capsys: Capture, words: str, expected: str) -> None:
    assert main(["serve", str(saved), *words.split()]) == 2
    assert expected in capsys.readouterr().err


def test_what_is_no_model_is_refused(tmp_path: Path, capsys: Capture) -> None:
    assert main(["serve", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_event_loop_is_free_while_the_model_works(classifier: Classifier) -> None:
    client = slow(classifier, 1.0)

    async def health_during() -> tuple[float, Answer]:
        working = asyncio.ensure_future(send(client.app, "POST", "/predict", encoded()))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await send(client.app, "GET", "/healthz")
        return time.monotonic() - start, await working

    waited, answer = asyncio.run(health_during())
    client.service.close()
    assert waited < 0.5
    assert answer.status == 200
    assert threading.active_count() < 30
