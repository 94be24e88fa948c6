"""What one CPU core takes to read images for the network, and for the network itself: `python -m benchmarks.decode`.

Photographs as JPEG in sizes that jobs have, read by mbv3fast's own reader and by others, each in this process on one
thread. Times are of the process's CPU clock, which other work on the machine stretches less than a wall clock's: the
median of rounds, and the fastest. The larger photographs are tiles of a small one, so that a pixel has as much detail.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import PIL
import torch
from PIL import Image, features
from sklearn.datasets import load_sample_images
from torch import Tensor

import mbv3fast
from benchmarks.machine import machine_info
from mbv3fast import Preprocess
from tests.peers import peer

PREPROCESS = Preprocess()  # ImageNet's: 256 across, 224x224 of that
SIZES = ((341, 256), (500, 375), (1280, 960), (4000, 3000))
Reader = Callable[[bytes], Tensor]


def photographs(width: int, height: int, quality: int = 90) -> list[bytes]:
    """Two photographs as JPEG of that size: reduced, or as many tiles as it takes."""
    return [_jpeg(_fitted(Image.fromarray(pixels), width, height), quality) for pixels in load_sample_images().images]


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    if width <= image.width and height <= image.height:
        return image.resize((width, height), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (width, height))
    for left, top in itertools.product(range(0, width, image.width), range(0, height, image.height)):
        sheet.paste(image, (left, top))
    return sheet


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=quality)
    return file.getvalue()


def pillow(content: bytes) -> Tensor:
    """As the command line reads an image."""
    with Image.open(io.BytesIO(content)) as image:
        return PREPROCESS.pixels(image)


def draft(content: bytes) -> Tensor:
    """The same, decoded at 1/2, 1/4 or 1/8 of its size where that is still larger than what is wanted."""
    with Image.open(io.BytesIO(content)) as image:
        image.draft("RGB", (PREPROCESS.resize, PREPROCESS.resize))
        return PREPROCESS.pixels(image)


def decoding_alone(content: bytes) -> Tensor:
    """Pillow's decoder without the resize."""
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    return torch.empty(0)


def torchvision_io(content: bytes) -> Tensor:
    """torchvision's decoder, and PyTorch's resize. RuntimeError where torchvision's compiled half is missing."""
    images = peer("torchvision").io
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return PREPROCESS.pixels(images.decode_jpeg(encoded, mode=images.ImageReadMode.RGB))


READERS: tuple[Reader, ...] = (pillow, draft, decoding_alone, torchvision_io)


def read_all(reader: Reader, images: list[bytes]) -> None:
    for image in images:
        reader(image)


def rates(call: Callable[[], object], images: int, rounds: int, at_least: float) -> str:
    """Images a CPU second of a call that takes `images`: the median of rounds of `at_least` seconds, and the best."""
    call()
    times: list[float] = []
    for _ in range(rounds):
        calls, start = 0, time.process_time()
        while time.process_time() - start < at_least:
            call()
            calls += 1
        times.append((time.process_time() - start) / (calls * images))
    return " | ".join(f"{1 / each:.{0 if each < 0.01 else 1}f}" for each in (statistics.median(times), min(times)))


def table(rounds: int, at_least: float = 0.3) -> Iterator[str]:
    """In Markdown: what each reader makes of images of each size, then what the networks make of bytes."""
    yield "| image | KB | by | images/s, median | best round | off by, of 255 |"
    yield "| --- | ---: | --- | ---: | ---: | ---: |"
    for width, height in SIZES:
        images = photographs(width, height)
        kilobytes = sum(map(len, images)) / len(images) / 1000
        for reader in READERS:
            row = f"| {width}x{height} | {kilobytes:.0f} | {reader.__name__.replace('_', ' ')}"
            try:
                error = difference(reader, images)
            except (ImportError, RuntimeError) as lack:
                yield f"{row} | {str(lack).partition('. ')[0]} | | |"
            else:
                found = rates(partial(read_all, reader, images), len(images), rounds, at_least)
                yield f"{row} | {found} | {error} |"
    for variant in ("large", "small"):
        yield f"| {PREPROCESS.crop}x{PREPROCESS.crop} | | {variant}, batch 8 | {network(variant, rounds, at_least)} | |"


def network(variant: str, rounds: int, at_least: float) -> str:
    """The rates of a network on batches of 8, of bytes."""
    model = getattr(mbv3fast, variant)(source="torchvision").eval()
    side = PREPROCESS.crop or 0
    x = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        return rates(partial(model, x), len(x), rounds, at_least)


def difference(reader: Reader, images: list[bytes]) -> str:
    """How far a reader's pixels are from Pillow's on average; nothing for a reader that gives none."""
    pairs = [(reader(image), pillow(image)) for image in images]
    if not pairs[0][0].numel():
        return ""
    return f"{statistics.mean((a.float() - b.float()).abs().mean().item() for a, b in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"pillow": PIL.__version__, "libjpeg-turbo": features.version_feature("libjpeg_turbo")}
    print(", ".join(f"{name} {version}" for name, version in {**machine_info()["versions"], **versions}.items()))
    for line in table(arguments.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
