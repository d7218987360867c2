"""What a run reports: its lines on the screen and in events.log, and its summary."""

from __future__ import annotations

LOADER_SHARE = 0.15  # of the time waited for images, above which more loader speed pays


def what_limits(wait: float, seconds: float, workers: int | None, cores: int, device: str) -> str:
    """One line: is it reading images or computing that bounds the rate, and what to change.

    `wait` of `seconds` were spent waiting for images; `workers` None: they are held on the device.
    """
    share = wait / max(seconds, 1e-9)
    said = f"{100 * share:.0f} % of the time goes into waiting for images"
    if workers is None:
        return f"computing limits the rate: the images are held on {device} ({said})"
    if share < LOADER_SHARE:
        faster = "a smaller --model or --model.img_size" if device == "cpu" else "--train.compile"
        return f"computing limits the rate, not the loader ({said}); faster: {faster}"
    ways = ["pack the images once, smaller: vitc data pack SRC OUT --short-side 256"]
    if workers < cores:
        ways.insert(0, f"--data.workers {cores} (now {workers}, for {cores} cores)")
    elif device == "cpu":
        ways.append(f"loader and training share {cores} cores here")
    return f"the loader limits the rate: {said}; to change it: {'; or '.join(ways)}"
