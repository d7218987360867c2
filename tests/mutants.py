"""Image files, most of them good, some damaged in the ways that files get damaged."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("jpg", "JPEG", {"quality": 85}),
    ("jpeg", "JPEG", {"quality": 75, "progressive": True}),
    ("jpg", "JPEG", {"quality": 90, "subsampling": 0, "restart_marker_blocks": 4}),
    ("png", "PNG", {}),
    ("gif", "GIF", {}),
    ("webp", "WEBP", {"quality": 80}),
    ("webp", "WEBP", {"lossless": True}),
    ("tif", "TIFF", {}),
    ("tiff", "TIFF", {"compression": "tiff_lzw"}),
    ("tif", "TIFF", {"compression": "tiff_adobe_deflate"}),
    ("tif", "TIFF", {"compression": "jpeg"}),
)
WAYS = ("none", "bits", "cut", "header", "block", "bomb", "suffix", "empty", "closed", "tail")


class Mutant(NamedTuple):
    name: str
    data: bytes
    way: str


def photo(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) with the falling spectrum of photographs: large forms, edges and grain."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for octave in range(6):
        side = 2 ** (octave + 1)
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        layer = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        image += (layer - 128) * 0.62**octave
    y, x = np.mgrid[:height, :width]
    for _ in range(4):  # edges
        a, b, c = rng.normal(size=3)
        side = a * (y / height - 0.5) + b * (x / width - 0.5) > 0.2 * c
        image += side[..., None] * rng.normal(0, 40, 3)
    image += rng.normal(0, 3, image.shape)
    return np.clip(image * 0.8 + 128, 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8] | Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, kind, **options)
    return out.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg_bomb(data: bytes) -> bytes:
    """The JPEG with 65,000 x 65,000 pixels in its header."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5  # length, precision, then height
    return data[:at] + struct.pack(">HH", 65000, 65000) + data[at + 4 :]


def gif_bomb(data: bytes) -> bytes:
    """The GIF with 60,000 x 60,000 pixels in its logical screen."""
    return data[:6] + struct.pack("<HH", 60000, 60000) + data[10:]


def mutants(count: int, seed: int = 0) -> Iterator[Mutant]:
    """`count` files in turn of all kinds and ways; the same for the same seed."""
    rng = random.Random(seed)
    pictures = [photo(rng.randint(24, 90), rng.randint(24, 90), i) for i in range(12)]
    for i in range(count):
        suffix, kind, options = KINDS[i % len(KINDS)]
        way = WAYS[(i // len(KINDS)) % len(WAYS)]
        data = encoded(pictures[rng.randrange(len(pictures))], kind, **options)
        if way == "suffix":
            suffix = rng.choice([s for s, k, _ in KINDS if k != kind])
        yield Mutant(f"{i:05}_{way}.{suffix}", _mutated(data, way, kind, rng), way)


def _mutated(data: bytes, way: str, kind: str, rng: random.Random) -> bytes:
    raw = bytearray(data)
    if way == "bits":
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif way == "header":
        for _ in range(rng.choice((1, 2, 4))):
            raw[rng.randrange(min(len(raw), 700))] = rng.randrange(256)
    elif way == "cut":
        del raw[rng.choice((rng.randrange(len(raw)), len(raw) - rng.randint(1, 40))) :]
    elif way == "block":  # a lost block of a disk: zeros
        start = rng.randrange(len(raw))
        length = min(len(raw) - start, rng.choice((16, 64, 512)))
        raw[start : start + length] = bytes(length)
    elif way == "bomb":
        return {"JPEG": jpeg_bomb, "GIF": gif_bomb}.get(kind, lambda _: png_bomb(40_000, 40_000))(
            data
        )
    elif way == "empty":
        return b"" if rng.random() < 0.5 else bytes(len(raw))
    elif way == "closed":  # cut short, and the end marker put behind
        del raw[rng.randrange(len(raw) // 2, len(raw)) :]
        raw += data[-2:]
    elif way == "tail":  # something behind the picture
        raw += rng.randbytes(rng.randint(1, 300))
    return bytes(raw)


def resaved(pixels: NDArray[np.uint8], scale: float = 1.0, quality: int = 60) -> bytes:
    image = Image.fromarray(pixels)
    size = round(image.width * scale), round(image.height * scale)
    return encoded(image.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=quality)
