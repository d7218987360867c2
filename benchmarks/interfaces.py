"""What do torch's other ways to run a model change in its logits?

    python benchmarks/interfaces.py

prints a row an interface and a column a model: the largest difference of the logits from those of
the model run eagerly in fp32, on two random images. All weights and statistics are random, so that
no head is zero; the first row is the standard deviation of the logits themselves.
"""

from __future__ import annotations

import argparse
import copy
import io
import platform
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

import vitc


def pickled(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def half(model: nn.Module) -> Callable[[Tensor], Tensor]:
    changed = copy.deepcopy(model).half()
    return lambda x: changed(x.half())


INTERFACES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "torch.save": lambda model, x: pickled(model),
    "torch.fx": lambda model, x: fx.symbolic_trace(model),
    "bf16-autocast": lambda model, x: torch.autocast("cpu", torch.bfloat16)(model),
    "fp16": lambda model, x: half(model),
    "int8-linear": lambda model, x: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
    "torch.jit.trace": lambda model, x: torch.jit.trace(model, x),
    "torch.export": lambda model, x: torch.export.export(model, (x,)).module(),
    "torch.compile": lambda model, x: torch.compile(model),
}


def random_model(name: str, img_size: int) -> Any:
    """A model of the zoo with every parameter drawn, and BatchNorm's statistics of a batch."""
    torch.manual_seed(0)
    model: Any = vitc.create_model(name, num_classes=100, img_size=img_size)
    nn.init.normal_(model.head.weight, std=0.05)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        model(torch.randn(4, 3, img_size, img_size))
    return model.eval()


def difference(name: str, model: nn.Module, x: Tensor, expected: Tensor) -> str:
    """The largest one of all logits, or the error."""
    try:
        logits = INTERFACES[name](model, x)(x)
    except Exception as error:  # a library's, of any kind
        return type(error).__name__
    return f"{float((logits.float() - expected).abs().max()):.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_c_1gf", "vit_p_1gf", "regnety_1gf"])
    parser.add_argument("--interfaces", nargs="+", choices=INTERFACES, default=[*INTERFACES])
    parser.add_argument("--img-size", type=int, default=224)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    models = [random_model(name, options.img_size) for name in options.models]
    x = torch.randn(2, 3, options.img_size, options.img_size)
    with torch.no_grad():
        logits = [model(x) for model in models]
        print("|", " | ".join(["interface", *(f"`{name}`" for name in options.models)]), "|")
        print("| --- " * (1 + len(models)) + "|")
        print("| deviation of the logits |", " | ".join(f"{y.std():.2f}" for y in logits), "|")
        for name in options.interfaces:
            found = [difference(name, m, x, y) for m, y in zip(models, logits, strict=True)]
            print(f"| {name} |", " | ".join(found), "|", flush=True)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"\n{versions}, vitc {vitc.__version__}")


if __name__ == "__main__":
    main()
