"""Training-step speed against named peers, in one run, interleaved, with spread.

    python benchmarks/train_step.py            # both parts; about 10 minutes on 2 cores
    python benchmarks/train_step.py --part tiny --repeats 7

Part `large`: vit_c_1gf at 224 px against timm's ViT and torchvision's VisionTransformer with
`conv_stem_configs`, all of the same width, depth, heads and MLP (timm's has a patchify stem and one
block more: same flops), and against a plain eager reference of the same architecture.
Part `tiny`: vit_{p,c}_tiny on one thread, our precision and attention against fp32 with SDPA.

Peers: pip install -c constraints.txt -e ".[peers]". Each repeat times every candidate once, in
turn, so that a drift of the machine hits all alike; quoted are the median and the range of the
ratios within a repeat. A step is forward, cross-entropy, backward and a fused AdamW update.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitc.models.timm import import_peer
from vitc.models.zoo import create_model, model_config
from vitc.training.device import autocast, describe, pick_device

Step = Callable[[], None]


@functools.cache
def import_peers() -> tuple[Any, Any] | None:
    """(timm, torchvision.models), or None where they are not installed."""
    try:
        return import_peer("timm"), import_peer("torchvision.models")
    except ImportError:
        return None


def step_of(
    model: nn.Module,
    precision: str,
    batch: int,
    size: int,
    device: torch.device,
    channels_last: bool = False,
) -> Step:
    """A closure that takes one training step of `model` on fixed random images."""
    model = model.to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def step() -> None:
        with autocast(precision, device):
            logits = model(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def compare(
    candidates: dict[str, Step], images: int, repeats: int, steps: int
) -> dict[str, list[float]]:
    """Images a second of each candidate in each repeat."""
    for step in candidates.values():
        for _ in range(2):
            step()
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, step in candidates.items():
            start = time.perf_counter()
            for _ in range(steps):
                step()
            rates[name].append(images * steps / (time.perf_counter() - start))
    return rates


def show(title: str, rates: dict[str, list[float]]) -> None:
    n = len(next(iter(rates.values())))
    print(f"\n{title}   (n = {n}; median img/s [min-max])")
    for name, values in rates.items():
        spread = f"[{min(values):.1f}-{max(values):.1f}]"
        print(f"  {name:44s} {statistics.median(values):9.1f} {spread}")


def ratio(rates: dict[str, list[float]], ours: str, peers: list[str], what: str) -> None:
    """Ours over the fastest peer of the same repeat."""
    each = [r / max(rates[p][i] for p in peers) for i, r in enumerate(rates[ours])]
    print(f"  -> {what}: {statistics.median(each):.2f} [{min(each):.2f}-{max(each):.2f}]")


class PlainAttention(nn.Module):
    """nn.MultiheadAttention, as a plain eager implementation would use it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.block = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block(x, x, x, need_weights=False)[0]
        return out


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.n1, self.a, self.n2 = nn.LayerNorm(dim), PlainAttention(dim, heads), nn.LayerNorm(dim)
        self.m = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.a(self.n1(x))
        return x + self.m(self.n2(x))


class PlainViT(nn.Module):
    """ViT_C-1GF written the shortest way: the eager reference."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for c in (24, 48, 96, 192):
            layers += [nn.Conv2d(before, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()]
            before = c
        self.stem = nn.Sequential(*layers, nn.Conv2d(before, dim, 1))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.randn(1, 197, dim) * 0.02)
        self.blocks = nn.Sequential(*[PlainBlock(dim, heads, hidden) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


def large(
    repeats: int, steps: int, batch: int, device: torch.device, precisions: list[str]
) -> None:
    for precision in precisions:
        torch.manual_seed(0)
        candidates = {
            "vitc vit_c_1gf": step_of(create_model("vit_c_1gf"), precision, batch, 224, device),
            "vitc vit_c_1gf channels_last": step_of(
                create_model("vit_c_1gf"), precision, batch, 224, device, channels_last=True
            ),
            "plain eager ViT_C-1GF": step_of(
                PlainViT(192, 11, 3, 576), precision, batch, 224, device
            ),
        }
        peers = import_peers()
        if peers is None:
            print("\nPEERS SKIPPED: pip install -c constraints.txt -e '.[peers]'")
        else:
            timm, models = peers
            candidates["timm VisionTransformer (patchify, 12 blocks)"] = step_of(
                timm.models.VisionTransformer(
                    embed_dim=192, depth=12, num_heads=3, mlp_ratio=3, patch_size=16
                ),
                precision,
                batch,
                224,
                device,
            )
            config = models.vision_transformer.ConvStemConfig
            stem = [config(out_channels=c, kernel_size=3, stride=2) for c in (24, 48, 96, 192)]
            candidates["torchvision VisionTransformer conv_stem"] = step_of(
                models.VisionTransformer(
                    image_size=224,
                    patch_size=16,
                    num_layers=11,
                    num_heads=3,
                    hidden_dim=192,
                    mlp_dim=576,
                    conv_stem_configs=stem,
                ),
                precision,
                batch,
                224,
                device,
            )
        rates = compare(candidates, batch, repeats, steps)
        show(
            f"vit_c_1gf, 224 px, batch {batch}, {precision}, {torch.get_num_threads()} threads",
            rates,
        )
        theirs = [n for n in candidates if n.startswith(("timm", "torchvision"))]
        if theirs:
            ratio(rates, "vitc vit_c_1gf", theirs, "ours / faster peer")
            ratio(rates, "vitc vit_c_1gf channels_last", theirs, "ours channels_last / faster peer")
        ratio(rates, "vitc vit_c_1gf", ["plain eager ViT_C-1GF"], "ours / plain eager")


def tiny(repeats: int, steps: int, device: torch.device) -> None:
    if device.type == "cpu":
        torch.set_num_threads(1)
    for name in ("vit_p_tiny", "vit_c_tiny", "vit_p_tiny_patch4", "vit_c_tiny_patch4"):
        torch.manual_seed(0)
        size = model_config(name).size[0]
        candidates = {
            f"{name} {p} {a}": step_of(
                create_model(name, num_classes=10, attention=a), p, 128, size, device
            )
            for p, a in (
                ("bf16", "explicit"),
                ("bf16", "sdpa"),
                ("fp32", "explicit"),
                ("fp32", "sdpa"),
            )
        }
        rates = compare(candidates, 128, repeats, steps)
        show(f"{name}, {size} px, batch 128, {torch.get_num_threads()} thread(s)", rates)
        ratio(rates, f"{name} bf16 explicit", [f"{name} fp32 sdpa"], "default / fp32 SDPA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["large", "tiny", "both"], default="both")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], help="of large")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images a step of the large part")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(f"torch {torch.__version__}, {describe(device)}, {time.strftime('%Y-%m-%d')}")
    if args.part in ("large", "both"):
        large(args.repeats, 2, args.batch, device, args.precision)
    if args.part in ("tiny", "both"):
        tiny(args.repeats, 10, device)


if __name__ == "__main__":
    main()
