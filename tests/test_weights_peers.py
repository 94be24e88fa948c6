"""Converted weights compute what the project they come from computes: torchvision, timm, the seed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3
from tests.numerics import assert_agrees
from tests.peers import PEERS, TIMM, TORCHVISION, Peer, noise, trained, trained_state

# (batch, height, width) and how many batches; several, so that no single image decides an error's size.
SIZES = [pytest.param(((1, 224, 224), 3), id="224x224"), pytest.param(((2, 97, 134), 2), id="97x134")]
Size = tuple[tuple[int, int, int], int]
ODD = (2, 97, 134)
Output = Tensor | list[Tensor]


@dataclass
class Pair:
    """A peer and our model with its weights, both in eval mode."""

    peer: Peer
    theirs: nn.Module
    ours: FusedMobileNetV3

    @functools.cached_property
    def exact(self) -> nn.Module:
        return copy.deepcopy(self.theirs).double()


@pytest.fixture(scope="module", params=PEERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    peer = PEERS[request.param]
    theirs = trained(peer.build())
    return Pair(peer, theirs, peer.convert(theirs.state_dict()))


def run(model: Callable[[Tensor], Output], size: Size, dtype: torch.dtype = torch.float32) -> Tensor:
    """`model`'s outputs for the batches of `size`, in one tensor."""
    shape, batches = size
    with torch.inference_mode():
        return torch.cat([model(noise(*shape, seed).to(dtype)) for seed in range(batches)])


def assert_equal(got: Tensor, exact: Tensor) -> None:
    """Equal but for the rounding of float64."""
    assert got.dtype == exact.dtype == torch.float64
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-13 * exact.abs().max().item())


def test_no_peer_is_left_out(timm: ModuleType) -> None:
    assert [peer.name for peer in TIMM] == timm.list_models("*mobilenetv3*")
    assert len(PEERS) == len(TIMM) + len(TORCHVISION) + 2


@pytest.mark.parametrize("size", SIZES)
def test_reference_is_the_peer(pair: Pair, size: Size) -> None:
    reference = copy.deepcopy(pair.ours).double().reference_forward
    exact = run(pair.exact, size, torch.float64)
    assert (exact[0] - exact[1]).std() > 0.1 * exact.std(), "the images hardly matter: nothing is compared"
    assert_equal(run(reference, size, torch.float64), exact)


@pytest.mark.parametrize("size", SIZES)
def test_engine_is_as_near_to_the_peer_as_the_peer_in_single_precision(pair: Pair, size: Size) -> None:
    with torch.inference_mode():
        decision = pair.ours.explain(noise(*size[0]))
    assert decision.fused, decision.reason
    assert_agrees(run(pair.ours, size), run(pair.theirs, size), run(pair.exact, size, torch.float64))


def test_parameters_are_as_many_as_the_peers(pair: Pair) -> None:
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in (pair.ours, pair.theirs))
    assert ours == theirs == pair.peer.parameters


def timm_features(peer: Peer, out_indices: tuple[int, ...] = (0, 1, 2, 3, 4)) -> nn.Module:
    """timm's feature extractor with the weights of `trained_state`."""
    model = peer.build(features_only=True, out_indices=out_indices)
    assert model.load_state_dict(trained_state(peer.name), strict=False).missing_keys == []
    return model.eval()


def our_features(peer: Peer, out_indices: tuple[int, ...] | None = None) -> FusedFeatureExtractor:
    return peer.convert(trained_state(peer.name), features_only=True, out_indices=out_indices)


@pytest.mark.parametrize("peer", TIMM, ids=lambda peer: peer.name)
def test_feature_maps_are_timms(peer: Peer) -> None:
    theirs, ours = timm_features(peer), our_features(peer)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    x = noise(*ODD)
    with torch.inference_mode():
        fused, plain = ours(x), theirs(x)
        exact = theirs.double()(x.double())
        reference = copy.deepcopy(ours).double().reference_forward(x.double())
    for level in range(5):
        assert_equal(reference[level], exact[level])
        assert_agrees(fused[level], plain[level], exact[level])


@pytest.mark.parametrize("out_indices", [(0,), (4,), (1, 3), (2, 3, 4)])
@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "tf_mobilenetv3_small_minimal_100"])
def test_chosen_feature_maps_are_timms(name: str, out_indices: tuple[int, ...]) -> None:
    theirs, ours = timm_features(PEERS[name], out_indices), our_features(PEERS[name], out_indices)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    x = noise(*ODD).double()
    with torch.inference_mode():
        maps, expected = ours.double().reference_forward(x), theirs.double()(x)
    for got, exact in zip(maps, expected, strict=True):
        assert_equal(got, exact)


@pytest.mark.parametrize("name", ["mobilenetv3_large_150d", "mobilenetv3_rw", "tf_mobilenetv3_small_075"])
def test_embedding_is_timms(name: str) -> None:
    """Whether timm left the classifier out or we do."""
    whole = trained_state(name)
    theirs = PEERS[name].build(num_classes=0).eval()
    assert theirs.load_state_dict(whole, strict=False).missing_keys == []
    ours = PEERS[name].convert(theirs.state_dict())
    assert (ours.num_classes, ours.config.num_classes) == (0, 0)
    size = (ODD, 2)
    exact = run(copy.deepcopy(theirs).double(), size, torch.float64)
    for model in (ours, PEERS[name].convert(whole, num_classes=0)):
        assert_agrees(run(model, size), run(theirs, size), exact)
        assert_equal(run(model.double().reference_forward, size, torch.float64), exact)


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "mobilenetv3_rw", "tf_mobilenetv3_small_100"])
def test_the_parts_of_the_forward_are_timms(name: str) -> None:
    theirs = PEERS[name].build().eval()
    theirs.load_state_dict(trained_state(name))
    ours = PEERS[name].convert(trained_state(name))
    assert (ours.num_features, ours.head_hidden_size) == (theirs.num_features, theirs.head_hidden_size)
    ours.double()
    theirs.double()
    with torch.inference_mode():
        features = theirs.forward_features(noise(*ODD).double())
        assert_equal(ours.forward_features(noise(*ODD).double()), features)
        for pre_logits in (False, True):
            assert_equal(ours.forward_head(features, pre_logits), theirs.forward_head(features, pre_logits))
