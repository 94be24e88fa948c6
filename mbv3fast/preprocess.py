"""Images to network input, the way a set of weights was evaluated: resize, centre crop, normalise."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
MOST_PIXELS = 8192  # of a side
_MOST_RESIZED = 2 * MOST_PIXELS**2  # of an image on its way to the crop
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Callable: PIL image, or uint8 tensor [C, H, W], to float32 [C, crop, crop].

    The shorter side is resized to `resize` (antialiased), the centre `crop` x `crop` is cut out (None: all is kept, as
    for segmentation), scaled to 0..1 and normalised by `mean` and `std`, one number a channel: three read images as
    RGB, one as grey.
    """

    resize: int = 256
    crop: int | None = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if name == "crop" and value is None:
                continue
            if not hasattr(value, "__index__") or isinstance(value, bool):
                raise ValueError(f"{name}: got {value!r}, needs a whole number of pixels")
            object.__setattr__(self, name, operator.index(value))
        for name in ("mean", "std"):  # NumPy's numbers would not survive JSON
            values = tuple(float(v) if isinstance(v, Real) else v for v in getattr(self, name))
            object.__setattr__(self, name, values)
        if not 1 <= self.resize <= MOST_PIXELS:
            raise ValueError(f"resize: got {self.resize}, needs 1 to {MOST_PIXELS}")
        if self.crop is not None and not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop: got {self.crop}, needs 1 to resize={self.resize}")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean, std: got {len(self.mean)} and {len(self.std)} numbers, needs one a channel")
        if not all(isinstance(m, (int, float)) and math.isfinite(m) for m in self.mean):
            raise ValueError(f"mean: got {self.mean}, needs numbers")
        if not all(isinstance(s, (int, float)) and 0 < s < math.inf for s in self.std):
            raise ValueError(f"std: got {self.std}, needs numbers above 0")
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: got {self.interpolation!r}, needs one of {sorted(INTERPOLATIONS)}")

    @classmethod
    def default(cls, channels: int) -> Preprocess:
        """ImageNet's for three channels, mean 0.5 and std 0.5 for any other number."""
        return cls() if channels == 3 else cls(mean=(0.5,) * channels, std=(0.5,) * channels)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocess:
        """Rebuild what `to_dict` wrote; TypeError or ValueError where it is something else."""
        if set(data) != {field.name for field in fields(cls)}:
            raise TypeError(f"preprocess: got {data!r}, needs {', '.join(field.name for field in fields(cls))}")
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})

    @classmethod
    def of_timm(cls, said: Mapping[str, Any]) -> Preprocess:
        """What timm's `pretrained_cfg` says; KeyError, TypeError, ValueError or ArithmeticError where it is another."""
        crop = int(said["input_size"][-1])
        return cls(
            resize=math.floor(crop / float(said["crop_pct"])),
            crop=crop,
            mean=tuple(said["mean"]),
            std=tuple(said["std"]),
            interpolation=str(said["interpolation"]),
        )

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        pixels = self.pixels(image).to(torch.float32).div(255)
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """What is normalised, uint8 [C, crop, crop]: a quarter of the bytes, and models take it as well."""
        return self._from_tensor(image) if isinstance(image, Tensor) else self._from_pil(image)

    def normalised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Bytes [N, C, H, W] or [N, H, W, C] as the weights want them: (x / 255 - mean) / std, [N, C, H, W]."""
        factor, shift = self.factors(x.device)
        x = channels_first(x, len(self.mean)).to(torch.float32)
        return (x * factor[:, None, None] - shift[:, None, None]).to(dtype)

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """factor and shift [C], with which x * factor - shift is (x / 255 - mean) / std."""
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.std))
        return (1 / (255 * std)).to(device, torch.float32), (mean / std).to(device, torch.float32)

    def _from_pil(self, image: Image.Image) -> Tensor:
        if not isinstance(image, Image.Image):
            raise TypeError(f"image: got {type(image).__name__}, needs a PIL image or a uint8 tensor [C, H, W]")
        if len(self.mean) not in PIL_MODES:
            raise TypeError(f"image: {len(self.mean)} channels are no PIL mode; pass a uint8 tensor [C, H, W]")
        width, height = self._resized(*image.size)
        image = _to_mode(image, PIL_MODES[len(self.mean)])
        image = image.resize((width, height), INTERPOLATIONS[self.interpolation])
        rows, columns = self._kept(height), self._kept(width)
        pixels = np.array(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
        channels_last = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))
        return channels_last.permute(2, 0, 1)

    def _from_tensor(self, image: Tensor) -> Tensor:
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != len(self.mean):
            raise TypeError(
                f"image: got {image.dtype} {tuple(image.shape)}, needs uint8 [{len(self.mean)}, H, W] or a PIL image"
            )
        width, height = self._resized(image.shape[2], image.shape[1])
        resized = F.interpolate(
            image[None].to(torch.float32), (height, width), mode=self.interpolation, antialias=True, align_corners=False
        )[0]
        cropped = resized[:, self._kept(height), self._kept(width)]
        return cropped.round().clamp(0, 255).to(torch.uint8)  # rounded, as an 8-bit resize would

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        short = min(width, height)
        if short < 1:
            raise ValueError(f"image: got {width}x{height} pixels, needs at least 1x1")
        resized = (self.resize * width // short, self.resize * height // short)
        if math.prod(resized) > _MOST_RESIZED:
            raise ValueError(f"image: got {width}x{height} pixels, too long and thin to bring to {self.resize} across")
        return resized

    def _kept(self, size: int) -> slice:
        """The pixels of a side that the crop leaves."""
        if self.crop is None:
            return slice(0, size)
        first = round((size - self.crop) / 2.0)
        return slice(first, first + self.crop)


def channels_first(x: Tensor, channels: int) -> Tensor:
    """A batch of bytes as [N, C, H, W], a view: [N, H, W, C] where only that has `channels` channels."""
    return x.permute(0, 3, 1, 2) if x.shape[1] != channels and x.shape[3] == channels else x


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`; 16-bit and float greys are scaled to 8 bits, where PIL would clip them to white."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        grey = np.asarray(image, dtype=np.float64)
        top = 65535.0 if grey.max(initial=0) > 255 else 255.0 if grey.max(initial=0) > 1 else 1.0
        image = Image.fromarray((np.clip(grey / top, 0, 1) * 255).round().astype(np.uint8))
    return image.convert(mode)
