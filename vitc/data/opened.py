"""What pixels are in an image that Pillow, or its plugin for HEIC, has opened?"""

from __future__ import annotations

import contextlib
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitc.data import tiff
from vitc.data.broken import broken, check_size, unsupported
from vitc.errors import BrokenFileError
from vitc.machine import install_line


def rgb_with_key(image: Image.Image, data: bytes) -> NDArray[np.uint8] | None:
    """RGBA of a PNG of 16-bit RGB with a transparent colour, of which Pillow keeps 8 bits.

    None: another file. Sets the transparent value of 2 and 4 bits to what Pillow makes of it.
    """
    key = image.info.get("transparency")
    if image.format != "PNG" or isinstance(key, bytes | None):
        return None
    bits, kind = data[24], data[25]
    if kind == 0 and bits < 8:
        image.info["transparency"] = key * 255 // (2**bits - 1)
    if kind != 2 or bits != 16:
        return None
    with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
        again.tile = [part._replace(args="RGB;16L") for part in again.tile]  # the lower bytes
        low, high = np.asarray(again, np.uint16), np.asarray(image, np.uint16)
    clear = (high << 8 | low == np.array(key, np.uint16)).all(axis=2)
    return np.dstack([np.asarray(image), np.where(clear, 0, 255).astype(np.uint8)])


def refuse_misread(image: Image.Image, data: bytes, name: str) -> None:
    """Raises BrokenFileError: a kind of file that Pillow reads wrongly, and nothing else here."""
    if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA"):
        at = data.find(b"\xff\x4f\xff\x51") + 42  # SIZ: the first channel's bits, less one
        bits = (data[at] & 0x7F) + 1
        if bits > 8:
            why = f"it is a JPEG 2000 of {bits}-bit colours"
            raise unsupported(name, why, "Convert it to PNG or to 8 bits.")
    if image.format == "BMP" and image.mode == "RGB" and data[28:34] == b"\x20\0\0\0\0\0":
        start, (width, height) = int.from_bytes(data[10:14], "little"), image.size
        fourth = np.frombuffer(data, np.uint8)[start + 3 : start + 4 * width * height : 4]
        if fourth.any() and fourth.min() != 255:
            why = "it is a BMP whose unused fourth bytes other programs take for opacity"
            raise unsupported(name, why, "Convert it to PNG.")


def pixels_of(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """uint8 (H, W, C) of a loaded image with its own 1, 3 or 4 channels, not turned."""
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or mode == "I":  # 16 bits, which Pillow may widen to 32
        return _deep_grey(image, name)
    if mode == "F":
        return tiff.unit_to_bytes(np.asarray(image), name)[..., None]
    if mode == "LAB":
        raise unsupported(name, "its colours are CIELAB", "Convert it to RGB.")
    if isinstance(key, int) and mode in ("1", "L"):
        return _with_key(np.array(image.convert("L")), np.asarray(image.convert("L")) == key)
    if mode == "La":
        image = image.convert("LA")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or key is not None:
        image = image.convert("RGBA")
    elif mode in ("1", "L"):
        image = image.convert("L")
    else:  # P, RGB, RGBX, CMYK, YCbCr, HSV
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _deep_grey(image: Image.Image, name: str) -> NDArray[np.uint8]:
    values, key = np.asarray(image), image.info.get("transparency")
    tags = getattr(image, "tag_v2", None)
    full, inverted = tiff.full_range(tiff.layout(tags)) if tags else (65535, False)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        why = f"its integers {low:,} … {high:,} exceed 16 bits, and have no standard range"
        raise broken(name, why)
    grey = tiff.to_bytes(values, full)
    if inverted:
        grey = 255 - grey
    return grey[..., None] if key is None else _with_key(grey, values == key)


def _with_key(grey: NDArray[np.uint8], clear: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Grey (H, W) as RGBA (H, W, 4), transparent where it is `clear`."""
    return np.dstack([grey, grey, grey, np.where(clear, 0, 255).astype(np.uint8)])


_HEIF_BRANDS = b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()


def is_heif(data: bytes) -> bool:
    """Whether it is a HEIC or HEIF picture (phones'), whatever the file is called; not AVIF."""
    brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in brands


def read_heif(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        from pillow_heif import open_heif
    except ImportError as e:
        cure = f"Install what reads it: {install_line('heif')}; or convert it to JPEG."
        raise unsupported(name, "it is a HEIC picture, which Pillow does not read", cure) from e
    try:
        file = open_heif(data, convert_hdr_to_8bit=True)
        width, height = file.size
        check_size(width, height, name)
        return pixels_of(file.to_pillow(), name)  # upright already
    except BrokenFileError:
        raise
    except Exception as e:
        raise broken(name, f"the file is damaged or incomplete ({e})") from e


def heif_size(data: bytes) -> tuple[str, int, int] | None:
    """Pillow's mode, width and height of a HEIC picture; None: it is damaged, or not read here."""
    with contextlib.suppress(Exception):  # no plugin, or garbage
        from pillow_heif import open_heif

        file = open_heif(data, convert_hdr_to_8bit=True)
        return file.mode, *file.size
    return None
