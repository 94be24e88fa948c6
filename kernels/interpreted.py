"""Launch configurations for Triton's interpreter, which spends milliseconds on a program: few, whatever their size."""

from __future__ import annotations

from mbv3fast.kernels.configs import HEURISTICS, Config, power_of_2

_MOST = 1024  # of one block
_BLOCKS = {  # each block, and the sizes that it should cover
    "stem_conv": {"BLOCK_P": "pixels"},
    "pointwise_conv": {"BLOCK_M": "rows", "BLOCK_N": "outputs", "BLOCK_K": "inputs"},
    "depthwise_conv": {"TILE_H": "out_height", "TILE_W": "out_width", "BLOCK_C": "channels", "BLOCK_S": "squeeze"},
    "depthwise_project": {"TILE_H": "out_height", "TILE_W": "out_width", "BLOCK_C": "channels"},
    "squeeze": {"BLOCK_P": "pixels", "BLOCK_C": "channels", "BLOCK_S": "squeezed"},
    "excite": {"BLOCK_PARTS": "parts", "BLOCK_C": "channels"},
    "excite_project": {"BLOCK_M": "pixels", "BLOCK_N": "outputs", "BLOCK_K": "inputs", "BLOCK_PARTS": "parts"},
    "excite_images": {"BLOCK_M": "images", "BLOCK_C": "channels", "BLOCK_K": "channels"},
    "apply_scale": {"BLOCK_P": "rows", "BLOCK_C": "channels"},
    "linear": {"BLOCK_M": "rows", "BLOCK_N": "outputs", "BLOCK_K": "inputs"},
}
_LIMITS = {"TILE_H": (1, 32), "TILE_W": (1, 32), "BLOCK_PARTS": (1, _MOST)}


def interpreted(op: str, sizes: dict[str, int]) -> Config:
    """The configuration of `op` for the arguments of its heuristic in `kernels.configs`."""
    if op in ("excite_project", "excite_images") and not HEURISTICS[op](**sizes):
        return {}  # so that both ways are run
    blocks = {
        name: power_of_2(sizes.get(size, 0), *_LIMITS.get(name, (16, _MOST))) for name, size in _BLOCKS[op].items()
    }
    return {**blocks, "UNROLL": 1} if op.startswith("depthwise") else blocks
