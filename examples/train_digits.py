"""Train MobileNetV3-Small on scikit-learn's handwritten digits, from scratch, in some minutes on two cores.

    python examples/train_digits.py --out digits_small.safetensors

Real handwriting (1,797 images of 8x8 pixels), resized to 64x64; a fifth is held out, and the accuracy on it is
what the script prints. Seeded: the same machine and versions give the same file. The checkpoint that the
package carries was made by it, and the sheet of held-out digits beside it by --sheet.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import mbv3fast
from mbv3fast import Preprocess

SIZE = 64
PREPROCESS = Preprocess(resize=SIZE, crop=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)


def digit_images() -> tuple[list[Image.Image], np.ndarray]:
    """The data set as 8-bit grey images, white on black, with their labels."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    return [Image.fromarray(image) for image in pixels], digits.target


def split(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the held-out images, a fifth of each class."""
    labels = digit_images()[1]
    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    return train, held_out


def tensors(indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """Preprocessed images [N, 3, 64, 64] and labels [N]."""
    images, labels = digit_images()
    return torch.stack([PREPROCESS(images[i]) for i in indices]), torch.from_numpy(labels[indices])


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 15 degrees, scale by up to 15%, shift by up to 8%; what comes in is black."""
    count = x.shape[0]

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(15)), 1 + uniform(0.15)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = torch.stack([uniform(0.16), uniform(0.16)], dim=1)
    affine = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1), shift], dim=2)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # black is -1 after normalisation


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, batch: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    with tqdm(total=steps, unit="step") as progress:
        for epoch in range(epochs):
            for indices in torch.randperm(len(x), generator=generator)[: len(x) // batch * batch].split(batch):
                images = augment(x[indices], generator).contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(model(images), y[indices], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(epoch=epoch + 1, loss=f"{loss.item():.3f}")


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in x.split(64)])
    return (predicted == y).float().mean().item()


def write_sheet(path: Path, held_out: np.ndarray, rows: int = 4) -> None:
    """Held-out digits in a grid: column k shows the digit k."""
    images, labels = digit_images()
    sheet = Image.new("L", (10 * 8, rows * 8))
    for digit in range(10):
        for row, index in enumerate(held_out[labels[held_out] == digit][:rows]):
            sheet.paste(images[index], (digit * 8, row * 8))
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits_small.safetensors"))
    parser.add_argument("--sheet", type=Path, help="also write a sheet of held-out digits (PNG)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    train_indices, held_out = split()
    model = mbv3fast.small(num_classes=10, bn_momentum=0.1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train(model, *tensors(train_indices), arguments.epochs, arguments.batch, generator)
    model.preprocess, model.labels = PREPROCESS, tuple("0123456789")
    mbv3fast.weights.save(model.half(), arguments.out)  # half precision halves the file
    saved = mbv3fast.small(weights=arguments.out).eval()
    print(f"held-out accuracy of {arguments.out}: {accuracy(saved, *tensors(held_out)):.4f}")
    if arguments.sheet:
        write_sheet(arguments.sheet, held_out)


if __name__ == "__main__":
    main()
