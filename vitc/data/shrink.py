"""How is an image made smaller once, for the cache or a pack?"""

from __future__ import annotations

from vitc.data.decode import (
    crop_resize,
    header,
    is_jpeg,
    read_cut,
    read_image,
    stated_size,
    to_channels,
)
from vitc.data.store import Pixels


def shrunk(
    stored: bytes | Pixels, channels: int, name: str, short_side: int, scaled: bool = False
) -> Pixels:
    """An image uint8 (H, W, channels), its shorter side at most `short_side`: antialiased bilinear.

    scaled: a JPEG with eight times that side is first decoded at 1/2, 1/4 or 1/8 of its size, to no
    less than twice the side: of 12 megapixels in half of the time. Raises BrokenFileError.
    """

    def size(height: int, width: int, short: int) -> tuple[int, int]:
        scale = short / min(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    upright = _large_jpeg(stored, 8 * short_side) if scaled and isinstance(stored, bytes) else None
    if not isinstance(stored, bytes):
        pixels = to_channels(stored, channels)
    elif upright is not None:
        twice = size(*upright, 2 * short_side)
        frame = read_cut(stored, channels, name, lambda h, w: (0, 0, h, w), twice)
        pixels = frame.permute(1, 2, 0).numpy()
    else:
        pixels = read_image(stored, channels, name)
    rows, columns = pixels.shape[:2]
    height, width = upright or (rows, columns)
    if short_side >= min(height, width):
        return pixels
    small = crop_resize(pixels, (0, 0, rows, columns), size(height, width, short_side))
    return small.permute(1, 2, 0).numpy()


def _large_jpeg(data: bytes, least: int) -> tuple[int, int] | None:
    """Height and width of the upright picture of a JPEG whose shorter side has `least` pixels."""
    stated = stated_size(data) if is_jpeg(data) else None
    if stated is None or min(stated[1:]) < least or (found := header(data)) is None:
        return None
    return found.upright
