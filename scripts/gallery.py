"""Make the pages of docs/gallery again: real runs on the Fashion-MNIST subset inside the package.

    python scripts/gallery.py    # two processor minutes; pictures need Chromium

Each page is what a command writes, but for the path of the folder. Beside it lies a picture of its
first screen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from vitc.data.config import DataConfig
from vitc.data.dataset import open_data

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
IMAGES = 100  # of a class
PAGES = {  # file here: where the commands below leave it
    "check": "check.html",
    "run": "runs/fashion/report.html",
    "against": "against.html",
    "study": "studies/stems/report/report.html",
}
COMMANDS = """
data check fashion/ --html check.html
train fashion/ --budget 40s --start scratch --train.clock processor
train runs/fashion --budget 20s --train.clock processor
evaluate runs/fashion_2 --against runs/fashion --report against.html
study hparams fashion_vit_p --models vit_c_tiny vit_p_tiny --draws 8 --train.epochs 1 \
    --data.max_train 3200 --out studies/stems
"""


def main() -> None:
    GALLERY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "fashion")
        for command in COMMANDS.strip().splitlines():
            print(f"$ vitc {command}", flush=True)
            subprocess.run([sys.executable, "-m", "vitc", *command.split()], cwd=folder, check=True)
        for page, made in PAGES.items():
            text = (folder / made).read_text().replace(f"{folder}/", "")  # as on any machine
            (GALLERY / f"{page}.html").write_text(text)
            take_picture(GALLERY / f"{page}.html", folder)


def write_images(folder: Path) -> None:
    """Training images as PNG, a sub-folder a class; one of them twice, under two labels."""
    data = open_data(DataConfig(source="fashion"))
    split = data.splits["train"]
    counts = dict.fromkeys(data.classes, 0)
    for i, label in enumerate(split.labels):
        kind = data.classes[label]
        if counts[kind] < IMAGES:
            file = folder / kind.replace("/", "-") / f"{i:05d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(split.read(i, 1)[..., 0]).save(file)
            counts[kind] += 1
    first, second, *_ = sorted(folder.iterdir())
    shutil.copy(min(first.iterdir()), second / "copy.png")


def take_picture(page: Path, folder: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"{page.name}: no picture without Chromium (scripts/install_browser.sh)")
        return
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1200"
    shot = folder / "shot.png"
    words = [chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}"]
    subprocess.run(
        [*words, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True, timeout=90
    )
    small = Image.open(shot).convert("RGB").resize((960, 900))
    small.quantize(128, Image.Quantize.FASTOCTREE).save(page.with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
