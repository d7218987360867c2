"""TIFF and PNG files of any layout, written by hand: most layouts have no other small writer."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, LAB = 0, 1, 2, 3, 5, 8
NONE, DEFLATE, PACKBITS = 1, 8, 32773
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def packed(rows: NDArray[Any], bits: int, order: str) -> bytes:
    """Samples (rows, n) as bytes: each row starts at a byte; 16 and more bits in byte order."""
    if rows.dtype.kind == "f" or bits in (16, 32, 64):
        return rows.astype(rows.dtype.newbyteorder(order)).tobytes()
    wide = rows.astype(np.uint64)
    bit = (wide[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bit.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _packbits(data: bytes) -> bytes:
    """Without any run: pieces of up to 128 bytes, each after its length less one."""
    parts = (data[i : i + 128] for i in range(0, len(data), 128))
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def tiff(
    samples: NDArray[Any],
    photometric: int,
    bits: int = 8,
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    rows: int = 7,
    tile: int = 0,
    compression: int = NONE,
    tags: dict[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF file of one page, its samples (H, W, C) in strips of `rows` or square tiles."""
    height, width, channels = samples.shape
    format_ = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[samples.dtype.kind]
    layers = np.moveaxis(samples, 2, 0)[..., None] if planar else samples[None]
    across, down = (tile, tile) if tile else (width, rows)
    pieces = []
    for layer in layers:
        for top in range(0, height, down):
            for left in range(0, width, across):
                part = layer[top : top + down, left : left + across]
                if tile:
                    short = (0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)
                    part = np.pad(part, short)
                data = packed(part.reshape(len(part), -1), bits, order)
                pack = {NONE: bytes, DEFLATE: zlib.compress, PACKBITS: _packbits}[compression]
                pieces.append(pack(data))
    head = 16 if big else 8
    ends = np.cumsum([len(piece) for piece in pieces]) + head
    offsets, counts = (324, 325) if tile else (273, 279)
    every: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [compression],
        262: [photometric],
        277: [channels],
        284: [2 if planar else 1],
        339: [format_] * channels,
        offsets: [int(e) - len(p) for e, p in zip(ends, pieces, strict=True)],
        counts: [len(piece) for piece in pieces],
        **({322: [tile], 323: [tile]} if tile else {278: [rows]}),
        **(tags or {}),
    }
    at = int(ends[-1]) + (-int(ends[-1]) % 8)
    body = b"".join(pieces).ljust(at - head, b"\0")
    mark = {"<": b"II", ">": b"MM"}[order]
    if big:
        start = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, at)
    else:
        start = mark + struct.pack(f"{order}HI", 42, at)
    return start + body + _directory(every, at, order, big)


def _directory(tags: dict[int, Sequence[int]], at: int, order: str, big: bool) -> bytes:
    """The tags as a directory that starts `at`, with the values that do not fit after it."""
    count, size, number = ("Q", 20, "Q") if big else ("H", 12, "I")
    beyond = at + struct.calcsize(f"={count}") + size * len(tags) + struct.calcsize(f"={number}")
    entries, values = b"", b""
    for tag, value in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (256, 257, 273, 278, 279, 324, 325) else (3, "H")
        data = struct.pack(f"{order}{len(value)}{letter}", *value)
        room = size - 4 - struct.calcsize(f"={number}")
        if len(data) > room:
            where = struct.pack(f"{order}{number}", beyond + len(values))
            values += data + bytes(len(data) % 2)
        else:
            where = data.ljust(room, b"\0")
        entries += struct.pack(f"{order}HH{number}", tag, kind, len(value)) + where
    first = struct.pack(f"{order}{count}", len(tags))
    return first + entries + struct.pack(f"{order}{number}", 0) + values


def png(
    samples: NDArray[Any], kind: int, bits: int, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG of samples (H, W, C); kind 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    height, width, _ = samples.shape
    rows = (packed(row.reshape(1, -1), bits, ">") for row in samples)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)
