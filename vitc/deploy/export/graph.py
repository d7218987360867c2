"""Which graph is exported? Preparation of an image as in evaluation, then the model.

Shapes: B batch, H W pixels of an image, C channels, h w those of the model, K classes.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vitc.data.preprocessing import Preprocessing
from vitc.errors import RunError


class Prepare(nn.Module):
    """uint8 (B, H, W, C) of any one size -> float32 (B, C, h, w), as `eval_image` and `finish`.

    The box is computed in float64 with the operations of `eval_image` in their order, so that it is
    the same to the pixel. exact: the image is resized by matrix products, as PyTorch does it, where
    the engine that the graph is for rounds otherwise.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, preprocessing: Preprocessing, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        p = preprocessing
        assert p.img_size is not None
        self.size, self.fit = p.img_size, p.fit
        self.crop = 1.0 if p.crop is None else p.crop
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (p.mean, p.std))
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2)
        if self.fit == "crop":
            x = self._resize(self._cut(x, images), *self.size)
        elif self.fit == "pad":
            x = self._padded(x)
        else:
            x = self._resize(x, *self.size)
        return x.float() * self.scale + self.offset

    def _resize(self, x: Tensor, height: int, width: int) -> Tensor:
        if not self.exact:
            return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)
        x = _rounded(x.float() @ _filter(x.shape[3], width))
        return _rounded(_filter(x.shape[2], height).T @ x)

    def _cut(self, x: Tensor, images: Tensor) -> Tensor:
        """The box that evaluation sees; an image of the model's size is seen whole."""
        sides = [torch.scalar_tensor(side, dtype=torch.float64) for side in x.shape[2:]]
        scale = self.crop * torch.minimum(sides[0] / self.size[0], sides[1] / self.size[1])
        same = (sides[0] == self.size[0]) & (sides[1] == self.size[1])
        scale = torch.where(same, 1.0, scale)
        for dim, side, size in zip((2, 3), sides, self.size, strict=True):
            cut = size * scale
            start = (side - cut) / 2
            first = torch.minimum(torch.floor(start + 0.5).clamp(min=0), side - 1)
            last = torch.maximum(torch.floor(start + cut + 0.5), first + 1)
            last = torch.minimum(last, side)
            begin, length = _integer(first), _integer(last - first)
            end = images.shape[dim - 1]
            for fact in (begin >= 0, length >= 1, begin <= end, begin + length <= end):
                torch._check(fact)  # type: ignore[no-untyped-call]
            x = x.narrow(dim, begin, length)
        return x

    def _padded(self, x: Tensor) -> Tensor:
        """Scaled to fit, up by an integer factor only, and centred on zeros."""
        sides = [torch.scalar_tensor(side, dtype=torch.float64) for side in x.shape[2:]]
        scale = torch.minimum(self.size[0] / sides[0], self.size[1] / sides[1])
        scale = torch.where(scale >= 1, torch.floor(scale), scale)
        inner = [torch.floor(side * scale + 0.5).clamp(min=1) for side in sides]
        height, width = _integer(inner[0]), _integer(inner[1])
        for fact in (height >= 1, height <= self.size[0], width >= 1, width <= self.size[1]):
            torch._check(fact)  # type: ignore[no-untyped-call]
        x = self._resize(x, height, width)
        for dim, length, size in zip((2, 3), inner, self.size, strict=True):
            place = torch.arange(size) - (size - length.long()) // 2
            x = x.index_select(dim, torch.minimum(place.clamp(min=0), length.long() - 1))
            inside = ((place >= 0) & (place < length)).to(x.dtype)
            x = x * inside.view((size, 1) if dim == 2 else (size,))
        return x


def _filter(before: int, after: int) -> Tensor:
    """PyTorch's antialiased bilinear filter of uint8 pixels: float32 (before, after).

    Its weights are multiples of 2^-k, the largest of them below 2^15 of these. Sums of levels times
    weights fit float32 up to a reduction to a quarter; beyond, a few pixels of a million are off by
    one. The distance of two pixels is counted in halves of both grids, in integers, which engines
    that have no float64 get right, too.
    """
    old, new = torch.arange(before).view(-1, 1), torch.arange(after)
    distance = ((2 * old + 1) * after - (2 * new + 1) * before).abs()
    reach = 2 * torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in (before, after)])
    weights = (reach.max() - distance).clamp(min=0).double()
    weights = weights / weights.sum(0)
    halvings = torch.arange(1, 23, dtype=torch.float64)
    unit = 2.0 ** (torch.floor(weights.max() * 2.0**halvings + 0.5) < 2**15).sum().double()
    return (torch.floor(weights * unit + 0.5) / unit).float()


def _rounded(levels: Tensor) -> Tensor:
    return torch.floor(levels + 0.5).clamp(0, 255)


def _integer(value: Tensor) -> int:
    """The value as a symbolic integer of the graph, which int() would ask for its number."""
    found: Any = value.long().item()
    return found  # type: ignore[no-any-return]


def program_of(model: nn.Module, prepare: Prepare | None, example: Tensor) -> ExportedProgram:
    """The graph with a dynamic batch and, after `prepare`, a dynamic size of images.

    example: an input of batch 2. Raises RunError: torch.export cannot trace the model.
    """
    whole = model if prepare is None else nn.Sequential(prepare, model)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    shapes = sizes if prepare is not None else {0: Dim.DYNAMIC}
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(whole.eval(), (example,), dynamic_shapes=(shapes,))
    except Exception as error:  # of any kind: the model may be the user's own
        raise untraceable(error) from error
    for node in program.graph.nodes:  # paths and source lines of this machine
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(key, None)
    return program


def untraceable(error: Exception) -> RunError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return RunError(
        f"The model's graph cannot be exported: {type(error).__name__}: {why}",
        "A custom model or stem must not branch on pixel values or the batch size. vitc save keeps "
        "it without a graph.",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks, warnings and progress of the exporters."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
