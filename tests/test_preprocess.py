"""Preprocessing against torchvision's presets, on images of every mode that files come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from mbv3fast import Preprocess
from mbv3fast.preprocess import IMAGENET_MEAN, IMAGENET_STD

RAW = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # pixels from 0 to 1
GREY = {"mean": (0.0,), "std": (1.0,)}
LEVEL = 1 / 255
SIZES = [(640, 427), (300, 427), (224, 224), (256, 256), (5, 3), (1, 1), (33, 400), (257, 255)]


def photograph(size: tuple[int, int] = (640, 427)) -> Image.Image:
    """A real photograph, [width, height] of its upper left corner."""
    return Image.fromarray(load_sample_images().images[0]).crop((0, 0, *size))


def as_tensor(image: Image.Image) -> Tensor:
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def preset(torchvision: ModuleType, **arguments: Any) -> Callable[[Image.Image | Tensor], Tensor]:
    """torchvision's evaluation preset; its interpolation given by name."""
    mode = torchvision.transforms.InterpolationMode(arguments.pop("interpolation", "bilinear"))
    return torchvision.transforms._presets.ImageClassification(interpolation=mode, **arguments)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (64, 64), (65, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_rgb_image_as_torchvision_reads_it(
    torchvision: ModuleType, size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    theirs = preset(torchvision, crop_size=crop, resize_size=resize, interpolation=interpolation)
    ours = Preprocess(resize=resize, crop=crop, interpolation=interpolation)
    image = photograph(size)
    result = ours(image)
    assert (result.shape, result.dtype) == ((3, crop, crop), torch.float32)
    torch.testing.assert_close(result, theirs(image), rtol=0, atol=1e-6)


def test_the_defaults_are_imagenets() -> None:
    assert Preprocess.default(3) == Preprocess() == Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD, "bilinear")
    assert Preprocess.default(1) == Preprocess(mean=(0.5,), std=(0.5,))
    assert Preprocess.default(5) == Preprocess(mean=(0.5,) * 5, std=(0.5,) * 5)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_are_read_as_rgb(torchvision: ModuleType, mode: str) -> None:
    image = photograph().convert(mode)
    theirs = preset(torchvision, crop_size=224)(image.convert("RGB"))
    torch.testing.assert_close(Preprocess()(image), theirs, rtol=0, atol=1e-6)


def test_transparent_pixels_of_a_palette() -> None:
    image = photograph((64, 64)).convert("P")
    image.info["transparency"] = 0
    expected = Preprocess(64, 64)(image.convert("RGB"))
    assert torch.equal(Preprocess(64, 64)(image), expected)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_sixteen_bits_are_scaled_not_clipped(mode: str) -> None:
    grey = np.array(photograph().convert("L"))
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}
    deep = Image.fromarray((grey.astype(np.uint32) * 257).astype(kinds[mode]))
    assert deep.mode == mode
    assert torch.equal(Preprocess()(deep), Preprocess()(Image.fromarray(grey)))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_from_zero_to_one_or_to_255(top: float) -> None:
    grey = np.array(photograph().convert("L"))
    scaled = Image.fromarray((grey / 255 * top).astype(np.float32))
    assert torch.equal(Preprocess()(scaled), Preprocess()(Image.fromarray(grey)))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_as_many_channels_as_the_network_has(channels: int, mode: str) -> None:
    transform = Preprocess(64, 64, mean=(0.0,) * channels, std=(1.0,) * channels)
    image = photograph((64, 64))
    torch.testing.assert_close(transform(image), as_tensor(image.convert(mode)) / 255)


def test_the_centre_is_cut_out() -> None:
    image = Image.new("L", (8, 4))
    image.putpixel((4, 2), 255)
    pixels = Preprocess(4, 2, **GREY)(image)
    assert pixels.tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


def test_normalisation_is_by_channel() -> None:
    image = Image.new("RGB", (8, 8), (51, 102, 204))
    pixels = Preprocess(8, 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))(image)
    expected = torch.tensor([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, (0.8 - 0.3) / 2.0])
    torch.testing.assert_close(pixels, expected.view(3, 1, 1).expand(3, 8, 8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_uint8_tensor_as_torchvision_reads_it(
    torchvision: ModuleType, size: tuple[int, int], interpolation: str
) -> None:
    theirs = preset(torchvision, crop_size=224, interpolation=interpolation)
    pixels = as_tensor(photograph(size))
    torch.testing.assert_close(Preprocess(interpolation=interpolation)(pixels), theirs(pixels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_uint8_tensor_gives_what_the_image_gives_to_one_level(size: tuple[int, int]) -> None:
    """PIL rounds to 8 bits between its two passes, torch doesn't."""
    transform, image = Preprocess(**RAW), photograph(size)
    levels = ((transform(as_tensor(image)) - transform(image)).abs() / LEVEL).round()
    assert levels.max() <= 1
    assert levels.mean() <= 0.2


def test_pixels_are_what_is_normalised() -> None:
    preprocess = Preprocess(resize=100, crop=90, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    for image in (photograph(), as_tensor(photograph())):
        pixels = preprocess.pixels(image)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 90, 90))
        assert torch.equal(preprocess(image), (pixels.float() / 255 - mean) / std)
        torch.testing.assert_close(preprocess.normalised(pixels[None], torch.float32)[0], preprocess(image))


def test_any_number_of_channels_in_a_tensor() -> None:
    pixels = as_tensor(photograph()).repeat(2, 1, 1)[:5]
    result = Preprocess(64, 48, mean=(0.0,) * 5, std=(1.0,) * 5)(pixels)
    assert result.shape == (5, 48, 48)
    assert torch.equal(result[:2], result[3:])


def test_the_input_is_left_alone() -> None:
    image = photograph((64, 64))
    pixels, before = as_tensor(image), as_tensor(image)
    for value in (image, pixels):
        Preprocess(64, 64)(value).zero_()
    assert torch.equal(as_tensor(image), before)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": 0}, r"crop: got 0, needs 1 to resize=256"),
        ({"crop": 257}, r"crop: got 257, needs 1 to resize=256"),
        ({"resize": 223}, r"crop: got 224, needs 1 to resize=223"),
        ({"mean": (0.5,)}, r"mean, std: got 1 and 3 numbers, needs one a channel"),
        ({"mean": (), "std": ()}, r"mean, std: got 0 and 0 numbers, needs one a channel"),
        ({"std": (1.0, 0.0, 1.0)}, r"std: got \(1\.0, 0\.0, 1\.0\), needs numbers above 0"),
        ({"interpolation": "cubic"}, r"interpolation: got 'cubic', needs one of \['bicubic', 'bilinear'\]"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("photo.jpg", r"image: got str, needs a PIL image or a uint8 tensor \[C, H, W\]"),
        (np.zeros((64, 64, 3), np.uint8), r"image: got ndarray, needs a PIL image"),
        (torch.zeros(3, 64, 64), r"image: got torch\.float32 \(3, 64, 64\), needs uint8 \[3, H, W\]"),
        (torch.zeros(64, 64, 3, dtype=torch.uint8), r"image: got torch\.uint8 \(64, 64, 3\), needs uint8 \[3, H, W\]"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"image: got torch\.uint8 \(1, 3, 64, 64\), needs uint8"),
    ],
)
def test_images_that_are_refused(image: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Preprocess()(image)


def test_no_pil_mode_has_five_channels() -> None:
    with pytest.raises(TypeError, match=r"5 channels are no PIL mode; pass a uint8 tensor"):
        Preprocess.default(5)(photograph())


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 8)), torch.zeros(3, 8, 0, dtype=torch.uint8)])
def test_empty_images_are_refused(image: Image.Image | Tensor) -> None:
    with pytest.raises(ValueError, match="image: got"):
        Preprocess()(image)


def test_a_preprocess_survives_its_dict() -> None:
    transform = Preprocess(232, 224, (0.1,) * 4, (0.2,) * 4, "bicubic")
    assert Preprocess.from_dict(transform.to_dict()) == transform


def test_defaults_of_torch_do_not_matter() -> None:
    image = Image.new("RGB", (300, 260), "orange")
    expected = Preprocess()(image)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = Preprocess()(image)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_numpys_numbers_survive_json() -> None:
    given = Preprocess(resize=np.int64(64), crop=np.int32(32), mean=np.full(3, 0.5), std=(np.float32(0.5),) * 3)
    assert Preprocess.from_dict(json.loads(json.dumps(given.to_dict()))) == given
