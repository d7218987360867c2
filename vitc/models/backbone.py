"""What do timm's trainer, feature extractors and users call on a model, besides forward?

Both families answer it, by timm's names (https://huggingface.co/docs/timm): `get_classifier`,
`head_hidden_size`, `feature_info`, `prune_intermediate_layers`, `get_intermediate_layers`,
`group_matcher`. Registered in timm's own registry by `vitc.models.timm_registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from vitc.errors import ConfigError

NORM_GROUP = 99999  # timm's number for what goes with the last layer


def traced(x: object) -> bool:
    """Whether torch.fx follows the computation: the shape of `x` cannot be checked then."""
    return isinstance(x, fx.Proxy)


class Backbone(nn.Module):
    """A model of stem, `depth` layers that give feature maps, pooling and `head`."""

    num_features: int
    num_classes: int
    global_pool: str
    """How features become one vector: token, avg, or "" (not at all, without a head)."""
    head: nn.Module

    def get_classifier(self) -> nn.Module:
        """The module that gives the logits."""
        return self.head

    @property
    def head_hidden_size(self) -> int:
        """Channels of what the classifier reads."""
        return self.num_features

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Of each map that `forward_intermediates` gives: `num_chs`, `reduction` (pixels a place a
        side) and `module`, the name of what gives it."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """What layers give out, (B, C, h, w); with the features unless `intermediates_only`."""
        raise NotImplementedError

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        norm: bool = False,
    ) -> Any:
        """Outputs of the last `n` layers or of a list of them, as DINO's and timm's method of this
        name: (B, h w, C), with `reshape` (B, C, h, w). Raises as `forward_intermediates`."""
        maps = self.forward_intermediates(x, n, norm=norm, intermediates_only=True)
        return list(maps) if reshape else [m.flatten(2).transpose(1, 2) for m in maps]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] | None = None,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what is not needed for these maps; returns their places, none negative."""
        raise NotImplementedError

    def _reset(self, num_classes: int, global_pool: str | None, pools: Sequence[str]) -> bool:
        """Take new values of both; whether there is a head. Raises ConfigError: ones that cannot
        be."""
        if num_classes < 0:
            raise ConfigError(f"num_classes {num_classes} must be at least 0 (0: no head).")
        if global_pool is not None and global_pool not in pools:
            allowed = ", ".join(repr(p) for p in pools)
            raise ConfigError(f"global_pool {global_pool!r} must be one of {allowed}.")
        pool = self.global_pool if global_pool is None else global_pool
        if num_classes and not pool:
            raise ConfigError("Without global_pool there is nothing that a head could classify.")
        self.num_classes, self.global_pool = num_classes, pool
        return num_classes > 0


def chosen_layers(
    indices: int | Sequence[int] | None, layers: int, noun: str = "block"
) -> list[int]:
    """Places of `indices`, in rising order: None all, n the last n, negative ones from the end.

    Raises ConfigError: one that does not exist.
    """
    if indices is None:
        return list(range(layers))
    if isinstance(indices, int):
        if not 1 <= indices <= layers:
            raise ConfigError(f"indices is {indices}; the last 1 to {layers} {noun}s exist.")
        return list(range(layers - indices, layers))
    wrong = [i for i in indices if not -layers <= i < layers]
    if wrong or not indices:
        raise ConfigError(
            f"indices {list(indices)}: "
            + (f"there is no {noun} {wrong[0]}." if wrong else "it is empty."),
            f"The model has {noun}s 0 to {layers - 1}; negative ones count from the end.",
        )
    return sorted({i % layers for i in indices})
