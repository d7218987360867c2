"""Which recipes are there? Configs with names, each with its source, command, cost and result.

Free of torch.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.errors import unknown
from vitc.recipes.imagenet import IMAGENET
from vitc.recipes.recipe import Recipe
from vitc.recipes.small import FORMULA, SMALL

__all__ = ["PRETRAINING", "RECIPES", "Recipe", "find_recipe", "get_recipe"]

RECIPES: dict[str, Recipe] = SMALL | IMAGENET
PRETRAINING = (FORMULA.config.name,)  # `vitc pretrain`: on images that it makes itself


def find_recipe(name: str) -> Recipe:
    """The recipe with its text. Raises ConfigError: no such recipe, with a suggestion."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]


def get_recipe(name: str, optim: str | None = None) -> RunConfig:
    """The recipe's config under `optim` (None: its own optimizer).

    Not checked: one that needs a folder is complete only with `--data DIR`. Raises ConfigError: no
    such recipe (with a suggestion), no such optimizer.
    """
    return find_recipe(name)(optim)
