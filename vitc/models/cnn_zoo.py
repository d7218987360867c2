"""Which CNNs have names? Those of the paper's Table 2. No torch here.

Sources: ResNets and RegNetYs are the authors' own configs (branch `vitconfigs` of
facebookresearch/pycls), the EfficientNets pycls's `dds_baselines`; all without dropout and drop
connect, as the paper (section 5.4) and those configs have it. The RegNetYs are not the ones of
pycls's published zoo that have the same names.
"""

from __future__ import annotations

from math import log

from vitc.models.cnn_config import PAPER_SIZES, CNNConfig
from vitc.models.model_config import Reported


def regnet_stages(
    depth: int, w_0: int, w_a: float, w_m: float, group_width: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(depths, widths, group widths) of a RegNet's stages (arXiv 2003.13678 section 3.3).

    Block j wants w_0 + w_a * j channels; it gets the nearest w_0 * w_m^k, made a multiple of 8, and
    blocks alike form a stage, whose width then becomes the nearest multiple of the group width.
    """
    widths = []
    for j in range(depth):
        k = round(log((w_0 + w_a * j) / w_0) / log(w_m))
        widths.append(round(w_0 * w_m**k / 8) * 8)
    stages = sorted(set(widths))
    groups = tuple(min(group_width, w) for w in stages)
    fitted = (max(1, round(w / g)) * g for w, g in zip(stages, groups, strict=True))
    return tuple(widths.count(w) for w in stages), tuple(fitted), groups


def _resnet(name: str, depths: tuple[int, ...]) -> CNNConfig:
    return CNNConfig(name=name, img_size=PAPER_SIZES[name][0], depths=depths)


def _regnety(
    name: str, depths: tuple[int, ...], widths: tuple[int, ...], group_widths: tuple[int, ...]
) -> CNNConfig:
    return CNNConfig(
        name=name,
        img_size=PAPER_SIZES[name][0],
        stem_type="simple",
        stem_width=32,
        depths=depths,
        widths=widths,
        strides=(2, 2, 2, 2),
        bottleneck_ratio=1.0,
        group_widths=group_widths,
        se_ratio=0.25,
    )


def _effnet(
    name: str, stem_width: int, depths: tuple[int, ...], widths: tuple[int, ...], head_width: int
) -> CNNConfig:
    return CNNConfig(
        name=name,
        img_size=PAPER_SIZES[name][0],
        stem_type="simple",
        stem_width=stem_width,
        block="mbconv",
        depths=depths,
        widths=widths,
        strides=(1, 2, 2, 2, 1, 2, 1),
        kernel_sizes=(3, 3, 5, 3, 5, 5, 3),
        expand_ratios=(1, 6, 6, 6, 6, 6, 6),
        se_ratio=0.25,
        head_width=head_width,
        activation="silu",
    )


CNNS: dict[str, CNNConfig] = {
    config.name: config
    for config in (
        _resnet("resnet_50", (3, 4, 6, 3)),
        _resnet("resnet_101", (3, 4, 23, 3)),
        _resnet("resnet_152", (3, 8, 36, 3)),
        _resnet("resnet_200", (3, 24, 36, 3)),
        _regnety("regnety_1gf", (1, 4, 10, 3), (40, 120, 328, 904), (4,) * 4),
        _regnety("regnety_4gf", *regnet_stages(26, 88, 30.3, 2.404, 32)),
        # The 4GF, scaled 4 and 8 times by the fast compound rule of arXiv 2103.06877
        _regnety("regnety_16gf", (2, 7, 18, 2), (168, 336, 896, 2128), (56,) * 4),
        _regnety("regnety_32gf", (2, 7, 20, 2), (216, 432, 1152, 2808), (72,) * 4),
        _effnet("effnet_b2", 32, (2, 3, 3, 4, 4, 5, 2), (16, 24, 48, 88, 120, 208, 352), 1408),
        _effnet("effnet_b4", 48, (2, 4, 4, 6, 6, 8, 2), (24, 32, 56, 112, 160, 272, 448), 1792),
        _effnet("effnet_b5", 48, (3, 5, 5, 7, 7, 9, 3), (24, 40, 64, 128, 176, 304, 512), 2048),
    )
}

REPORTED_CNNS: dict[str, Reported] = {
    "resnet_50": Reported(4.1, 25.6, 11.3),
    "resnet_101": Reported(7.8, 44.5, 16.4),
    "resnet_152": Reported(11.5, 60.2, 22.8),
    "resnet_200": Reported(15.0, 64.7, 32.3),
    "regnety_1gf": Reported(1.0, 9.6, 6.2),
    "regnety_4gf": Reported(4.1, 22.4, 14.5),
    "regnety_16gf": Reported(15.5, 72.3, 30.7),
    "regnety_32gf": Reported(31.1, 128.6, 46.2),
    "effnet_b2": Reported(1.0, 9.1, 13.8),
    "effnet_b4": Reported(4.4, 19.3, 49.5),
    "effnet_b5": Reported(10.3, 30.4, 98.9),
}
