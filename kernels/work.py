"""What a launch does, counted from its sizes: trips to memory, bytes, multiply-adds, and what is read twice.

One function a kernel, each the arithmetic of that kernel's loops and masks. `tests/kernels/test_work.py` holds them to
what Triton's interpreter is seen to do, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable

from mbv3fast.kernels.windows import Axis, Window, ceil, count_reads, distinct_in_runs
from mbv3fast.launching import Launch, Work, issued_bytes


def work(launch: Launch) -> Work:
    """The work of a launch, of which nothing is run. Raises KeyError for a kernel that is not ours."""
    return _KERNELS[launch.kernel.__name__](launch)


def _stem_conv(launch: Launch) -> Work:
    c, s, programs = launch.constants, launch.sizes, launch.grid
    kernel, stride, run = c["KERNEL"], c["STRIDE"], c["BLOCK_P"]
    taps, pixels = c["C"] * kernel**2, s["out_height"] * s["out_width"]
    images = programs // ceil(pixels, run)
    rows = Axis(s["height"], s["out_height"], 1, kernel, stride, s["top"])
    columns = Axis(s["width"], s["out_width"], 1, kernel, stride, s["left"])
    read, distinct = count_reads(rows) * count_reads(columns), distinct_in_runs(rows, columns, run)
    issued = issued_bytes(
        launch,
        x=images * c["C"] * read,
        weight=programs * taps * c["N"],
        bias=programs * c["N"],
        shift=programs * taps,
        factor=programs * taps,
        out=images * pixels * c["N"],
    )
    repeated = images * c["C"] * (read - distinct) * launch.reads["x"].itemsize
    halo = distinct / (s["height"] * s["width"])
    return Work(programs, 1, issued, 0, programs * taps * run * c["BLOCK_N"], halo, repeated)


def _pointwise_conv(launch: Launch) -> Work:
    c, rows, programs = launch.constants, launch.sizes["rows"], launch.grid
    inputs, outputs = c["K"], c["N"]
    blocks, rounds = ceil(outputs, c["BLOCK_N"]), ceil(inputs, c["BLOCK_K"])
    tiles = programs // blocks
    issued = issued_bytes(
        launch,
        x=rows * inputs * blocks,
        weight=tiles * outputs * inputs,
        bias=tiles * outputs,
        residual=rows * outputs,
        scale=programs * inputs,
        out=rows * outputs,
        pool=tiles * outputs,
    )
    dots = programs * rounds * c["BLOCK_M"] * c["BLOCK_N"] * c["BLOCK_K"]
    return Work(programs, rounds + ("residual" in launch.reads), issued, dots)


def _depthwise_conv(launch: Launch) -> Work:
    c, programs, window = launch.constants, launch.grid, Window.of(launch)
    channels, squeezed = c["C"], c["S"] if "hidden" in launch.writes else 0
    tiles = programs // ceil(channels, c["BLOCK_C"])
    images = tiles // window.tiles
    slices = ceil(squeezed, c["BLOCK_S"])
    issued = issued_bytes(
        launch,
        x=images * window.reads * channels,
        weight=tiles * window.rows.kernel**2 * channels,
        bias=tiles * channels,
        fc1_weight=tiles * squeezed * channels,
        out=images * window.pixels * channels,
        pool=tiles * channels,
        hidden=programs * squeezed,
    )
    fmas = programs * (window.fmas(c["BLOCK_C"]) + slices * c["BLOCK_S"] * c["BLOCK_C"])
    repeated = images * channels * window.repeated * launch.reads["x"].itemsize
    return Work(programs, window.rounds + slices, issued, 0, fmas, window.halo, repeated)


def _depthwise_project(launch: Launch) -> Work:
    c, programs, window = launch.constants, launch.grid, Window.of(launch)
    channels, outputs = c["C"], c["N"]
    images, rounds = programs // window.tiles, ceil(channels, c["BLOCK_C"])
    issued = issued_bytes(
        launch,
        x=images * window.reads * channels,
        weight=programs * window.rows.kernel**2 * channels,
        bias=programs * channels,
        project_weight=programs * outputs * channels,
        project_bias=programs * outputs,
        residual=images * window.pixels * outputs,
        out=images * window.pixels * outputs,
    )
    serial = rounds * (window.rounds + 1) + ("residual" in launch.reads)  # after its taps a round loads the projection
    dots = programs * rounds * c["TILE_H"] * c["TILE_W"] * c["BLOCK_N"] * c["BLOCK_C"]
    fmas = programs * rounds * window.fmas(c["BLOCK_C"])
    repeated = images * channels * window.repeated * launch.reads["x"].itemsize
    return Work(programs, serial, issued, dots, fmas, window.halo, repeated)


def _squeeze(launch: Launch) -> Work:
    c, pixels, programs = launch.constants, launch.sizes["pixels"], launch.grid
    parts = programs // ceil(c["C"], c["BLOCK_C"])
    images, slices = parts // ceil(pixels, c["BLOCK_P"]), ceil(c["S"], c["BLOCK_S"])
    issued = issued_bytes(
        launch, x=images * pixels * c["C"], fc1_weight=parts * c["S"] * c["C"], hidden=programs * c["S"]
    )
    return Work(programs, 1 + slices, issued, fmas=programs * slices * c["BLOCK_S"] * c["BLOCK_C"])


def _excite(launch: Launch) -> Work:
    c, parts, programs = launch.constants, launch.sizes["parts"], launch.grid
    images = programs // ceil(c["C"], c["BLOCK_C"])
    issued = issued_bytes(
        launch,
        hidden=programs * parts * c["S"],
        fc1_bias=programs * c["S"],
        fc2_weight=images * c["C"] * c["S"],
        fc2_bias=images * c["C"],
        scale=images * c["C"],
    )
    return Work(programs, ceil(parts, c["BLOCK_PARTS"]), issued, fmas=programs * c["BLOCK_C"] * c["BLOCK_S"])


def _scale(launch: Launch) -> Work:
    elements = launch.sizes["rows"] * launch.constants["C"]
    return Work(launch.grid, 1, issued_bytes(launch, x=elements, scale=elements, out=elements))


def _excite_project(launch: Launch) -> Work:
    c, s, programs = launch.constants, launch.sizes, launch.grid
    inputs, outputs, squeezed, pixels = c["K"], c["N"], c["S"], s["pixels"]
    blocks, rounds = ceil(outputs, c["BLOCK_N"]), ceil(inputs, c["BLOCK_K"])
    tiles = programs // blocks
    rows = tiles // ceil(pixels, c["BLOCK_M"]) * pixels
    issued = issued_bytes(
        launch,
        x=rows * inputs * blocks,
        hidden=programs * s["parts"] * squeezed,
        fc1_bias=programs * squeezed,
        fc2_weight=programs * inputs * squeezed,
        fc2_bias=programs * inputs,
        weight=tiles * outputs * inputs,
        bias=tiles * outputs,
        residual=rows * outputs,
        out=rows * outputs,
    )
    serial = ceil(s["parts"], c["BLOCK_PARTS"]) + rounds + ("residual" in launch.reads)
    dots = programs * rounds * c["BLOCK_M"] * c["BLOCK_N"] * c["BLOCK_K"]
    return Work(programs, serial, issued, dots, programs * rounds * c["BLOCK_K"] * c["BLOCK_S"])


def _excite_images(launch: Launch) -> Work:
    c, s, programs = launch.constants, launch.sizes, launch.grid
    channels, squeezed = c["C"], c["S"]
    blocks, rounds = ceil(channels, c["BLOCK_C"]), ceil(channels, c["BLOCK_K"])
    issued = issued_bytes(
        launch,
        pool=s["images"] * s["parts"] * channels * blocks,
        fc1_weight=programs * squeezed * channels,
        fc1_bias=programs * squeezed,
        fc2_weight=programs // blocks * channels * squeezed,
        fc2_bias=programs // blocks * channels,
        scale=s["images"] * channels,
    )
    products = rounds * c["BLOCK_M"] * c["BLOCK_S"] * c["BLOCK_K"] + c["BLOCK_M"] * c["BLOCK_S"] * c["BLOCK_C"]
    return Work(programs, rounds * _trips_of_mean(launch) + 1, issued, programs * products)


def _linear(launch: Launch) -> Work:
    c, s, programs = launch.constants, launch.sizes, launch.grid
    inputs, outputs = c["K"], c["N"]
    blocks, rounds = ceil(outputs, c["BLOCK_N"]), ceil(inputs, c["BLOCK_K"])
    tiles = programs // blocks
    issued = issued_bytes(
        launch,
        x=s["rows"] * s["parts"] * inputs * blocks,
        weight=tiles * outputs * inputs,
        bias=tiles * outputs,
        out=s["rows"] * outputs,
    )
    products = programs * rounds * c["BLOCK_M"] * c["BLOCK_N"] * c["BLOCK_K"]
    on_tensor_cores = c["BLOCK_M"] >= 16
    sums = {"dots" if on_tensor_cores else "fmas": products}
    return Work(programs, rounds * _trips_of_mean(launch), issued, **sums)


def _trips_of_mean(launch: Launch) -> int:
    """Of one round of a product whose rows are sums of parts: a loop over them, and the weights after it."""
    return 1 if launch.constants["ONE_PART"] else launch.sizes["parts"] + 1


_KERNELS: dict[str, Callable[[Launch], Work]] = {
    "_stem_conv_kernel": _stem_conv,
    "_pointwise_conv_kernel": _pointwise_conv,
    "_depthwise_conv_kernel": _depthwise_conv,
    "_depthwise_project_kernel": _depthwise_project,
    "_squeeze_kernel": _squeeze,
    "_excite_kernel": _excite,
    "_scale_kernel": _scale,
    "_excite_project_kernel": _excite_project,
    "_excite_images_kernel": _excite_images,
    "_linear_kernel": _linear,
}
