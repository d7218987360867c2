"""Which images does a request hold, and which are refused before they cost anything?

A refusal is a `Refused` with its HTTP status. Free of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import MultipartParser, parse_options_header

from vitc.data.decode import is_jpeg, read_image, stated_size
from vitc.errors import BrokenFileError
from vitc.wording import counted, printable

HOW = "Send an image file as the body, or several as multipart/form-data."
# ICO's pictures can be larger than it states, and a JPEG 2000 of a few kilobytes takes a gigabyte.
UNSUPPORTED = ("ICO", "JPEG2000", "PPM")
FORMATS = "Send JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC; curl needs --data-binary."
SMALLER = "Send a smaller image."
LONGEST_NAME = 200  # characters of a file's name in an answer
# Bytes of memory a pixel, at the peak of decoding: WebP and AVIF with opacity 24, PNG 16, JPEG 3
# (CMYK: 8), TIFF of floats 36.
PIXEL_BYTES, MOST_PIXEL_BYTES = {"JPEG": 8, "TIFF": 36}, 25
SCANS = 20  # of a JPEG as large as is allowed: each costs a pass over all pixels
STATUS = {"no image": 415, "unsupported": 415}  # of a BrokenFileError's kind


@dataclass(frozen=True)
class Limits:
    """What a request may cost, and how many images may wait.

    timeout: seconds to receive a request, and as many to answer it. queue: images that are accepted
    and not yet answered, those of requests still being received included.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 32
    queue: int = 64
    timeout: float = 10.0


class Refused(Exception):
    """A request that gets no predictions. `kind` is a label of the metrics."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        hint: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.hint = status, kind, message, hint
        self.headers = dict(headers or {})


class Upload(NamedTuple):
    """The bytes of what should be an image, and the name that it was sent under."""

    name: str
    data: bytes


@dataclass
class _Part:
    fields: list[bytes] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)


def read_uploads(body: bytes, content_type: str, limits: Limits) -> list[Upload]:
    """The images of a body, undecoded: each part of a form, else the body itself."""
    if not body:
        raise Refused(400, "empty", "The request has no body.", HOW)
    kind, _, _ = content_type.lower().partition(";")
    if not kind.strip().startswith("multipart/"):
        return [Upload("image 0", body)]
    if kind.strip() != "multipart/form-data":
        raise Refused(415, "form", f"Content-Type {printable(kind)[:60]!r} is not supported.", HOW)
    parts = _parts(body, content_type, limits)
    if not parts:
        raise Refused(400, "form", "The form has no image.", HOW)
    return [Upload(_name(part, i), b"".join(part.data)) for i, part in enumerate(parts)]


def _parts(body: bytes, content_type: str, limits: Limits) -> list[_Part]:
    parts: list[_Part] = []
    ended: list[bool] = []

    def begin() -> None:
        if len(parts) == limits.max_images:
            message = f"The form has more than {counted(limits.max_images, 'part')}."
            raise Refused(413, "too many images", message, "Send several requests.")
        parts.append(_Part())

    def name(data: bytes, start: int, end: int) -> None:
        parts[-1].fields[-1] += data[start:end].lower()

    def value(data: bytes, start: int, end: int) -> None:
        parts[-1].values[-1] += data[start:end]

    def new_header() -> None:
        parts[-1].fields.append(b"")
        parts[-1].values.append(b"")

    def content(data: bytes, start: int, end: int) -> None:
        parts[-1].data.append(data[start:end])

    try:
        boundary = parse_options_header(content_type)[1][b"boundary"]
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_begin": new_header,
                "on_header_field": name,
                "on_header_value": value,
                "on_part_data": content,
                "on_end": lambda: ended.append(True),
            },
        )
        parser.write(body)
        parser.finalize()
    except Refused:
        raise
    except Exception as error:  # of a stranger's bytes; the parser's errors have no common class
        raise Refused(400, "form", "The multipart body is malformed.", HOW) from error
    if not ended:
        raise Refused(400, "form", "The multipart body is incomplete.", "Send it again.")
    return parts


def _name(part: _Part, index: int) -> str:
    """The file's name, else the field's."""
    disposition = dict(zip(part.fields, part.values, strict=True)).get(b"content-disposition", b"")
    try:
        options = parse_options_header(disposition)[1]
    except Exception:  # as above; a name is not worth a refusal
        options = {}
    given = options.get(b"filename") or options.get(b"name") or b""
    text = printable(given.decode("utf-8", "replace"))
    return text[:LONGEST_NAME] or f"image {index}"


def memory_of(upload: Upload, limits: Limits) -> int:
    """Bytes of memory that decoding takes at most. Raises Refused, before anything is decoded."""
    name, data = upload
    if not data:
        raise Refused(400, "empty", f"{name!r} is empty.", HOW)
    stated = stated_size(data)
    if stated is None:  # not an image, or far too large: the decoder refuses it by its header
        return MOST_PIXEL_BYTES * limits.max_pixels
    kind, height, width = stated
    if kind in UNSUPPORTED:
        raise Refused(415, "unsupported", f"{name!r} is a file of format {kind}.", FORMATS)
    _check_cost(height, width, upload, limits)
    return height * width * PIXEL_BYTES.get(kind, MOST_PIXEL_BYTES)


def read_upload(upload: Upload, in_chans: int, limits: Limits) -> NDArray[np.uint8]:
    """The pixels, uint8 (H, W, in_chans), of what `memory_of` did not refuse. Raises Refused."""
    name, data = upload
    try:
        pixels = read_image(data, in_chans, name)
    except BrokenFileError as error:
        if error.kind == "too large":
            message = f"{name!r} has more than the {limits.max_pixels:,} pixels that are allowed."
            raise Refused(413, error.kind, message, SMALLER) from error
        status = STATUS.get(error.kind, 400)
        hint = FORMATS if status == 415 else None
        message = f"{name!r} cannot be used: {printable(error.why)[:300]}."
        raise Refused(status, error.kind, message, hint) from error
    _check_cost(pixels.shape[0], pixels.shape[1], upload, limits)
    return pixels


def _check_cost(height: int, width: int, upload: Upload, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        message = f"{upload.name!r} has {width:,} x {height:,} pixels; {limits.max_pixels:,}"
        raise Refused(413, "too large", f"{message} are allowed.", SMALLER)
    scans = upload.data.count(b"\xff\xda") if is_jpeg(upload.data) else 1
    if scans * width * height > SCANS * limits.max_pixels:
        message = f"{upload.name!r} is a JPEG of {scans:,} scans, too many for its size."
        raise Refused(413, "too large", message, "Save it again, not progressive.")
