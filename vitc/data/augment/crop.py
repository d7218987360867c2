"""Which part of an image does the model see? In evaluation, and at random in training.

A training crop is drawn on the host as uniforms (`draw_crop`) and applied while an image is decoded
(`train_image`, in loader processes) or to a resident batch on the device (`crop_batch`), with the
same boxes. Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.augment.device import to_device
from vitc.data.broken import MAX_PIXELS
from vitc.data.config import AugmentConfig, DataConfig
from vitc.data.decode import Box, crop_resize, edges, read_cut, read_image, resize, to_channels
from vitc.data.preprocessing import Fit
from vitc.data.sampling import BatchPlan, Place, power_of
from vitc.data.store import Pixels, Stored
from vitc.errors import ConfigError

CROP_TRIES = 10  # for a random resized crop before the middle is taken, as in pycls
CROP_DRAWS = {"none": 0, "shift": 2, "random_resized": 2 * CROP_TRIES + 2}


# -- evaluation -----------------------------------------------------------------------------------


def eval_image(image: Pixels, size: tuple[int, int], fit: Fit, eval_crop: float) -> Tensor:
    """An image (H, W, C) as evaluation sees it: uint8 (C, *size).

    crop: up to whole pixels, "shorter side to size / eval_crop, then centre crop"; small images are
    enlarged. pad: scaled down to fit, or up by an integer factor (28 to 32 pixels would only blur),
    then centred on zeros. squash: both sides to `size`. An image of that size is unchanged.
    """
    height, width = image.shape[:2]
    if (height, width) == tuple(size) or fit == "squash":
        return resize(image, size)
    if fit == "crop":
        scale = eval_crop * min(height / size[0], width / size[1])
        cut = size[0] * scale, size[1] * scale
        return crop_resize(image, ((height - cut[0]) / 2, (width - cut[1]) / 2, *cut), size)
    if fit != "pad":
        raise ConfigError(f"data.fit {fit!r} must be crop, pad or squash.")
    scale = min(size[0] / height, size[1] / width)
    scale = float(int(scale)) if scale >= 1 else scale
    inner = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    canvas = torch.zeros((image.shape[2], *size), dtype=torch.uint8)
    canvas[:, top : top + inner[0], left : left + inner[1]] = resize(image, inner)
    return canvas


# -- training: from uniforms to boxes and offsets --------------------------------------------------


def draw_crop(plan: BatchPlan, augment: AugmentConfig, place: Place) -> NDArray[np.float64]:
    """float64 (micro, CROP_DRAWS[crop]): the uniforms that define each sample's crop."""
    return plan.uniforms("crop", place, CROP_DRAWS[augment.crop])


def random_resized_boxes(
    crop: NDArray[np.float64],
    height: int,
    width: int,
    augment: AugmentConfig,
    frame: tuple[int, int] | None = None,
) -> NDArray[np.int64]:
    """int64 (n, 4): top, left, height, width of n boxes in images of one size, in pixels.

    Inception's crop (arXiv 1409.4842) from (n, 22) uniforms: a share of the area, uniform in
    `augment.scale`, and an aspect ratio, log-uniform in `augment.ratio`; the first of ten tries
    that fits, or the largest box in the middle with an allowed ratio. `frame` (H, W): area and
    ratio are measured after distorting the image to it (fit squash).
    """
    frame_h, frame_w = frame or (height, width)
    to_h, to_w = height / frame_h, width / frame_w
    area, aspect = crop[:, :CROP_TRIES], crop[:, CROP_TRIES : 2 * CROP_TRIES]
    low, high = augment.ratio
    share = augment.scale[0] + area * (augment.scale[1] - augment.scale[0])
    ratio = low * power_of(high / low, aspect)
    box_w = np.rint(np.sqrt(share * ratio * (frame_h * frame_w)) * to_w)
    box_h = np.rint(np.sqrt(share / ratio * (frame_h * frame_w)) * to_h)
    fits = (box_w >= 1) & (box_w <= width) & (box_h >= 1) & (box_h <= height)
    rows, first = np.arange(len(crop)), fits.argmax(axis=1)
    found = fits[rows, first]
    middle_h, middle_w = _middle(frame_h, frame_w, augment.ratio)
    h = np.where(found, box_h[rows, first], max(1, round(middle_h * to_h)))
    w = np.where(found, box_w[rows, first], max(1, round(middle_w * to_w)))
    free_h, free_w = height - h, width - w
    top = np.where(found, np.floor(crop[:, -2] * (free_h + 1)), free_h // 2)
    left = np.where(found, np.floor(crop[:, -1] * (free_w + 1)), free_w // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def _middle(height: int, width: int, ratio: tuple[float, float]) -> tuple[float, float]:
    """(height, width) of the largest box with width / height within `ratio`."""
    if width < ratio[0] * height:
        return width / ratio[0], width
    if width > ratio[1] * height:
        return height, height * ratio[1]
    return height, width


def shift_offsets(crop: NDArray[np.float64], pixels: int) -> NDArray[np.int64]:
    """int64 (n, 2) in [0, 2 * pixels]: top and left of the crop in the padded image."""
    return np.floor(crop * (2 * pixels + 1)).astype(np.int64)


# -- training: one image at a time -----------------------------------------------------------------


def train_image(
    stored: Stored,
    name: str,
    in_chans: int,
    crop: NDArray[np.float64],
    size: tuple[int, int],
    config: DataConfig,
) -> Tensor:
    """uint8 (in_chans, *size): the training crop, defined by its uniforms, of a stored image.

    Of a large JPEG only as much is decoded as a random resized crop needs. Raises BrokenFileError.
    """
    augment = config.augment

    def box(height: int, width: int) -> Box:
        squash = size if config.fit == "squash" else None
        found = random_resized_boxes(crop[None], height, width, augment, squash)[0].tolist()
        return found[0], found[1], found[2], found[3]

    if not isinstance(stored, bytes):
        image = to_channels(stored, in_chans)
    elif augment.crop == "random_resized" and config.fit != "pad":
        return read_cut(stored, in_chans, name, box, size)
    else:
        image = read_image(stored, in_chans, name)
    if augment.crop == "random_resized":
        return framed_crop(image, size, config.fit, box)
    out = eval_image(image, size, config.fit, config.eval_crop)
    if augment.crop == "none":
        return out
    offsets = torch.from_numpy(shift_offsets(crop[None], augment.shift_pixels))
    return shift(out[None], offsets, augment.shift_pixels)[0]


def framed_crop(
    image: Pixels, size: tuple[int, int], fit: str, box: Callable[[int, int], Box]
) -> Tensor:
    """The box of an image's `frame`, resized to `size`: uint8 (C, *size).

    Of the frame no more than the box is made. It is far larger than the image where that is a
    strip; beyond MAX_PIXELS the image is shrunk first, so that memory is bounded.
    """
    h, w, c = image.shape
    high, wide = frame_size(h, w, size, fit)
    if high * wide > max(MAX_PIXELS, h * w):
        factor = math.sqrt(MAX_PIXELS / (high * wide))
        h, w = max(1, int(h * factor)), max(1, int(w * factor))
        image = resize(image, (h, w)).permute(1, 2, 0).numpy()
        high, wide = frame_size(h, w, size, fit)
    if (high, wide) == (h, w):
        return crop_resize(image, box(h, w), size)
    chosen = box(high, wide)
    top, bottom = edges(chosen[0], chosen[2], high)
    left, right = edges(chosen[1], chosen[3], wide)
    part = np.zeros((bottom - top, right - left, c), np.uint8)
    down, across = (high - h) // 2 - top, (wide - w) // 2 - left  # from the part to the image
    rows, columns = _overlap(down, h, bottom - top), _overlap(across, w, right - left)
    part[rows, columns] = image[_moved(rows, -down), _moved(columns, -across)]
    return resize(part, size)


def _overlap(start: int, length: int, limit: int) -> slice:
    """The places in [0, limit) of a run from `start` on; none: an empty slice."""
    first = min(max(start, 0), limit)
    return slice(first, min(max(start + length, first), limit))


def _moved(run: slice, by: int) -> slice:
    """An empty run stays empty."""
    return slice(run.start + by, run.stop + by) if run.stop > run.start else slice(0, 0)


def frame_size(height: int, width: int, size: tuple[int, int], fit: str) -> tuple[int, int]:
    """Height and width of `frame`, in pixels."""
    if fit != "pad":
        return height, width
    high = max(height, round(width * size[0] / size[1]))
    return high, max(width, round(height * size[1] / size[0]))


def frame(image: Pixels, size: tuple[int, int], fit: str) -> Pixels:
    """The image (H, W, C) that a random resized crop is a box of: with fit pad, centred on black
    with the aspect ratio of `size`."""
    h, w, c = image.shape
    high, wide = frame_size(h, w, size, fit)
    if (high, wide) == (h, w):
        return image
    ground = np.zeros((high, wide, c), np.uint8)
    top, left = (high - h) // 2, (wide - w) // 2
    ground[top : top + h, left : left + w] = image
    return ground


# -- training: a batch on the device ---------------------------------------------------------------


def crop_batch(
    images: Tensor, crop: NDArray[np.float64], size: tuple[int, int], config: DataConfig
) -> Tensor:
    """uint8 (B, C, *size): the same crops of resident images (B, C, H, W).

    The images are those of `eval_image`, or for a random resized crop those of `frame`.
    """
    augment, device = config.augment, images.device
    if augment.crop == "none":
        return images
    if augment.crop == "shift":
        offsets = to_device(shift_offsets(crop, augment.shift_pixels), device)
        return shift(images, offsets, augment.shift_pixels)
    squash = size if config.fit == "squash" else None
    boxes = random_resized_boxes(crop, images.shape[2], images.shape[3], augment, squash)
    return resample(images, to_device(boxes, device), size)


def shift(images: Tensor, offsets: Tensor, pixels: int) -> Tensor:
    """uint8 (B, C, H, W) padded with `pixels` of black on every side and cropped to (H, W).

    offsets: int64 (B, 2), the crop's top and left in the padded image, in [0, 2 * pixels].
    """
    b, c, h, w = images.shape
    padded = F.pad(images, (pixels,) * 4)
    high, wide = h + 2 * pixels, w + 2 * pixels
    device = images.device
    # Each row of the result is a run of w bytes in `padded`: select it from the view of all runs.
    plane = torch.arange(b * c, device=device).view(b, c, 1) * (high * wide)
    top, left = offsets[:, 0].view(b, 1, 1), offsets[:, 1].view(b, 1, 1)
    start = plane + (top + torch.arange(h, device=device)) * wide + left  # (B, C, H)
    runs = padded.as_strided((padded.numel() - w + 1, w), (1, 1))
    return runs.index_select(0, start.view(-1)).view(b, c, h, w)


def resample(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of uint8 (B, C, H, W), each resized to `size`: uint8 (B, C, *size).

    boxes: int64 (B, 4) of top, left, height, width in pixels. Antialiased bilinear, as two batched
    matrix products in float32: every pixel is within 1 of `decode.crop_resize`, which rounds
    between the two directions.
    """
    b, c, high, wide = images.shape
    boxes = boxes.float()
    down = _taps(boxes[:, 0], boxes[:, 2], high, size[0])  # (B, h, H)
    across = _taps(boxes[:, 1], boxes[:, 3], wide, size[1])  # (B, w, W)
    with torch.autocast(images.device.type, enabled=False):
        rows = images.transpose(1, 2).float().reshape(b, high, c * wide)
        rows = torch.bmm(down, rows).view(b, size[0] * c, wide)
        out = torch.bmm(rows, across.transpose(1, 2)).view(b, size[0], c, size[1])
    # Within [0, 255.5), as the weights sum to 1: the cast rounds.
    return out.add_(0.5).to(torch.uint8).transpose(1, 2).contiguous()


def _taps(start: Tensor, length: Tensor, pixels: int, out: int) -> Tensor:
    """float32 (B, out, pixels): the weight of each pixel in each output along one axis: a triangle
    around the output's centre, at least one pixel wide, limited to the box and normalised."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    scale = length / out
    slope = 1 / scale.clamp(min=1)
    centre = start + (torch.arange(out, device=start.device).view(-1, 1) + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device) + 0.5
    inside = (pixel > start) & (pixel < start + length)  # (B, 1, pixels)
    triangle = (pixel * slope - centre * slope).abs_().sub_(1).clamp_(max=0).mul_(inside)
    return triangle.div_(triangle.sum(-1, keepdim=True))  # both below 0
