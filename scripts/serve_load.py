"""What does `vitc serve` do under several times its capacity? Nothing accepted may be lost.

Starts a service on a free port of this machine, measures its capacity with as many clients as its
queue has places, then sends `--times` as many requests a second for `--seconds`, each on a
connection of its own. Exits 1 where a request got no answer, an answer was neither 200 nor a 503
with Retry-After, or the service's memory grew by more than a tenth in the second half.

    python scripts/serve_load.py runs/photos photo.jpg --seconds 60
    python scripts/serve_load.py            # a fresh vit_c_small128, a made-up photo
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import vitc
from vitc.data.preprocessing import Preprocessing

SIZE = 128
MOST_OPEN = 800  # connections of the load at once, below the usual limit on open files
PATIENCE = 60.0  # seconds


@dataclass
class Seen:
    """What the clients saw: answers by status, seconds to each 200, and what else happened."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: list[float] = field(default_factory=list)


def made_up_model(folder: Path) -> Path:
    model = vitc.create_model("vit_c_small128", num_classes=10, img_size=SIZE, in_chans=3)
    preprocessing = Preprocessing(
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        interpolation="bilinear",
        crop=0.875,
        img_size=(SIZE, SIZE),
    )
    classes = tuple(f"class {i}" for i in range(10))
    return vitc.save_pretrained(
        model, folder / "model", classes=classes, preprocessing=preprocessing
    )


def made_up_photo() -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480)).save(file, "JPEG")
    return file.getvalue()


async def request(port: int, photo: bytes, seen: Seen) -> None:
    """One request on a connection of its own."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photo)}\r\n"
    start = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"{head}Connection: close\r\n\r\n".encode() + photo)
                await writer.drain()
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        seen.statuses[f"lost: {type(error).__name__}"] += 1
        return
    header, _, body = answer.partition(b"\r\n\r\n")
    status = header[9:12].decode() or "lost: no answer"
    whole = re.search(rb"content-length: (\d+)", header, re.I)
    if whole is None or len(body) != int(whole[1]):
        status = "lost: cut off"
    elif status == "503" and b"retry-after:" not in header.lower():
        status = "503 without Retry-After"
    elif status == "200":
        seen.seconds.append(time.perf_counter() - start)
    seen.statuses[status] += 1


async def capacity(port: int, photo: bytes, seconds: float, clients: int) -> float:
    """Images a second with that many clients, each of which waits for its answer."""
    seen, until = Seen(), time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < until:
            await request(port, photo, seen)

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(seen.seconds) / seconds


def resident(pid: int) -> float:
    """Megabytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1000


async def load(
    port: int, pid: int, photo: bytes, seconds: float, rate: float
) -> tuple[Seen, list[float], int]:
    """The answers to `rate` requests a second, the memory meanwhile, and their number."""
    seen, memory, sent = Seen(), [resident(pid)], 0
    open_now: set[asyncio.Task[None]] = set()
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        while sent < rate * passed and len(open_now) < MOST_OPEN:
            task = asyncio.ensure_future(request(port, photo, seen))
            open_now.add(task)
            task.add_done_callback(open_now.discard)
            sent += 1
        if passed > len(memory) * seconds / 40:
            memory.append(resident(pid))
        await asyncio.sleep(0.005)
    await asyncio.gather(*open_now)
    memory.append(resident(pid))
    return seen, memory, sent


async def measure(args: argparse.Namespace, port: int, pid: int) -> int:
    photo = args.photo.read_bytes() if args.photo else made_up_photo()
    most = await capacity(port, photo, args.warm_up, args.queue)
    seen, memory, sent = await load(port, pid, photo, args.seconds, args.times * most)
    ordered = sorted(seen.seconds) or [float("nan")]
    half = memory[len(memory) // 2 :]
    grown = max(half) / max(memory[: len(memory) // 2]) - 1
    wrong = sum(n for status, n in seen.statuses.items() if status not in ("200", "503"))
    found = {
        "capacity per second": round(most, 1),
        "sent per second": round(sent / args.seconds, 1),
        "times its capacity": round(sent / args.seconds / most, 2),
        "answers": dict(seen.statuses),
        "neither 200 nor a proper 503": wrong,
        "median seconds": round(ordered[len(ordered) // 2], 3),
        "99th percentile": round(ordered[int(0.99 * len(ordered))], 3),
        "memory MB, start, most, end": [round(memory[0]), round(max(memory)), round(memory[-1])],
        "growth in the second half": round(grown, 3),
    }
    print(json.dumps(found, indent=2))
    return int(wrong > 0 or grown > 0.1 or sum(seen.statuses.values()) != sent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="default: a fresh small one")
    parser.add_argument("photo", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--warm-up", type=float, default=5, help="seconds to find the capacity in")
    parser.add_argument("--times", type=float, default=4)
    parser.add_argument("--queue", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or made_up_model(Path(folder))
        words = [sys.executable, "-m", "vitc", "serve", str(model), "--port", "0"]
        words += ["--queue", str(args.queue)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as service:
            try:
                assert service.stdout is not None
                line = service.stdout.readline()
                print(line.strip())
                code = asyncio.run(measure(args, int(line.rpartition(":")[2]), service.pid))
            finally:
                service.send_signal(signal.SIGTERM)
            print(f"exit code after SIGTERM: {service.wait(60)} (143 is right)")
        return code or int(service.returncode != 143)


if __name__ == "__main__":
    sys.exit(main())
