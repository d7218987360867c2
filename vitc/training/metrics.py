"""How good is it: running counts kept on the device, read once when asked."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Counts:
    """Sums of loss, top-1 and top-5 hits over batches; one host read in `result`.

    Samples with label -1 (a skipped file, or padding) do not count.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(4, dtype=dtype, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits (B, K) floating, labels (B,) int64."""
        logits = logits.float()
        seen = labels >= 0
        target = labels.clamp_min(0)
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        k = min(5, logits.shape[1])
        hits = logits.topk(k, dim=1).indices == target[:, None]  # (B, k)
        self.sums += torch.stack(
            [
                seen.sum(),
                (losses * seen).sum(),
                (hits[:, 0] & seen).sum(),
                (hits.any(1) & seen).sum(),
            ]
        ).to(self.sums.dtype)

    def result(self) -> dict[str, float]:
        """`n`, `loss` (nats), `top1` and `top5` in percent."""
        n, loss, top1, top5 = self.sums.tolist()
        per = 1 / n if n else math.nan
        return {"n": n, "loss": loss * per, "top1": 100 * top1 * per, "top5": 100 * top5 * per}
