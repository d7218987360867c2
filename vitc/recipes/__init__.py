"""Configs with names, no logic. A recipe is a function of the optimizer's name that gives a
RunConfig; its docstring says source, command, cost and expected result, and when it was measured.
Free of torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from vitc.config import RunConfig
from vitc.errors import unknown
from vitc.recipes.cnn import (
    imagenet_effnet_b2,
    imagenet_effnet_b4,
    imagenet_effnet_b5,
    imagenet_regnety_1gf,
    imagenet_regnety_4gf,
    imagenet_regnety_16gf,
    imagenet_regnety_32gf,
    imagenet_resnet_50,
    imagenet_resnet_101,
    imagenet_resnet_152,
    imagenet_resnet_200,
)
from vitc.recipes.deit import imagenet_vit_p_4gf_deit, imagenet_vit_p_18gf_deit
from vitc.recipes.paper import (
    imagenet_vit_c_1gf,
    imagenet_vit_c_4gf,
    imagenet_vit_c_18gf,
    imagenet_vit_c_36gf,
    imagenet_vit_p_1gf,
    imagenet_vit_p_4gf,
    imagenet_vit_p_18gf,
    imagenet_vit_p_36gf,
)
from vitc.recipes.pretrain import (
    imagenet21k_vit_c_4gf,
    imagenet21k_vit_c_18gf,
    imagenet21k_vit_c_36gf,
    imagenet21k_vit_c_72gf,
    imagenet21k_vit_p_4gf,
    imagenet21k_vit_p_18gf,
    imagenet21k_vit_p_36gf,
    imagenet21k_vit_p_72gf,
    imagenet_vit_c_4gf_finetune,
    imagenet_vit_c_18gf_finetune,
    imagenet_vit_c_36gf_finetune,
    imagenet_vit_c_72gf_finetune,
    imagenet_vit_c_72gf_finetune_384,
    imagenet_vit_p_4gf_finetune,
    imagenet_vit_p_18gf_finetune,
    imagenet_vit_p_36gf_finetune,
    imagenet_vit_p_72gf_finetune,
)
from vitc.recipes.small import (
    cifar10_vit_c,
    cifar10_vit_p,
    debug,
    fashion_vit_c,
    fashion_vit_p,
)

__all__ = ["RECIPES", "Recipe", "get_recipe", "recipe_doc", "recipe_summary"]

Recipe = Callable[[str | None], RunConfig]

RECIPES: dict[str, Recipe] = {
    "debug": debug,
    "fashion_vit_c": fashion_vit_c,
    "fashion_vit_p": fashion_vit_p,
    "cifar10_vit_c": cifar10_vit_c,
    "cifar10_vit_p": cifar10_vit_p,
    "imagenet_vit_c_1gf": imagenet_vit_c_1gf,
    "imagenet_vit_c_4gf": imagenet_vit_c_4gf,
    "imagenet_vit_c_18gf": imagenet_vit_c_18gf,
    "imagenet_vit_c_36gf": imagenet_vit_c_36gf,
    "imagenet_vit_p_1gf": imagenet_vit_p_1gf,
    "imagenet_vit_p_4gf": imagenet_vit_p_4gf,
    "imagenet_vit_p_18gf": imagenet_vit_p_18gf,
    "imagenet_vit_p_36gf": imagenet_vit_p_36gf,
    "imagenet_vit_p_4gf_deit": imagenet_vit_p_4gf_deit,
    "imagenet_vit_p_18gf_deit": imagenet_vit_p_18gf_deit,
    "imagenet_resnet_50": imagenet_resnet_50,
    "imagenet_resnet_101": imagenet_resnet_101,
    "imagenet_resnet_152": imagenet_resnet_152,
    "imagenet_resnet_200": imagenet_resnet_200,
    "imagenet_regnety_1gf": imagenet_regnety_1gf,
    "imagenet_regnety_4gf": imagenet_regnety_4gf,
    "imagenet_regnety_16gf": imagenet_regnety_16gf,
    "imagenet_regnety_32gf": imagenet_regnety_32gf,
    "imagenet_effnet_b2": imagenet_effnet_b2,
    "imagenet_effnet_b4": imagenet_effnet_b4,
    "imagenet_effnet_b5": imagenet_effnet_b5,
    "imagenet21k_vit_p_4gf": imagenet21k_vit_p_4gf,
    "imagenet21k_vit_c_4gf": imagenet21k_vit_c_4gf,
    "imagenet21k_vit_p_18gf": imagenet21k_vit_p_18gf,
    "imagenet21k_vit_c_18gf": imagenet21k_vit_c_18gf,
    "imagenet21k_vit_p_36gf": imagenet21k_vit_p_36gf,
    "imagenet21k_vit_c_36gf": imagenet21k_vit_c_36gf,
    "imagenet21k_vit_p_72gf": imagenet21k_vit_p_72gf,
    "imagenet21k_vit_c_72gf": imagenet21k_vit_c_72gf,
    "imagenet_vit_p_4gf_finetune": imagenet_vit_p_4gf_finetune,
    "imagenet_vit_c_4gf_finetune": imagenet_vit_c_4gf_finetune,
    "imagenet_vit_p_18gf_finetune": imagenet_vit_p_18gf_finetune,
    "imagenet_vit_c_18gf_finetune": imagenet_vit_c_18gf_finetune,
    "imagenet_vit_p_36gf_finetune": imagenet_vit_p_36gf_finetune,
    "imagenet_vit_c_36gf_finetune": imagenet_vit_c_36gf_finetune,
    "imagenet_vit_p_72gf_finetune": imagenet_vit_p_72gf_finetune,
    "imagenet_vit_c_72gf_finetune": imagenet_vit_c_72gf_finetune,
    "imagenet_vit_c_72gf_finetune_384": imagenet_vit_c_72gf_finetune_384,
}


def get_recipe(name: str, optim: str | None = None) -> RunConfig:
    """The recipe's config, with its own settings for `optim` (None: its default, AdamW).

    Not checked: one that needs a folder is complete only with `--data DIR`.
    Raises ConfigError: no such recipe (with a suggestion), no such optimizer, or one for which
    this recipe has no settings.
    """
    return _recipe(name)(optim)


def recipe_summary(name: str) -> str:
    """What the recipe is, in one line."""
    return recipe_doc(name).partition("\n")[0]


def recipe_doc(name: str) -> str:
    """The whole text: source, command, cost, expected result. Raises ConfigError: unknown name."""
    return inspect.getdoc(_recipe(name)) or ""


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[name]
