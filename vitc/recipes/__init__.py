"""Which recipes are there? Configs with names, each with its source, command, cost and result.

Free of torch.
"""

from __future__ import annotations

from vitc.config import RunConfig
from vitc.errors import unknown
from vitc.recipes.imagenet import IMAGENET
from vitc.recipes.recipe import Recipe
from vitc.recipes.small import SMALL

__all__ = ["RECIPES", "Recipe", "get_recipe", "recipe_doc", "recipe_summary"]

RECIPES: dict[str, Recipe] = SMALL | IMAGENET


def get_recipe(name: str, optim: str | None = None) -> RunConfig:
    """The recipe's config under `optim` (None: its own optimizer).

    Not checked: one that needs a folder is complete only with `--data DIR`. Raises ConfigError: no
    such recipe (with a suggestion), no such optimizer.
    """
    return _recipe(name)(optim)


def recipe_summary(name: str) -> str:
    """What the recipe is, in one line."""
    return recipe_doc(name).partition("\n")[0]


def recipe_doc(name: str) -> str:
    """The whole text: source, command, cost, expected result. Raises ConfigError: unknown name."""
    return _recipe(name).doc


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
