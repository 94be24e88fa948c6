"""Fixtures: the peers' packages, photographs as files, weights that tell them apart, CUDA kernels on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import CDLL
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import mbv3fast
from mbv3fast import backend
from mbv3fast.cuda import library
from tests.once import made_once
from tests.peers import peer
from tests.stand_ins import StandIn, stand_in_for_a_gpu

torch.set_num_threads(1)  # two pytest workers share two cores


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    return peer("torchvision")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    peer("torchvision")
    return peer("timm")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A file of a Small whose predictions differ from image to image: calibrated on the photographs, logits centred."""
    torch.manual_seed(0)
    model = mbv3fast.small(se_divisor=8, bn_momentum=1.0)
    with torch.no_grad():
        x = torch.stack([model.transforms()(Image.open(path)) for path in sorted(photos.glob("*.*g"))])
        model(x)
        model.classifier[3].weight.mul_(100)
        model.classifier[3].bias.sub_(model.eval()(x).mean(0))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mbv3fast.weights.save(model, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's two photographs and crops of them, twelve in all, one in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        image.save(folder / f"{name}.jpg")
        for i in range(5):
            target = folder / "more" if i == 0 else folder
            image.crop((60 * i, 20 * i, 60 * i + 300, 20 * i + 250)).save(target / f"{name}-{i}.png")
    return folder


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The emulated CUDA library, up to date, where `mbv3fast build --emulated` puts it; beside its objects the example,
    and the kernels of tests/cuda/kernels.cu.

    Workers take turns: the second finds nothing left to compile.
    """
    builder = pytest.importorskip("mbv3fast.csrc.build")
    lack = builder.lacks_tools(emulated=True)
    if lack:
        pytest.skip(lack)
    options = ["-DMBV3FAST_EXAMPLE=ON", f"-DMBV3FAST_TESTS={Path(__file__).parent / 'cuda' / 'kernels.cu'}"]
    return builder.build(library.FOLDER, emulated=True, options=options)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained Small as a model of Triton Inference Server, on a CPU."""
    from examples.triton_server.make_repository import Service, write
    from tests.networks import trained_small

    def make(folder: Path) -> None:
        write(trained_small(), folder / "digits", Service(max_batch=8), size=(64, 64), verify=False)

    return made_once(tmp_path_factory, "models", make) / "digits"


@pytest.fixture
def emulation(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CDLL]:
    """As if MBV3FAST_EMULATE=1 had been set at the start: the library, which takes CPU tensors."""
    for module in (library, backend):
        monkeypatch.setattr(module, "emulated", lambda: True)
    assert library.library_path() == emulated_library
    loaded = library.library()
    yield loaded
    loaded.mbv3fast_emulate(90, 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """As if this CPU were a GPU; what captures graphs there."""
    return stand_in_for_a_gpu(monkeypatch)


@pytest.fixture(params=["CPU", "GPU"])
def served_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where models are served: on this CPU, or as a GPU's are, behind replays of captured graphs."""
    if request.param == "GPU":
        stand_in_for_a_gpu(monkeypatch)
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables of timed configurations are looked for; tiles of CUDA kernels beside it, in cuda-tables."""
    found = tmp_path / "tables"
    for path, module in ((found, "mbv3fast.kernels.tuned"), (tmp_path / "cuda-tables", "mbv3fast.cuda.tuned")):
        path.mkdir()
        monkeypatch.setattr(f"{module}.TABLES", path)
    return found
