"""A custom stem: every token sees its patch in detail and the surroundings coarsely.

A stem is a module built with in_chans and embed_dim. Its `reduction` is the factor by which it
reduces the image size.
"""

from torch import Tensor, cat, nn


class MyStem(nn.Module):
    """Two views of an image side by side. (B, C, H, W) -> (B, D, H / reduction, W / reduction)."""

    def __init__(
        self, in_chans: int, embed_dim: int, patch_size: int = 8, coarse: float = 0.25
    ) -> None:
        super().__init__()
        self.reduction = patch_size  # what vitc asks a stem for: pixels a side of a token
        channels = round(embed_dim * coarse)  # a setting: 'my_stem.py:MyStem(coarse=0.5)'
        self.patch = nn.Conv2d(in_chans, embed_dim - channels, patch_size, patch_size)
        # Every second pixel of a window about twice as large, with the patch in its middle.
        self.around = nn.Conv2d(
            in_chans, channels, patch_size, patch_size, padding=patch_size // 2, dilation=2
        )
        self.norm = nn.BatchNorm2d(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(cat([self.patch(x), self.around(x)], dim=1))
