"""Which parts of a model are trained, and in which mode the others run."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from vitc.errors import ConfigError, suggest
from vitc.models.zoo import classifier_name

BACKBONE = "backbone"


def freeze(model: nn.Module, parts: Collection[str]) -> None:
    """Take the parameters of `parts` out of training.

    A part is the start of parameters' names, up to a dot (stem, blocks.0, pos_embed), or
    `backbone` for all but the classifier. Raises ConfigError: a part that no parameter belongs
    to (with a suggestion), or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    for part in parts:
        chosen = [p for name, p in parameters.items() if _belongs(name, part, model)]
        if not chosen:
            known = list(dict.fromkeys(name.partition(".")[0] for name in parameters))
            near = suggest(part, [*known, BACKBONE, *parameters])
            raise ConfigError(
                f"train.freeze {part!r} is no part of the model.{near}",
                f"Its parts: {', '.join(known)}, {BACKBONE}; a longer name is a part of one of "
                f"these, for example {max(parameters, key=len).rpartition('.')[0]}.",
            )
        for p in chosen:
            p.requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        raise ConfigError(
            f"train.freeze {', '.join(parts)} leaves nothing to train.",
            f"For a linear probe: --train.freeze {BACKBONE}",
        )


def _belongs(name: str, part: str, model: nn.Module) -> bool:
    if part == BACKBONE:
        head = classifier_name(model)
        return not _belongs(name, head, model)
    return name == part or name.startswith(f"{part}.")


def train_mode(model: nn.Module) -> None:
    """Training mode, but eval mode for frozen parts: their BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        trained = [p.requires_grad for p in module.parameters()]
        if trained and not any(trained):
            module.eval()
