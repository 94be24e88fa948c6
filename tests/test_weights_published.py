"""torchvision's published weights by name: which file, which transforms, and what happens without a network."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import WeightsError
from mbv3fast.weights import published
from tests.peers import assert_same_pixels, ours, picture, trained_state

LARGE, SMALL = "torchvision large 1.0", "torchvision small 1.0"
TRUE_HASH, WRONG_HASH = None, "0123abcd"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of downloads, empty; no address but this machine's can be reached."""

    def here_only(request: Any, **options: Any) -> Any:
        if request.host.startswith("127.0.0.1:"):
            return urlopen(request, **options)
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "urlopen", here_only)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def marked(variant: str, mark: float) -> dict[str, Tensor]:
    """torchvision's state dict, told from others by its last bias."""
    state = trained_state(LARGE if variant == "large" else SMALL)
    return {**state, "classifier.3.bias": torch.full((1000,), float(mark))}


@pytest.mark.parametrize(
    ("variant", "name", "member"),
    [
        ("large", "DEFAULT", "IMAGENET1K_V2"),
        ("large", "IMAGENET1K_V1", "IMAGENET1K_V1"),
        ("large", "IMAGENET1K_V2", "IMAGENET1K_V2"),
        ("small", "DEFAULT", "IMAGENET1K_V1"),
        ("small", "IMAGENET1K_V1", "IMAGENET1K_V1"),
    ],
)
@pytest.mark.parametrize("given", ["name", "member", "file"])
def test_names_mean_torchvisions_files(
    torchvision: ModuleType, home: Path, variant: str, name: str, member: str, given: str
) -> None:
    """Out of torch.hub's cache, where torchvision's own downloads lie."""
    kind = getattr(torchvision.models, f"MobileNet_V3_{variant.title()}_Weights")
    for mark, each in enumerate(kind):
        torch.save(marked(variant, mark), home / each.url.rsplit("/", 1)[1])
    file = home / kind[name].url.rsplit("/", 1)[1]
    weights = {"name": name, "member": kind[name], "file": file}[given]
    model = ours(variant, weights=weights)
    assert model.classifier[3].bias.unique().tolist() == [list(kind).index(kind[member])]
    assert (model.config.bn_eps, model.config.tf_same_padding) == (1e-3, False)
    assert list(model.labels or ()) == [*kind[name].meta["categories"]]
    theirs = kind[name].transforms()
    for size in ((301, 517), (640, 227)):
        assert_same_pixels(model.transforms()(picture(*size)), theirs(picture(*size)))


def test_addresses_are_torchvisions(torchvision: ModuleType) -> None:
    for variant, known in published.PUBLISHED.items():
        kind = getattr(torchvision.models, f"MobileNet_V3_{variant.title()}_Weights")
        assert {name: each.url for name, each in known.items()} == {each.name: each.url for each in kind}


@pytest.mark.parametrize("variant", ["large", "small"])
def test_a_member_of_the_other_enum_is_refused(torchvision: ModuleType, variant: str) -> None:
    other = "small" if variant == "large" else "large"
    member = getattr(torchvision.models, f"MobileNet_V3_{other.title()}_Weights").DEFAULT
    with pytest.raises(WeightsError, match=rf"^weights: .* belongs to mbv3fast\.{other}\(\), not to {variant}\(\)$"):
        ours(variant, weights=member)


def test_small_has_no_second_version() -> None:
    with pytest.raises(WeightsError, match=r"got 'IMAGENET1K_V2', needs .* one of DEFAULT, IMAGENET1K_V1, digits, hf-"):
        mbv3fast.small(weights="IMAGENET1K_V2")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None, bytes], str]]:
    """publish(hash in the name or None for the true one, content): "DEFAULT" of Small is served from this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()

        def publish(prefix: str | None, content: bytes) -> str:
            name = f"mobilenet_v3_small-{prefix or hashlib.sha256(content).hexdigest()[:8]}.pth"
            (folder / name).write_bytes(content)
            url = f"http://127.0.0.1:{httpd.server_port}/{name}"
            entry = replace(published.PUBLISHED["small"]["IMAGENET1K_V1"], url=url)
            monkeypatch.setitem(published.PUBLISHED["small"], "IMAGENET1K_V1", entry)
            return name

        yield publish
        httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def checkpoint(tmp_path: Path, mark: float = 7) -> bytes:
    torch.save(marked("small", mark), tmp_path / "original.pth")
    return (tmp_path / "original.pth").read_bytes()


def test_a_download_with_the_right_hash(server: Callable[..., str], home: Path, tmp_path: Path) -> None:
    content = checkpoint(tmp_path)
    name = server(TRUE_HASH, content)
    assert mbv3fast.small(weights="DEFAULT").classifier[3].bias.unique().tolist() == [7]
    assert (home / name).read_bytes() == content


def test_a_download_with_the_wrong_hash(server: Callable[..., str], home: Path, tmp_path: Path) -> None:
    name = server(WRONG_HASH, checkpoint(tmp_path))
    with pytest.raises(WeightsError, match=f"^weights: {name} arrived damaged: invalid hash value"):
        mbv3fast.small(weights="DEFAULT")
    assert list(home.iterdir()) == [], "what arrived damaged must not be found next time"


def test_a_file_that_is_gone_from_the_server(server: Callable[..., str], tmp_path: Path) -> None:
    name = server(TRUE_HASH, b"")
    (tmp_path / "served" / name).unlink()
    with pytest.raises(WeightsError, match=f"^weights: {name} can't be downloaded .*404.*pass the file's path"):
        mbv3fast.small(weights="DEFAULT")


@pytest.mark.parametrize(
    ("variant", "file"), [("large", "mobilenet_v3_large-5c1a4163.pth"), ("small", "mobilenet_v3_small-047dcff4.pth")]
)
def test_without_a_network_the_file_to_pass_is_named(variant: str, file: str, home: Path) -> None:
    with pytest.raises(
        WeightsError, match=rf"^weights: {file} can't be downloaded \(.*no route to host.*\)"
    ) as refusal:
        ours(variant, weights="DEFAULT")
    message = str(refusal.value)
    assert f"fetch https://download.pytorch.org/models/{file} elsewhere and pass the file's path as weights=" in message
    assert f"or put it into {home}" in message
    torch.save(marked(variant, 7), home / file)
    assert ours(variant, weights="DEFAULT").classifier[3].bias.unique().tolist() == [7]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE html><title>blocked</title>", id="html"),
        pytest.param(b"PK\x03\x04", id="zip"),
        pytest.param(b"\x80\x02}q\x00", id="pickle"),
    ],
)
def test_a_damaged_file_in_the_cache_is_named(content: bytes, home: Path) -> None:
    (home / "mobilenet_v3_small-047dcff4.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"^weights: .*mobilenet_v3_small-047dcff4\.pth"):
        mbv3fast.small(weights="DEFAULT")
