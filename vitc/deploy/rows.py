"""How are predictions written, a row an image as they come? One class a form.

A broken file has a row as well, without a class or features.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vitc.errors import BrokenFileError, ConfigError
from vitc.machine import check_installed
from vitc.wording import no_formula, printable

Best = list[tuple[str, float]]
"""Classes with their probabilities, best first."""
PARQUET_ROWS = 1024  # held in memory before they are written


class Rows:
    """The rows of `files`: `topk` of the classes each, or `width` features if that is not 0."""

    def __init__(
        self,
        stream: IO[Any],
        files: Sequence[object],
        classes: Sequence[str],
        topk: int,
        width: int,
    ) -> None:
        self.stream, self.topk, self.width = stream, topk, width
        self.ranks = [""] if topk == 1 else [f"_{i}" for i in range(1, topk + 1)]
        self.start(files, classes)

    def start(self, files: Sequence[object], classes: Sequence[str]) -> None:
        """What stands before the rows."""

    def write(self, name: str, best: Best, features: NDArray[np.float32] | None) -> None:
        raise NotImplementedError

    def broken(self, name: str, error: BrokenFileError) -> None:
        self.write(name, [], None)

    def close(self) -> None:
        """Write what is held back."""


class Table(Rows):
    def start(self, files: Sequence[object], classes: Sequence[str]) -> None:
        if self.width:
            raise ConfigError("Features do not fit a terminal.", "Add --out FILE or --json.")
        self.wide = max(len(printable(name)) for name in ["image", *map(str, files)])
        self.deep = max(len(printable(name)) for name in ["class", *classes])
        head = "  ".join([f"{'class':<{self.deep}}  probability"] * self.topk)
        self.stream.write(f"{'image':<{self.wide}}  {head}\n")

    def write(self, name: str, best: Best, features: NDArray[np.float32] | None) -> None:
        shown = [f"{printable(label):<{self.deep}}  {100 * p:9.2f} %" for label, p in best]
        self.stream.write(f"{printable(name):<{self.wide}}  {'  '.join(shown or ['broken'])}\n")


class JsonLines(Rows):
    def write(self, name: str, best: Best, features: NDArray[np.float32] | None) -> None:
        values: dict[str, Any] = {"image": name}
        if features is not None:
            values["features"] = features.tolist()
        else:
            values["top"] = [{"class": label, "probability": p} for label, p in best]
        self.stream.write(json.dumps(values) + "\n")

    def broken(self, name: str, error: BrokenFileError) -> None:
        about = {"status": "failed", "error": error.message, "hint": error.hint}
        self.stream.write(json.dumps({"image": name, **about}) + "\n")


class Csv(Rows):
    def start(self, files: Sequence[object], classes: Sequence[str]) -> None:
        self.rows = csv.writer(self.stream)
        columns = [f"{c}{r}" for r in self.ranks for c in ("class", "probability")]
        self.rows.writerow(
            ["image", *([f"feature_{i}" for i in range(self.width)] if self.width else columns)]
        )

    def write(self, name: str, best: Best, features: NDArray[np.float32] | None) -> None:
        cells: list[object] = [name]
        if self.width:
            cells += [""] * self.width if features is None else features.tolist()
        else:
            cells += itertools.chain.from_iterable(best or [("", "")] * self.topk)
        self.rows.writerow(map(no_formula, cells))


class Parquet(Rows):
    """Needs the extra `data`; features are a column of lists."""

    def start(self, files: Sequence[object], classes: Sequence[str]) -> None:
        check_installed("A parquet file", "data", "pyarrow")
        import pyarrow
        import pyarrow.parquet

        fields = [("image", pyarrow.string())]
        if self.width:
            fields += [("features", pyarrow.list_(pyarrow.float32(), self.width))]
        for rank in () if self.width else self.ranks:
            fields += [(f"class{rank}", pyarrow.string())]
            fields += [(f"probability{rank}", pyarrow.float32())]
        self.schema = pyarrow.schema([*fields, ("error", pyarrow.string())])
        self.file = pyarrow.parquet.ParquetWriter(self.stream, self.schema)
        self.held: list[dict[str, Any]] = []

    def write(self, name: str, best: Best, features: NDArray[np.float32] | None) -> None:
        row: dict[str, Any] = {"image": _utf8(name), "features": features}
        for rank, (label, p) in zip(self.ranks, best, strict=False):
            row |= {f"class{rank}": _utf8(label), f"probability{rank}": p}
        self._hold(row)

    def broken(self, name: str, error: BrokenFileError) -> None:
        self._hold({"image": _utf8(name), "error": _utf8(error.message)})

    def _hold(self, row: dict[str, Any]) -> None:
        self.held.append(row)
        if len(self.held) == PARQUET_ROWS:
            self._write_held()

    def _write_held(self) -> None:
        import pyarrow

        names = self.schema.names
        rows = [{name: row.get(name) for name in names} for row in self.held]
        self.file.write_table(pyarrow.Table.from_pylist(rows, self.schema))
        self.held = []

    def close(self) -> None:
        self._write_held()
        self.file.close()


def _utf8(name: str) -> str:
    """A file's name whose bytes are no UTF-8 with these spelt out, as in CSV."""
    return name.encode("utf-8", "backslashreplace").decode()


FORMS: dict[str, type[Rows]] = {
    "table": Table,
    "json": JsonLines,
    "csv": Csv,
    "parquet": Parquet,
}
SUFFIXES = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}  # of --out
