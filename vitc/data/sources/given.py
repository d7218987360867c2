"""What holds for images that a command is given beside a run: it takes no settings of data."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace

from vitc.data.config import DataConfig
from vitc.data.sources import SOURCES
from vitc.errors import ConfigError, DataError


def with_columns(config: DataConfig, own: DataConfig) -> DataConfig:
    """`config` with the columns that the run's `own` data names, where its table has them."""
    names = ["image_column", "label_column", *(() if own.splits else ("split_column",))]
    wanted = {name: column for name in names if (column := getattr(own, name)) is not None}
    there = SOURCES[config.source].columns(config) if wanted else ()
    return replace(config, **{name: column for name, column in wanted.items() if column in there})


@contextlib.contextmanager
def followable(own: DataConfig) -> Iterator[None]:
    """Errors on such images, with hints that can be followed without settings."""
    try:
        yield
    except (ConfigError, DataError) as error:
        sentences = re.split(r"(?<=\.) +", error.hint or "")
        kept = [s for s in sentences if "--data." not in s or "vitc evaluate" in s]
        if len(kept) < len(sentences):
            columns = [name for name in (own.image_column, own.label_column) if name]
            as_trained = f", or as those trained on, {', '.join(columns)}" if columns else ""
            rename = f"Name columns path and label{as_trained}; folders and files as in"
            error.hint = " ".join([*kept, f"{rename} docs/sources.md."])
            error.args = (f"{error.message}\n{error.hint}",)
        raise
