"""A model from inside, as one picture: attention, positions, filters or feature maps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitc.deploy import show
from vitc.deploy.predict import best_classes, find_images
from vitc.errors import BrokenFileError, ConfigError
from vitc.resolve import What, check_is
from vitc.views.model import Page, Part, Table, Text
from vitc.wording import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from vitc.deploy.classifier import Classifier

Kind = Literal["attention", "positions", "filters", "features"]
Array = NDArray[Any]

WIDTH = 12.8  # inches; text is legible when the picture is shown 1280 pixels wide
DPI = 150
COLUMNS = 7  # tiles of attention in a row
MAPS = 8  # channels of a stem layer
FILTERS = 64
MOSAIC_GAP = 2
POSITIONS = 16  # tiles of position similarity along a side
GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
SEED = 0  # of fresh weights: the same picture every time


@dataclass(frozen=True)
class Request:
    """Which picture: attention and features are of an `image`; `block`: that one's heads too."""

    kind: Kind
    image: Path | None = None
    block: int | None = None


def picture_page(
    what: str, settings: Mapping[str, Any], request: Request, plot: Path | None = None
) -> Page:
    """Draw a picture of a run, saved model or model into `plot` (default: <kind>.png here).

    A run's weights are the EMA of its last checkpoint; a model's are fresh, as the title shows.
    Raises ConfigError: neither run nor model, or one without what is to be drawn; settings on a
    run; an image that is missing or cannot be read; a block that does not exist. CheckpointError:
    a run without a checkpoint.
    """
    if plot is not None:
        show.check_plot(plot)
    file = Path(f"{request.kind}.png") if plot is None else plot
    if request.image is not None:
        if request.image.is_dir():
            raise ConfigError(f"--{request.kind} {request.image} is a folder.", "Give one image.")
        if not request.image.exists():
            find_images([request.image])  # refuses it, with a suggestion
    subject = _subject(what, settings, request.kind)
    draw = {
        "attention": _attention,
        "positions": _positions,
        "filters": _filters,
        "features": _features,
    }[request.kind]
    figure, title, shown, values = draw(subject, request)
    figure.suptitle(title, fontsize=12, parse_math=False)  # a dollar in a name is not a formula
    with warnings.catch_warnings():  # a class name in a script that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, dpi=DPI)
    about = {"of": request.kind, "subject": what, "trained": subject.trained, "picture": str(file)}
    parts = [*shown, Text(f"{request.kind.capitalize()}: {file}")]
    return Page(subject.name, parts, about | values)


def _subject(what: str, settings: Mapping[str, Any], kind: Kind) -> Classifier:
    """That of a run or saved model; of a named model with fresh weights, always the same."""
    import torch

    from vitc.config import RunConfig
    from vitc.data.config import DataConfig
    from vitc.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
    from vitc.deploy.classifier import Classifier
    from vitc.models.zoo import MODELS, build_model

    kinds: tuple[What, ...] = ("recipe", "config", "model", "timm", "torchvision", "run", "saved")
    found = check_is(what, *kinds, known=MODELS)
    if found in ("recipe", "config"):
        raise ConfigError(
            f"--{kind} has no effect with {what}: a {found} has no weights.",
            f"Give a run of it, such as runs/{what if found == 'recipe' else 'RUN'}, or a model.",
        )
    if found in ("run", "saved"):
        if settings:
            raise ConfigError(f"Settings have no effect on {what}: it is trained already.")
        return Classifier.load(what, "cpu")
    config = show.model_with(what, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = build_model(config)
    colours, grey = config.in_chans == 3, (0.5,) * config.in_chans
    return Classifier(
        name=f"{what}: fresh weights, not trained",
        model=model.eval(),
        device=torch.device("cpu"),
        config=RunConfig(model=config),
        classes=(),
        preprocessing=Preprocessing(
            mean=IMAGENET_MEAN if colours else grey,
            std=IMAGENET_STD if colours else grey,
            channels="rgb" if colours else "other",
            crop=DataConfig.eval_crop,
            img_size=config.size,
            fit=DataConfig.fit,
        ),
        trained=False,
    )


def _look(subject: Classifier, request: Request) -> tuple[Array, Tensor, str, dict[str, Any]]:
    """The image as the model sees it: uint8 (H, W, C); normalised (1, C, H, W); title, prediction.

    The prediction, the likeliest class and its probability, is None for untrained weights.
    """
    from vitc.data.decode import read_image

    assert request.image is not None
    try:
        pixels = read_image(request.image, subject.in_chans, str(request.image))
    except BrokenFileError as error:
        raise ConfigError(
            f"--{request.kind}: {error.message}", "Give one image, such as a JPEG or PNG."
        ) from error
    image = subject.prepare(pixels)
    title, prediction = f"{_line(subject.name)}\n{_line(request.image.name)}", None
    if subject.trained:
        (probs,) = subject.probabilities([image])
        ((label, probability),) = best_classes(probs, subject.classes, 1)
        prediction = {"class": label, "probability": probability}
        title += f": {_line(label)}, {100 * probability:.1f} %"
    seen = image.permute(1, 2, 0).numpy()
    return seen, subject.normalise(image[None]), title, {"prediction": prediction}


def _line(name: str) -> str:
    return short(name, 70)


Drawn = tuple["Figure", str, list[Part], dict[str, Any]]  # title, parts and values of its page


# -- attention -------------------------------------------------------------------------------------


def _attention(subject: Classifier, request: Request) -> Drawn:
    """The image, each block's attention, the rollout; below, the heads of one block if asked."""
    from vitc.models.inspect import attention_distance, attention_rollout, class_attention

    pixels, x, title, values = _look(subject, request)
    weights = class_attention(subject.model, x)[:, 0].numpy()  # (depth, heads, h, w)
    depth, heads, h, w = weights.shape
    if request.block is not None and not 0 <= request.block < depth:
        raise ConfigError(f"--block {request.block}: the model has blocks 0 to {depth - 1}.")
    rollout = attention_rollout(subject.model, x)[0].numpy()
    distance = attention_distance(subject.model, x).numpy()

    prefix = int(getattr(subject.model, "num_prefix_tokens", 0))
    even = 1 / (h * w + prefix)  # the share of a token if attention were uniform
    maps = {f"block {i}": weights[i].mean(axis=0) / even for i in range(depth)}
    if request.block is not None:
        maps |= {
            f"block {request.block}, head {i}": weights[request.block, i] / even
            for i in range(heads)
        }
    token = getattr(subject.config.model, "global_pool", "token") == "token"
    reader = "class token" if token else "mean of the patches"
    figure = _attention_figure(pixels, maps, depth, rollout / even, reader)
    rows = [
        (str(i), f"{d.mean():.1f}", f"{d.min():.1f}", f"{d.max():.1f}")
        for i, d in enumerate(distance)
    ]
    table = Table(
        "How far attention reaches, pixels between patch centres",
        ("block", "mean of the heads", "nearest", "farthest"),
        rows,
    )
    values |= {"attention_distance": distance.tolist()}
    return figure, title, [Text(title), table], values


def _attention_figure(
    pixels: Array, maps: Mapping[str, Array], depth: int, rollout: Array, reader: str
) -> Figure:
    """Tiles: the image, the first `depth` maps, the rollout; from a new row on, the other maps."""
    first = ["image", *list(maps)[:depth], "rollout"]
    columns = min(COLUMNS, len(first))
    rows = [first[i : i + columns] for i in range(0, len(first), columns)]
    others = list(maps)[depth:]
    rows += [others[i : i + columns] for i in range(0, len(others), columns)]
    aspect = pixels.shape[0] / pixels.shape[1]
    tile = (WIDTH - 1.6) / columns
    figure = _figure(len(rows) * (tile * aspect + 0.35) + 0.9)
    axes = figure.subplots(len(rows), columns, squeeze=False)

    top = max(2.0, float(np.percentile(np.stack(list(maps.values())), 99.5)))
    colours: Any = None
    for row, names in zip(axes, rows, strict=True):
        for ax, name in zip(row, [*names, *[None] * (columns - len(names))], strict=True):
            ax.set_axis_off()
            if name is None:
                continue
            if name == "image":
                ax.imshow(_as_shown(pixels), **GREY)
            elif name == "rollout":
                _show_overlay(ax, pixels, rollout, float(rollout.min()), float(rollout.max()))
                name = f"rollout, own scale:\n{rollout.min():.2g} to {rollout.max():.2g}"
            else:
                colours = _show_overlay(ax, pixels, maps[name], 0.0, top)
            ax.set_title(name, fontsize=10)
    bar: Any = figure.colorbar(colours, ax=axes, extend="max", fraction=0.03, pad=0.01, aspect=30)
    bar.solids.set_alpha(1)
    bar.set_label(f"attention of the {reader}\n(1: every token alike)")
    return figure


def _show_overlay(ax: Axes, pixels: Array, values: Array, low: float, high: float) -> Any:
    """`values` (h, w) in colour over the image in grey, each patch one flat square."""
    grey = _as_shown(pixels)
    grey = grey if grey.ndim == 2 else grey @ np.array([0.299, 0.587, 0.114])
    grey = 0.1 + 0.6 * grey  # so that the same attention looks alike on light and on dark
    edges = (-0.5, pixels.shape[1] - 0.5, pixels.shape[0] - 0.5, -0.5)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=edges)
    return ax.imshow(
        values,
        cmap="inferno",
        vmin=low,
        vmax=max(high, low + 1e-9),
        alpha=0.6,
        extent=edges,
        interpolation="nearest",
    )


# -- positions -------------------------------------------------------------------------------------


def _positions(subject: Classifier, request: Request) -> Drawn:
    """For every patch a small map: how alike the other patches' position embeddings are."""
    from vitc.models.inspect import pos_embed_similarity

    similarity = pos_embed_similarity(subject.model).numpy()  # (h, w, h, w)
    h, w = similarity.shape[:2]
    rows, columns = (  # all, or POSITIONS of them evenly spread
        np.linspace(0, n - 1, min(n, POSITIONS)).round().astype(int).tolist() for n in (h, w)
    )
    tiles = [similarity[i, j] for i in rows for j in columns]
    own = np.eye(h * w, dtype=bool).reshape(h, w, h, w)
    top = float(np.abs(similarity[~own]).max(initial=0.01))  # a patch is 1 to itself, always

    mosaic, down, right = _mosaic(tiles, len(columns))
    figure = _figure(0.65 * WIDTH * mosaic.shape[0] / mosaic.shape[1] + 1.1, 0.75 * WIDTH)
    ax = figure.subplots()
    image = ax.imshow(mosaic, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="nearest")
    middle = (down - MOSAIC_GAP - 1) / 2, (right - MOSAIC_GAP - 1) / 2
    ax.set_yticks([middle[0] + down * i for i in range(len(rows))], map(str, rows))
    ax.set_xticks([middle[1] + right * i for i in range(len(columns))], map(str, columns))
    ax.set(xlabel="column of the patch", ylabel="row of the patch")
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=ax, extend="max", fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("cosine similarity to the position embedding of each other patch")
    title = f"{_line(subject.name)}\nposition embeddings, {h}x{w} patches"
    strongest = f"Highest similarity of two different patches: {top:.3f} (cosine)."
    shown: list[Part] = [Text(subject.name), Text(strongest)]
    return figure, title, shown, {"grid": [h, w], "largest": top}


# -- filters ---------------------------------------------------------------------------------------


def _filters(subject: Classifier, request: Request) -> Drawn:
    """The strongest filters of the first convolution; of whole patches, what they are made of."""
    from vitc.models.inspect import filter_components, stem_filters

    filters = stem_filters(subject.model)  # (D, C, k, k)
    d, c, *kernel = filters.shape
    order = filters.flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    order = order[:FILTERS].sort().values
    which = f"all {d} filters" if d <= FILTERS else f"the {FILTERS} strongest of {d} filters"
    panels = [(which, filters[order])]
    values: dict[str, Any] = {"filters": d, "channels": c, "kernel": kernel}
    if min(kernel) >= 4 and d > 1:  # a 3x3 has too few components to be worth showing
        components, share = filter_components(filters)
        part = f"{100 * float(share.sum()):.0f} % of their variance"
        panels.append((f"the first {len(components)} principal components, {part}", components))
        values["components_share"] = share.tolist()

    mosaics = []
    for _, weights in panels:  # about as wide as there is room
        tiles = [_filter_tile(one) for one in weights.numpy()]
        mosaics.append(_mosaic(tiles, math.ceil(math.sqrt(len(tiles) * 2 / len(panels))))[0])
    tallest = max(m.shape[0] / m.shape[1] for m in mosaics)
    figure = _figure(0.88 * WIDTH / len(panels) * tallest + 1.1)
    image: Any = None
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (caption, _), picture in zip(all_axes, panels, mosaics, strict=True):
        image = ax.imshow(picture, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set_title(caption, fontsize=10)
        ax.set_axis_off()
    how = "RGB; mid-grey: 0; each filter scaled to its own largest weight"
    if c not in (3, 4):
        bar = figure.colorbar(image, ax=all_axes, fraction=0.03, pad=0.01, aspect=30)
        bar.set_label("weight / the filter's largest")
        how = "" if c == 1 else f"mean over {c} channels"
    what = f"first convolution, {kernel[0]}x{kernel[1]}" + (f"; {how}" if how else "")
    text = f"{subject.name}: {d} filters of {c}x{kernel[0]}x{kernel[1]}"
    return figure, f"{_line(subject.name)}\n{what}", [Text(text)], values


def _filter_tile(weights: Array) -> Array:
    """(C, k, k) -> RGB in [0, 1], or (k, k) in [-1, 1] where the channels are not colours."""
    colours = weights.shape[0] in (3, 4)
    shown = weights[:3].transpose(1, 2, 0) if colours else weights.mean(axis=0)
    scaled = shown / max(float(np.abs(shown).max()), 1e-12)
    return np.asarray(0.5 + scaled / 2 if colours else scaled)


# -- feature maps ----------------------------------------------------------------------------------


def _features(subject: Classifier, request: Request) -> Drawn:
    """Of every layer of the stem the channels that vary most over the image."""
    from vitc.models.inspect import stem_features

    pixels, x, title, values = _look(subject, request)
    layers = [(name, maps[0].float().numpy()) for name, maps in stem_features(subject.model, x)]
    aspect = pixels.shape[0] / pixels.shape[1]
    tile = (WIDTH - 1.2) / (MAPS + 1.6)
    figure = _figure(len(layers) * (tile * aspect + 0.3) + 0.9)
    grid = figure.add_gridspec(len(layers), MAPS + 1, width_ratios=[1.5, *[1] * MAPS])
    left = figure.add_subplot(grid[:, 0])
    left.imshow(_as_shown(pixels), **GREY)
    left.set_axis_off()
    left.set_title("image", fontsize=10)
    for row, (name, maps) in enumerate(layers):
        axes = [figure.add_subplot(grid[row, 1 + i]) for i in range(MAPS)]
        spread = maps.reshape(len(maps), -1).std(axis=1)
        chosen = np.sort(np.argsort(-spread, kind="stable")[:MAPS])
        low, high = np.percentile(maps[chosen], (0.5, 99.5))
        look: dict[str, Any] = {"cmap": "viridis", "vmin": low, "vmax": max(high, low + 1e-9)}
        for ax, channel in zip(axes, chosen, strict=False):
            image = ax.imshow(maps[channel], interpolation="nearest", **look)
            ax.set_title(f"channel {channel}", fontsize=8, pad=2)
            ax.set_xticks([])
            ax.set_yticks([])
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        size = "x".join(map(str, maps.shape))
        axes[0].set_ylabel(f"{short(name, 20)}\n{size}", fontsize=9, parse_math=False)
        bar = figure.colorbar(image, ax=axes, extend="both", fraction=0.02, pad=0.01, aspect=12)
        bar.set_label("activation", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    shapes = [(name, "x".join(map(str, maps.shape))) for name, maps in layers]
    table = Table("Layers", ("layer", "channels x height x width"), shapes)
    return figure, title, [Text(title), table], values | {"layers": dict(shapes)}


# -- how it is drawn -------------------------------------------------------------------------------


def _figure(height: float, width: float = WIDTH) -> Figure:
    """Without a window system and without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _as_shown(pixels: Array) -> Array:
    """uint8 (H, W, 1 | 3 | 4) -> [0, 1], grey (H, W) or RGB; transparent parts over white."""
    shown = pixels.astype(np.float32) / 255
    if shown.shape[2] == 4:
        opacity = shown[..., 3:]
        shown = shown[..., :3] * opacity + (1 - opacity)
    return shown[..., 0] if shown.shape[2] == 1 else shown


def _mosaic(tiles: Sequence[Array], columns: int) -> tuple[Array, int, int]:
    """Tiles (k, k) or (k, k, 3) row by row, enlarged so that the gaps between them look narrow.

    Gaps are NaN, or white in RGB. Also the step from tile to tile, down and right, in pixels.
    """
    factor = math.ceil(16 / max(tiles[0].shape[:2]))
    tiles = [tile.repeat(factor, axis=0).repeat(factor, axis=1) for tile in tiles]
    h, w, *colours = tiles[0].shape
    down, right = h + MOSAIC_GAP, w + MOSAIC_GAP
    rows = math.ceil(len(tiles) / columns)
    gap = 1.0 if colours else np.nan
    size = rows * down - MOSAIC_GAP, columns * right - MOSAIC_GAP
    picture = np.full((*size, *colours), gap, np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * down, i % columns * right
        picture[top : top + h, left : left + w] = tile
    return picture, down, right
