"""Peers' state dicts and ways to spoil them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.peers import PEERS

LARGE, SMALL = "torchvision large 1.0", "torchvision small 1.0"
TIMM, TIMM_SMALL, RW = "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv3_rw"
TF = "tf_mobilenetv3_small_100"
State = dict[str, Any]
Edit = Callable[[State], State]


def having(**tensors: Any) -> Edit:
    """Adds or replaces entries; "__" stands for "."."""
    return lambda state: {**state, **{key.replace("__", "."): value for key, value in tensors.items()}}


def lacking(*prefixes: str) -> Edit:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefixes)}


def alone(*keys: str) -> Edit:
    return lambda state: {key: state[key] for key in keys}


def same(state: State) -> State:
    return state


def source_of(name: str) -> dict[str, str]:
    return {"source": PEERS[name].source}
