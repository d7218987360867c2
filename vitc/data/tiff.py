"""Which TIFF files does Pillow read as they are meant, and how are the others read?

Pillow reads some layouts wrongly without an error: planes of 16 bits, an extra channel that other
programs take for opacity, colour maps of 8 bits. The tags show the layout before any pixel is read.
What Pillow cannot read goes to tifffile (extra `tiff`), or is refused by name.
Compared with libtiff 4.5 and ImageMagick 6.9 by tests/test_pixel_matrix.py.
"""

from __future__ import annotations

import io
import logging
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from vitc.data.broken import MAX_PIXELS, broken, check_size, unsupported
from vitc.machine import install_line

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_PHOTOMETRICS = {
    4: "a transparency mask",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "a camera's raw colour filter",
    32844: "LogL",
    32845: "LogLUV",
    34892: "linear raw",
}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_UNSPECIFIED, _PREMULTIPLIED, _OPACITY = 0, 1, 2  # ExtraSamples
_JPEG = 7
# Those whose output tifffile's decoders bound: none, LZW, JPEG, deflate, JPEG 2000, LZMA, ...
_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946, 33003, 33005, 34712, 34925, 50000, 50001)
# Bits of a single channel that Pillow reads right, by photometric interpretation.
_PILLOW_SINGLE = {
    WHITE_IS_ZERO: (1, 2, 4, 8, 16),
    BLACK_IS_ZERO: (1, 2, 4, 8, 12, 16),
    PALETTE: (1, 2, 4, 8),
}
_CURE = "Convert it to 8-bit RGB, as PNG for example."


class Layout(NamedTuple):
    """How the pixels of the first page are stored, by its tags. `bits`, `formats`: of each sample
    of a pixel; `planar`: each sample in a plane of its own; `extras`: what ExtraSamples names;
    `narrow_map`: the colour map holds 8 bits, not 16; `subsampled`: fewer colours than pixels."""

    width: int
    height: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    photometric: int
    planar: bool
    extras: tuple[int, ...]
    compression: int
    orientation: int
    narrow_map: bool
    subsampled: bool

    @property
    def colours(self) -> int:
        """Samples of a pixel that are no extra ones."""
        return len(self.bits) - len(self.extras)


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def layout_of(data: bytes) -> Layout | None:
    """None: there is no readable directory of tags."""
    file = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        return layout(tags)
    except Exception:  # Pillow's readers raise nearly anything on garbage
        return None


def layout(tags: Any) -> Layout:
    """Of Pillow's tags by their number."""

    def values(tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        found = tags.get(tag, default)
        return tuple(int(v) for v in (found if isinstance(found, tuple) else (found,)))

    samples = values(277, (1,))[0]
    bits, formats = values(258, (1,)), values(339, (_UNSIGNED,))
    photometric = values(262)[0]
    return Layout(
        width=values(256)[0],
        height=values(257)[0],
        bits=bits * samples if len(bits) == 1 else bits[:samples],
        formats=formats * samples if len(formats) == 1 else formats[:samples],
        photometric=photometric,
        planar=samples > 1 and values(284, (1,))[0] == 2,
        extras=values(338),
        compression=values(259, (1,))[0],
        orientation=values(274, (1,))[0],
        narrow_map=photometric == PALETTE and max(values(320), default=0) < 256,
        subsampled=photometric == YCBCR and values(530, (2, 2)) != (1, 1),
    )


def pillow_is_right(stored: Layout) -> bool:
    """Whether Pillow's pixels are those meant; those of more than 8 bits need `full_range`."""
    kind, bits, extras = stored.photometric, stored.bits, stored.extras
    if stored.narrow_map:
        return False
    if kind == YCBCR:
        whole = stored.compression == _JPEG or not stored.subsampled
        return whole and bits == (8, 8, 8) and not extras and not stored.planar
    if stored.planar and stored.compression == _JPEG:
        return False
    if stored.formats != (_UNSIGNED,) * len(bits):
        return kind == BLACK_IS_ZERO and stored.formats == (_FLOAT,) and bits == (32,)
    if len(bits) == 1:
        return bits[0] in _PILLOW_SINGLE.get(kind, ()) and not extras
    if extras in ((_PREMULTIPLIED,), (_OPACITY,)):
        both = ((BLACK_IS_ZERO, (8, 8)), (RGB, (8,) * 4), (RGB, (16,) * 4))
        return not stored.planar and (kind, bits) in both
    depths = (8,) if stored.planar else (8, 16)
    channels = {RGB: (3,) if stored.planar else (3, 4), CMYK: (4,)}.get(kind, ())
    return not extras and len(bits) in channels and bits in [(d,) * len(bits) for d in depths]


def full_range(stored: Layout) -> tuple[int, bool]:
    """The largest value of a grey sample, and whether it is black; in Pillow's I;16."""
    return 2 ** stored.bits[0] - 1, stored.photometric == WHITE_IS_ZERO


def refusal(stored: Layout) -> str:
    """Why no program reads this layout in one agreed way, or none here does; empty: it is read."""
    kind, deepest = stored.photometric, max(stored.bits)
    if kind not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK):
        what = _PHOTOMETRICS.get(kind, f"of photometric interpretation {kind}")
        return f"a TIFF whose colours are {what}" if kind != YCBCR else "a TIFF of rare YCbCr"
    if len({*zip(stored.bits, stored.formats, strict=False)}) != 1:
        return f"a TIFF whose channels differ in depth ({', '.join(map(str, stored.bits))} bits)"
    if stored.formats[0] not in (_UNSIGNED, _FLOAT):
        return "a TIFF of signed or complex numbers, which have no standard range"
    if stored.formats[0] == _UNSIGNED and deepest > 16:
        return f"a TIFF of {deepest}-bit integers, which have no standard range"
    if stored.colours != {RGB: 3, CMYK: 4}.get(kind, 1):
        return f"a TIFF of {len(stored.bits)} channels, with {len(stored.extras)} declared extra"
    if len(stored.extras) > 1 or (stored.extras and kind in (PALETTE, CMYK)):
        return f"a TIFF with {len(stored.bits) - len(stored.extras)} channels and extra ones"
    if kind == WHITE_IS_ZERO and (deepest not in (8, 16) or stored.formats[0] == _FLOAT):
        return f"a TIFF of {deepest} bits where white is 0, which programs read differently"
    if kind <= BLACK_IS_ZERO and stored.extras and deepest not in (8, 16):
        return f"a TIFF of grey and opacity in {deepest} bits, which programs read differently"
    if kind == RGB and deepest < 4:
        return f"a TIFF of {deepest}-bit colours"
    if stored.compression not in _COMPRESSIONS or (stored.planar and stored.compression == _JPEG):
        planes = ", in planes" if stored.planar else ""
        return f"a TIFF of compression {stored.compression}{planes}"
    return ""


def mode_of(stored: Layout) -> str:
    """As Pillow would call it, could it read it."""
    if stored.photometric == PALETTE:
        return "P"
    if stored.photometric == CMYK:
        return "CMYK"
    deep = "F" if _FLOAT in stored.formats else "I;16" if max(stored.bits) > 8 else "L"
    colours = "RGB" if stored.colours == 3 else "L" if stored.extras else deep
    return colours + ("A" if stored.extras else "")


def read(data: bytes, stored: Layout, name: str) -> NDArray[np.uint8]:
    """uint8 (H, W, 1 | 3 | 4), not yet upright, of a TIFF that Pillow does not read right."""
    check_size(stored.width, stored.height, name)
    if why := refusal(stored):
        raise unsupported(name, f"it is {why}", _CURE)
    try:
        import imagecodecs  # noqa: F401  # of tifffile's decoders these alone bound their output
        import tifffile
    except ImportError as e:
        depth = f"{max(stored.bits)}-bit" + (" float" if _FLOAT in stored.formats else "")
        planes = " in planes" if stored.planar else ""
        extra = " with an extra channel" if stored.extras else ""
        raise unsupported(
            name,
            f"it is a TIFF of a layout that Pillow does not read ({depth}{planes}{extra})",
            f"Install what does: {install_line('tiff')}. Or: {_CURE}",
        ) from e
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it reports, we refuse
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            samples, colour_map = _samples(page, stored, len(data)), page.colormap
    except Exception as e:  # as Pillow's decoders, it raises nearly anything on garbage
        raise broken(name, f"the file is damaged or incomplete ({e})") from e
    return _as_bytes(samples, colour_map, stored, name)


def _samples(page: Any, stored: Layout, size: int) -> NDArray[Any]:
    """(H, W, samples) as stored. Raises ValueError: pieces are missing, or too large."""
    pieces = math.prod(page.chunked)
    places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(places) < pieces or any(at <= 0 or n <= 0 or at + n > size for at, n in places):
        raise ValueError("pieces of the picture are missing")
    item = page.dtype.itemsize
    if max(math.prod(page.shaped), math.prod(page.chunks)) * item > 4 * MAX_PIXELS:
        raise ValueError(f"its pixels take more than {4 * MAX_PIXELS:,} bytes")
    layers, depth, height, width, together = page.shaped
    if (height, width, depth) != (stored.height, stored.width, 1):
        raise ValueError("its tags contradict each other")
    every: NDArray[Any] = page.asarray(squeeze=False, maxworkers=1)
    return np.moveaxis(every[:, 0], 0, 2).reshape(height, width, layers * together)


def _as_bytes(
    samples: NDArray[Any], colour_map: Any, stored: Layout, name: str
) -> NDArray[np.uint8]:
    """Samples (H, W, C) scaled by their full range to uint8 (H, W, 1 | 3 | 4)."""
    if stored.photometric == PALETTE:
        table = (np.asarray(colour_map) >> (0 if stored.narrow_map else 8)).T.astype(np.uint8)
        looked_up: NDArray[np.uint8] = table[samples[..., 0].astype(int)]
        return looked_up
    if stored.formats[0] == _FLOAT:
        scaled = unit_to_bytes(samples, name)
    else:
        scaled = to_bytes(samples, 2 ** stored.bits[0] - 1)
        if stored.photometric == WHITE_IS_ZERO:
            scaled[..., 0] = 255 - scaled[..., 0]
    colours, extra = scaled[..., : stored.colours], scaled[..., stored.colours :]
    if stored.photometric == CMYK:
        colours = ((255 - colours[..., :3]) * ((255 - colours[..., 3:]) / 255) + 0.5).astype(
            np.uint8
        )
    if not stored.extras or (extra == 255).all():
        return colours
    if stored.extras[0] == _UNSPECIFIED:
        why = "it is a TIFF with an extra channel of unspecified meaning"
        raise unsupported(name, why, "Save it without that channel, or mark it as opacity.")
    if colours.shape[2] == 1:
        colours = np.repeat(colours, 3, axis=2)
    if stored.extras[0] == _PREMULTIPLIED:
        opacity = np.maximum(extra, 1).astype(np.uint32)
        whole = (colours.astype(np.uint32) * 255 + opacity // 2) // opacity
        colours = np.minimum(whole, 255).astype(np.uint8)
    return np.concatenate([colours, extra], axis=2)


def to_bytes(values: NDArray[Any], full: int) -> NDArray[np.uint8]:
    """Integers 0 … full as uint8, rounded."""
    wide = values.astype(np.uint32)
    wide *= 255
    wide += full // 2
    wide //= full
    narrow: NDArray[np.uint8] = wide.astype(np.uint8)
    return narrow


def unit_to_bytes(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Floating-point numbers 0 … 1 as uint8; any other range would be a guess."""
    if not (values.min() >= 0 and values.max() <= 1):  # also for NaN
        why = f"its floating-point values {values.min():g} … {values.max():g} are not in 0 … 1"
        raise broken(name, why)
    wide = values.astype(np.float32) if values.itemsize < 4 else values
    return (wide * 255 + 0.5).astype(np.uint8)
