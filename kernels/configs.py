"""Launch configurations: pure functions of an op's shape, a dtype's bytes and a GPU's number of multiprocessors.

Two ends pull: few images starve the chip, so blocks shrink until there are programs enough, and taps are unrolled to
put loads in flight; many images fill it, so blocks grow until a program reads little twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil, prod

Config = Mapping[str, int]  # block sizes, num_warps, num_stages
SMS = 132  # of an H100; near enough for others
_WIDEST_PROJECTION = 256  # outputs whose sums a program can hold beside a depthwise tile
_WIDEST_SQUEEZE = 256  # hidden units whose matrices a program can hold
GAP = 2e-6  # seconds from one launch to the next in a graph, drained and filled
OVERLAPPED_GAP = 1e-6  # where a kernel may start while its predecessor drains: sm_90 and later
PORT = 110e9  # bytes a second into one multiprocessor: 64 a clock; its own L1 cache gives twice that
_REDUCTION = 0.25e-6  # seconds of a sum across the threads of a program
_MATRIX = 16  # rows that a tensor core takes
_WAVES = 2  # programs wanted for each multiprocessor, so that one computes while another loads


def power_of_2(value: int, least: int, most: int) -> int:
    """The smallest power of 2 that covers `value`, within the limits."""
    return min(most, max(least, 1 << max(0, value - 1).bit_length()))


def shrink(blocks: dict[str, int], least: dict[str, int], sizes: dict[str, int], sms: int) -> dict[str, int]:
    """Halve the blocks, in the order of `least`, until `sizes` make programs enough."""
    while prod(ceil(sizes[name] / blocks[name]) for name in blocks) < _WAVES * sms:
        name = next((name for name in least if blocks[name] > least[name]), None)
        if name is None:
            break
        blocks = {**blocks, name: blocks[name] // 2}
    return blocks


def pointwise_conv(rows: int, outputs: int, inputs: int, itemsize: int, pixels: int = 0, sms: int = SMS) -> Config:
    """For a product [rows, inputs] x [inputs, outputs]; `pixels`: an image's, where tiles end with it, else 0."""
    # Columns computed, wasted ones too, and for each block a read of x that costs about as much as 32 of them.
    block_n = min((128, 64, 32, 16), key=lambda block: ceil(outputs / block) * (block + 32))
    blocks = shrink(
        {"BLOCK_M": power_of_2(pixels or rows, 16, 128), "BLOCK_N": block_n},
        {"BLOCK_M": 32, "BLOCK_N": 16},
        {"BLOCK_M": rows, "BLOCK_N": outputs},
        sms,
    )
    # Sums that four warps hold beside what else they need: a scale, or the factors of products without tensor cores.
    most = 1024 if itemsize == 4 else 4096 if pixels else 8192
    warps = 4 if blocks["BLOCK_M"] * blocks["BLOCK_N"] <= most else 8
    programs = ceil(rows / blocks["BLOCK_M"]) * ceil(outputs / blocks["BLOCK_N"])
    deepest = (256 if programs < sms else 128) // itemsize  # the fewer steps, the fewer waits in a row
    return {**blocks, "BLOCK_K": power_of_2(inputs, 16, deepest), "num_warps": warps, "num_stages": 3}


def depthwise_conv(
    images: int,
    out_height: int,
    out_width: int,
    channels: int,
    kernel: int,
    itemsize: int,
    squeeze: int = 0,
    sms: int = SMS,
) -> Config:
    """For an output [images, out_height, out_width, channels]; `squeeze`: width of fc1 in the epilogue, 0 for none."""
    line = 128 // itemsize  # channels of 128 bytes
    tile_w = power_of_2(out_width, 4, 8)
    blocks = shrink(  # the wider a block, the fewer parts of fc1's sums
        {"TILE_H": power_of_2(out_height, 4, 8), "BLOCK_C": power_of_2(channels, 16, 2 * line if squeeze else line)},
        {"BLOCK_C": line, "TILE_H": 4},
        {"TILE_H": images * out_height * ceil(out_width / tile_w), "BLOCK_C": channels},
        sms,
    )
    starved = blocks["TILE_H"] == 4
    return {
        **blocks,
        "TILE_W": tile_w,
        "BLOCK_S": power_of_2(squeeze, 16, 256 if starved else 32),
        "UNROLL": 1 if not starved else kernel if itemsize == 4 else kernel**2,
        "num_warps": 8 if starved or blocks["BLOCK_C"] > line else 4,
    }


def depthwise_project(
    images: int,
    out_height: int,
    out_width: int,
    channels: int,
    outputs: int,
    kernel: int,
    itemsize: int,
    sms: int = SMS,
) -> Config:
    """For an output [images, out_height, out_width, outputs]; empty where two kernels are better."""
    if outputs > _WIDEST_PROJECTION:
        return {}
    wide = itemsize == 4  # which needs twice the registers
    tile = shrink(
        {"TILE_H": power_of_2(out_height, 4, 4 if wide else 8), "TILE_W": power_of_2(out_width, 4, 8)},
        {"TILE_H": 4, "TILE_W": 4},  # as few pixels as a tensor core takes
        {"TILE_H": images * out_height, "TILE_W": out_width},
        sms,
    )
    pixels = tile["TILE_H"] * tile["TILE_W"]
    programs = images * ceil(out_height / tile["TILE_H"]) * ceil(out_width / tile["TILE_W"])
    return {
        **tile,
        "BLOCK_C": power_of_2(channels, 16, 16 if wide else 64 if programs < sms else 32),
        "UNROLL": 1 if pixels == 64 else kernel if wide else kernel**2,
        "num_warps": 8 if pixels > 16 else 4,
    }


def squeeze(images: int, pixels: int, channels: int, squeezed: int, itemsize: int, sms: int = SMS) -> Config:
    """For [images, pixels, channels] to the parts of `squeezed` hidden units."""
    blocks = shrink(
        {"BLOCK_P": power_of_2(pixels, 16, 64), "BLOCK_C": power_of_2(channels, 16, 128 // itemsize)},
        {"BLOCK_C": 32, "BLOCK_P": 32},
        {"BLOCK_P": images * pixels, "BLOCK_C": channels},
        sms,
    )
    return {**blocks, "BLOCK_S": power_of_2(squeezed, 16, 32), "num_warps": 4}


def excite(images: int, parts: int, channels: int, sms: int = SMS) -> Config:
    """For `parts` of the hidden units to the scales of `channels`."""
    blocks = shrink({"BLOCK_C": power_of_2(channels, 16, 32)}, {"BLOCK_C": 16}, {"BLOCK_C": images * channels}, sms)
    return {**blocks, "BLOCK_PARTS": power_of_2(parts, 1, 32), "num_warps": 4}


def excite_images(images: int, channels: int, squeezed: int, itemsize: int, sms: int = SMS) -> Config:
    """For the scales [images, channels] from their means; empty where tensor cores have no use, for few images or in
    float32, and where a program can't hold all hidden units.
    """
    del sms  # a program must read all of fc1, so that more of them gain nothing
    if images < _MATRIX or itemsize == 4 or squeezed > _WIDEST_SQUEEZE:
        return {}
    return {
        "BLOCK_M": power_of_2(images // 8, 16, 64 if squeezed <= 128 else 32),
        "BLOCK_C": power_of_2(channels, 16, 128),
        "BLOCK_K": 32,
        "num_warps": 8,
        "num_stages": 3,
    }


def excite_project(
    images: int, pixels: int, outputs: int, inputs: int, squeezed: int, parts: int, itemsize: int, sms: int = SMS
) -> Config:
    """For a product of [pixels, inputs] an image, scaled, x [inputs, outputs], each program of which computes the scale
    from `parts` of the hidden units; empty where a launch that computes it once costs less.
    """
    blocks = excite_project_blocks(images, pixels, outputs, inputs, squeezed, parts, itemsize, sms)
    programs = images * ceil(pixels / blocks["BLOCK_M"]) * ceil(outputs / blocks["BLOCK_N"])
    repeated = (4 * parts + itemsize * inputs) * squeezed  # bytes, read by each program
    seconds = ceil(programs / sms) * repeated / PORT + ceil(inputs / blocks["BLOCK_K"]) * _REDUCTION
    return blocks if seconds < (GAP + OVERLAPPED_GAP) / 2 else {}


def excite_project_blocks(
    images: int, pixels: int, outputs: int, inputs: int, squeezed: int, parts: int, itemsize: int, sms: int = SMS
) -> Config:
    """`excite_project` whatever it costs."""
    blocks = pointwise_conv(images * pixels, outputs, inputs, itemsize, pixels, sms)
    block_k = min(blocks["BLOCK_K"], 4096 // power_of_2(squeezed, 16, 256))  # a slice of fc2 is held, of that many
    return {
        **blocks,
        "BLOCK_K": block_k,
        "BLOCK_PARTS": power_of_2(parts, 1, 32),
    }


def apply_scale(rows: int, channels: int, itemsize: int, sms: int = SMS) -> Config:
    """For a pass over [rows, channels]."""
    blocks = shrink(
        {"BLOCK_P": 32, "BLOCK_C": power_of_2(channels, 16, 256 // itemsize)},
        {"BLOCK_P": 8, "BLOCK_C": 64},
        {"BLOCK_P": rows, "BLOCK_C": channels},
        sms,
    )
    return {**blocks, "num_warps": 4}


def stem_conv(images: int, pixels: int, sms: int = SMS) -> Config:
    """For an output of `pixels` an image."""
    blocks = shrink({"BLOCK_P": 128}, {"BLOCK_P": 32}, {"BLOCK_P": images * pixels}, sms)
    return {**blocks, "num_warps": 8 if blocks["BLOCK_P"] == 128 else 4}


def linear(rows: int, outputs: int, inputs: int, itemsize: int, sms: int = SMS) -> Config:
    """For a product [rows, inputs] x [inputs, outputs] whose weights, at few rows, are nearly all that is read."""
    if rows < 8:
        block_k = power_of_2(inputs, 16, 512 // itemsize)
        return {"BLOCK_M": 1, "BLOCK_N": 8, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 3}
    blocks = shrink(
        {"BLOCK_M": power_of_2(rows, 32, 64), "BLOCK_N": 64},
        {"BLOCK_N": 16, "BLOCK_M": 32},
        {"BLOCK_M": rows, "BLOCK_N": outputs},
        sms,
    )
    return {**blocks, "BLOCK_K": power_of_2(inputs, 16, 128 // itemsize), "num_warps": 4, "num_stages": 3}


HEURISTICS: dict[str, Callable[..., Config]] = {
    heuristic.__name__: heuristic
    for heuristic in (
        stem_conv,
        pointwise_conv,
        depthwise_conv,
        depthwise_project,
        squeeze,
        excite,
        excite_project,
        excite_images,
        apply_scale,
        linear,
    )
}
