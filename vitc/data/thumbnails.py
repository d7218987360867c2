"""How does an image look on a page: small, upright, in colour and without its metadata?"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vitc.data.decode import Box, header, is_jpeg, read_cut
from vitc.data.sources.base import Split
from vitc.data.store import Pixels

SIDE = 112  # pixels of a page's thumbnails


def read_small(split: Split, index: int, side: int) -> Pixels:
    """uint8 (H, W, 3): an image with at most `side` pixels a side, in its own proportions.

    A large JPEG is decoded at a fraction of its size. Raises BrokenFileError.
    """
    stored = split.stored(index)
    found = header(stored) if isinstance(stored, bytes) and is_jpeg(stored) else None
    if found is not None and min(found.height, found.width) > 2 * side:
        assert isinstance(stored, bytes)
        high, wide = found.upright
        scale = side / max(high, wide)
        size = max(1, round(high * scale)), max(1, round(wide * scale))
        cut = read_cut(stored, 3, split.names[index], _whole, size)
        return np.ascontiguousarray(cut.permute(1, 2, 0).numpy())
    image = Image.fromarray(split.read(index, 3))
    image.thumbnail((side, side))
    return np.asarray(image)


def _whole(height: int, width: int) -> Box:
    return 0.0, 0.0, float(height), float(width)


def thumbnail(split: Split, index: int) -> bytes:
    """The image as a small JPEG, made from its pixels alone. Raises BrokenFileError."""
    out = io.BytesIO()
    Image.fromarray(read_small(split, index, SIDE)).save(out, "JPEG", quality=80)
    return out.getvalue()
