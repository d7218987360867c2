"""How do a file's bytes become uint8 pixels of the size and channels the model takes?

Free of torch until an image is resized. No file is trusted: sizes are checked before memory is
allocated, and only decoders that run in this process are allowed (Pillow would hand EPS to
Ghostscript). A file is broken if Pillow's strict reading (all checksums, the whole picture) fails,
whichever decoder is used; warnings of the JPEG decoder are returned by `examined`. Colour profiles
(ICC) are ignored: values are taken for sRGB.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from vitc.data import tiff
from vitc.data.broken import MAX_PIXELS, broken, check_size, file_bytes, unsupported
from vitc.data.opened import heif_size, is_heif, pixels_of, read_heif, refuse_misread, rgb_with_key
from vitc.data.pillow import jpeg_orientation, orientation_of, quiet_pillow, turn_of, turned
from vitc.data.store import Pixels
from vitc.errors import BrokenFileError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Box = tuple[float, float, float, float]  # top, left, height, width, in pixels

CHANNELS = (1, 3, 4)  # grey, RGB, RGB and opacity
_FORMATS = ("PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "ICO", "AVIF")
_PNG_METADATA = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # may hold an orientation


def read_image(file: Path | bytes, in_chans: int, name: str) -> Pixels:
    """The picture in a file or its bytes, uint8 (H, W, in_chans): upright, the first frame of an
    animation, 16 bits scaled to 8 by the full range, transparency as in `to_channels`.

    Raises BrokenFileError, which names the file: not an image, incomplete, too large.
    """
    return examined(file, in_chans, name).pixels


class Examined(NamedTuple):
    """A picture, uint8 (H, W, C), and the warning of a decoder that had to guess; empty: none."""

    pixels: Pixels
    doubt: str


def examined(file: Path | bytes, in_chans: int, name: str) -> Examined:
    data = file if isinstance(file, bytes) else file_bytes(file, name)
    doubt = ""
    if is_jpeg(data):
        pixels, doubt = _jpeg(data, in_chans, name)
    elif is_heif(data):
        pixels = read_heif(data, name)
    elif tiff.is_tiff(data):
        pixels = _tiff(data, name)
    else:
        pixels = _by_pillow(data, name, _FORMATS)
    return Examined(np.ascontiguousarray(to_channels(pixels, in_chans)), doubt)


class Header(NamedTuple):
    """The metadata of a file: Pillow's names for format and mode, the stored size in pixels,
    whether it has several frames, bits of a channel, EXIF orientation 1 ... 8."""

    format: str
    mode: str
    height: int
    width: int
    animated: bool
    bits: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the picture as it is seen."""
        on_its_side = self.orientation in (5, 6, 7, 8)
        return (self.width, self.height) if on_its_side else (self.height, self.width)


def header(data: bytes) -> Header | None:
    """Of an image file's bytes, without its pixels; None: not an image in a supported format."""
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=("JPEG", *_FORMATS)) as image:
            kind = "JPEG" if image.format == "MPO" else str(image.format)
            animated = kind != "JPEG" and bool(getattr(image, "is_animated", False))
            transparent = image.mode in ("P", "L", "RGB") and "transparency" in image.info
            mode = image.mode + ("+transparency" if transparent else "")
            # The metadata of a PNG may follow its pixels, which Pillow decodes to look there.
            plain = kind == "PNG" and not any(name in data for name in _PNG_METADATA)
            bits, turn = _bits(image, data), 1 if plain else orientation_of(image)
            return Header(kind, mode, image.height, image.width, animated, bits, turn)
    except Exception:  # Pillow's readers raise nearly anything on garbage
        return _rare_header(data)


def stated_size(data: bytes) -> tuple[str, int, int] | None:
    """Format, height and width as `header` has them, for the least cost.

    None: not an image in a supported format, or far too large."""
    if is_jpeg(data):
        with contextlib.suppress(ValueError, KeyError):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
            return "JPEG", int(height), int(width)
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=("JPEG", *_FORMATS)) as image:
            return str(image.format), image.height, image.width
    except Exception:  # as above
        rare = _rare_header(data)
        return None if rare is None else (rare.format, rare.height, rare.width)


def _rare_header(data: bytes) -> Header | None:
    if tiff.is_tiff(data) and (stored := tiff.layout_of(data)) is not None:
        mode, bits = tiff.mode_of(stored), max(stored.bits)
        return Header("TIFF", mode, stored.height, stored.width, False, bits, stored.orientation)
    if is_heif(data) and (found := heif_size(data)) is not None:
        return Header("HEIF", found[0], found[2], found[1], False, 8, 1)
    return None


def read_opened(image: Image.Image, in_chans: int, name: str) -> Pixels:
    """An image that Pillow has opened or made, as `read_image` gives it.

    One that has not been loaded yet is read from its file, as if that had been given: Pillow alone
    would get some kinds wrong. Raises BrokenFileError.
    """
    data = _not_loaded(image)
    if data is not None:
        return read_image(data, in_chans, name)
    tags = getattr(image, "tag_v2", None)
    if tags and 262 in tags and not tiff.pillow_is_right(tiff.layout(tags)):
        why = "it is a TIFF of a layout that Pillow, which loaded it, does not read right"
        raise unsupported(name, why, "Give the path of the file.")
    try:
        with quiet_pillow():
            image.load()
        pixels = turned(pixels_of(image, name), turn_of(orientation_of(image)))
    except BrokenFileError:
        raise
    except Exception as e:  # Pillow's decoders raise nearly anything on garbage
        raise broken(name, f"Pillow cannot load it ({e})") from e
    return np.ascontiguousarray(to_channels(pixels, in_chans))


def _not_loaded(image: Image.Image) -> bytes | None:
    """The bytes of the file that an image will be loaded from; None: its pixels are there."""
    file = getattr(image, "fp", None)
    if file is None or not getattr(image, "tile", None) or image.tell() != 0:
        return None
    before = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(before)
    with quiet_pillow(), Image.open(io.BytesIO(data)) as again:
        as_opened = (again.size, again.mode) == (image.size, image.mode)  # or it is a `draft`
    return data if as_opened else None


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits of a channel as stored; Pillow reads some 16-bit pictures as 8-bit."""
    if image.mode == "1":
        return 1
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        stored = image.tag_v2.get(258, 8)  # type: ignore[attr-defined]
        return int(stored[0] if isinstance(stored, tuple) else stored)
    return 16 if image.mode.startswith("I") else 32 if image.mode == "F" else 8


def is_jpeg(data: bytes) -> bool:
    """Whether it begins as a JPEG, whatever the file is called."""
    return data[:3] == b"\xff\xd8\xff"


# ------------------------------------------------------------------------------------------ JPEG

# Warnings of libjpeg that put no pixel in doubt; after any other, the rest of the picture may be
# invented. A few bytes before the end marker are padding; many: the decoder lost its position.
_HARMLESS = re.compile(
    r"unknown JFIF revision|Unknown Adobe color transform|Invalid SOS parameters for sequential"
)
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_LEFT_OVER = 4096
_JPEG_SPACES = {1: "GRAY", 3: "RGB", 4: "RGBA"}


def _jpeg(data: bytes, in_chans: int, name: str) -> tuple[Pixels, str]:
    """uint8 (H, W, C), C = in_chans, or 3 for CMYK; and the decoder's warning."""
    try:
        height, width, stored, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # also: chroma subsamplings unknown to TurboJPEG
        return _by_pillow(data, name, ("JPEG",)), ""
    check_size(int(width), int(height), name)
    inks = stored.upper() in ("CMYK", "YCCK")
    space = "CMYK" if inks else _JPEG_SPACES.get(in_chans, "RGB")
    try:
        pixels = simplejpeg.decode_jpeg(data, space)
    except (ValueError, MemoryError) as e:  # also for warnings: Pillow decides, as everywhere
        return _by_pillow(data, name, ("JPEG",)), "" if _is_harmless(str(e)) else str(e)
    if inks:
        pixels = _in_slabs(_from_inks, pixels, 3)
    return turned(pixels, turn_of(jpeg_orientation(data))), ""


def _from_inks(stored: Pixels) -> Pixels:
    """CMYK by Adobe's convention, which JPEGs follow: the inverse of the ink is stored."""
    light = stored.astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


def _is_harmless(warning: str) -> bool:
    left_over = _LEFT_OVER.search(warning)
    if left_over:
        return int(left_over[1]) <= _MAX_LEFT_OVER
    return _HARMLESS.search(warning) is not None


# --------------------------------------------------------------------------------- other formats


def _tiff(data: bytes, name: str) -> Pixels:
    if data.startswith(b"MM\0+"):
        why = "it is a BigTIFF in big-endian order"
        raise unsupported(name, why, "Convert it to PNG or to an ordinary TIFF.")
    stored = tiff.layout_of(data)
    if stored is None or tiff.pillow_is_right(stored):
        try:
            return _by_pillow(data, name, ("TIFF",))
        except BrokenFileError as e:
            if stored is None or e.kind != "no image":  # Pillow lacks some in big-endian order
                raise
    return turned(tiff.read(data, stored, name), turn_of(stored.orientation))


def _by_pillow(data: bytes, name: str, formats: tuple[str, ...]) -> Pixels:
    """uint8 (H, W, C) with the file's own 1, 3 or 4 channels."""
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=formats) as image:
            check_size(*image.size, name)
            if image.format == "PNG":  # checksums and the end, which `load` may not reach
                with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
                    again.verify()
            image.load()
            refuse_misread(image, data, name)
            pixels = rgb_with_key(image, data)
            if pixels is None:
                pixels = pixels_of(image, name)
            return turned(pixels, turn_of(orientation_of(image)))
    except BrokenFileError:
        raise
    except UnidentifiedImageError as e:
        raise broken(name, "it is not an image in a supported format", "no image") from e
    except Image.DecompressionBombError as e:
        why = f"its pixels exceed the {MAX_PIXELS:,} allowed"
        raise broken(name, why, "too large") from e
    except Exception as e:  # Pillow's decoders raise nearly anything on garbage
        raise broken(name, f"the file is damaged or incomplete ({e})") from e


# -------------------------------------------------------------------------------------- channels


def check_channels(in_chans: int) -> None:
    if in_chans not in CHANNELS:
        raise ConfigError(
            f"model.in_chans {in_chans}: images have 1, 3 or 4 channels.",
            "1: grey; 3: RGB; 4: RGB and opacity.",
        )


def to_channels(pixels: Pixels, in_chans: int) -> Pixels:
    """uint8 (…, 1 | 3 | 4) as (…, in_chans): grey, RGB, or RGB and opacity.

    Dropped opacity is composited on white, for which cut-outs and logos are drawn. Grey is the
    luminance of ITU-R BT.601, as in Pillow and JPEG. Returns the input itself if nothing changes.
    """
    check_channels(in_chans)
    have = pixels.shape[-1]
    if have == in_chans:
        return pixels
    if in_chans == 4:
        opaque = np.full((*pixels.shape[:-1], 1), 255, np.uint8)
        return np.concatenate([to_channels(pixels, 3), opaque], axis=-1)
    if have == 1:
        return np.repeat(pixels, 3, axis=-1)
    if have == 4:
        pixels = _in_slabs(_over_white, pixels, 3)
    return pixels if in_chans == 3 else _in_slabs(_luminance, pixels, 1)


def _in_slabs(change: Callable[[Pixels], Pixels], pixels: Pixels, channels: int) -> Pixels:
    """`change` applied to a few rows (or images) at a time, to bound the memory of wider types."""
    changed = np.empty((*pixels.shape[:-1], channels), np.uint8)
    step = max(1, 2**20 * len(pixels) // max(1, pixels.size))
    for start in range(0, len(pixels), step):
        changed[start : start + step] = change(pixels[start : start + step])
    return changed


def _over_white(rgba: Pixels) -> Pixels:
    colour, opacity = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _luminance(rgb: Pixels) -> Pixels:
    red, green, blue = (rgb[..., i].astype(np.uint32) for i in range(3))
    grey = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16  # 0.299, 0.587, 0.114
    return grey.astype(np.uint8)[..., None]


# ------------------------------------------------------------------------------------------ size


def crop_resize(image: Pixels, box: Box, size: tuple[int, int]) -> Tensor:
    """The box (top, left, height, width; in pixels) of an image (H, W, C), resized to `size`.

    uint8 (C, *size), in any memory order. Edges are rounded to whole pixels inside the image, at
    least one pixel apart. Bilinear with antialiasing; a box of just that size is copied exactly.
    """
    top, bottom = edges(box[0], box[2], image.shape[0])
    left, right = edges(box[1], box[3], image.shape[1])
    return resize(image[top:bottom, left:right], size)


def read_cut(
    data: bytes, in_chans: int, name: str, box: Callable[[int, int], Box], size: tuple[int, int]
) -> Tensor:
    """The box of the picture in an image file's bytes, resized to `size`: uint8 (C, *size).

    `box` is called with the height and width of the upright picture. If the box is at least 2, 4
    or 8 times `size` in both directions, a JPEG is decoded at that fraction of its size, which is
    faster; pixels of photographs then differ by about 3 of 255 on average from `crop_resize` of
    `read_image`. For training; evaluation decodes fully. Raises BrokenFileError.
    """
    cut = _jpeg_cut(data, in_chans, name, box, size) if is_jpeg(data) else None
    if cut is not None:
        return cut
    image = read_image(data, in_chans, name)
    return crop_resize(image, box(*image.shape[:2]), size)


def _jpeg_cut(
    data: bytes, in_chans: int, name: str, box: Callable[[int, int], Box], size: tuple[int, int]
) -> Tensor | None:
    """`read_cut` from a smaller frame; None if the box is too small or the JPEG is unusual."""
    try:
        height, width, stored, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        return None
    long, short = max(height, width), min(height, width)
    if stored.upper() in ("CMYK", "YCCK") or long < 2 * max(size) or short < 2 * min(size):
        return None  # before looking for metadata: most photos in data sets are small
    check_size(int(width), int(height), name)
    turn = turn_of(jpeg_orientation(data))
    if turn.swap:
        height, width = width, height
    top, left, high, wide = box(int(height), int(width))
    rows, columns = edges(top, high, int(height)), edges(left, wide, int(width))
    reached = min((rows[1] - rows[0]) // size[0], (columns[1] - columns[0]) // size[1])
    factor = next((f for f in (8, 4, 2) if reached >= f), 1)
    if factor == 1:
        return None
    smaller = math.ceil(height / factor), math.ceil(width / factor)
    least = smaller[::-1] if turn.swap else smaller
    try:
        frame = simplejpeg.decode_jpeg(
            data, _JPEG_SPACES[in_chans], min_height=least[0], min_width=least[1]
        )
    except (ValueError, MemoryError):  # also for a warning
        return None
    if frame.shape[:2] != least:
        return None
    frame = turned(frame, turn)
    # A frame's last row may cover fewer rows than the others; when mirrored, it comes first.
    shift = [
        (-length % factor) / factor if mirrored else 0.0
        for length, mirrored in ((height, turn.rows), (width, turn.columns))
    ]
    first = rows[0] / factor + shift[0], columns[0] / factor + shift[1]
    last = rows[1] / factor + shift[0], columns[1] / factor + shift[1]
    return _resize_between(frame, first, last, size)


def _resize_between(
    image: Pixels, first: tuple[float, float], last: tuple[float, float], size: tuple[int, int]
) -> Tensor:
    """uint8 (C, *size): the area between two points (y, x) of an image (H, W, C).

    By Pillow's bilinear filter, the model for torch's, which accepts fractions of a pixel.
    """
    import torch

    y, x = int(first[0]), int(first[1])
    part = image[y : math.ceil(last[0]), x : math.ceil(last[1])]
    pixels = np.ascontiguousarray(part[..., 0] if part.shape[2] == 1 else part)
    box = first[1] - x, first[0] - y, last[1] - x, last[0] - y
    small = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
    resized = np.array(small).reshape(*size, -1)
    return torch.from_numpy(resized).permute(2, 0, 1)


def edges(start: float, length: float, limit: int) -> tuple[int, int]:
    """The first pixel of a side of a box and the one behind its last, inside the image."""
    first = min(max(int(start + 0.5), 0), limit - 1)
    last = min(max(int(start + length + 0.5), first + 1), limit)
    return first, last


def resize(image: Pixels, size: tuple[int, int]) -> Tensor:
    import torch

    if not image.flags.writeable or min(image.strides) < 0:
        image = image.copy()  # torch warns about the former and rejects the latter
    # With a batch dimension first, torch recognises channels-last strides, resizes faster (0.18
    # against 0.28 ms for a photo) and keeps that order, which the augmentation needs.
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    if image.shape[:2] == tuple(size):
        return pixels[0].clone()
    resized: Tensor = torch.nn.functional.interpolate(
        pixels, size=size, mode="bilinear", antialias=True
    )
    return resized[0]
