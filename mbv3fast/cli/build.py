"""`mbv3fast build`: the library of CUDA kernels, compiled into this package."""

from __future__ import annotations

import click

from mbv3fast.cuda.library import FOLDER


@click.command(short_help="Compile the CUDA kernels.")
@click.option("--arch", help="Architectures, as torch writes them: '9.0', '8.0 9.0+PTX', Hopper.")
@click.option("--emulated", is_flag=True, help="For the CPU, for tests: by a C++ compiler, without nvcc.")
@click.option("--verbose", is_flag=True, help="Print commands, and what ptxas says of each kernel.")
def build(arch: str | None, emulated: bool, verbose: bool) -> None:
    """Compile the library of CUDA kernels into this package, by nvcc, CMake and Ninja; no GPU is needed.

    An installation does so itself where it finds nvcc. Without --arch the architectures are those of
    TORCH_CUDA_ARCH_LIST, or all that are served, which takes minutes.

    \b
    mbv3fast build --arch 9.0
    mbv3fast build --emulated
    """
    if emulated and arch is not None:
        raise click.UsageError("--arch is for GPUs, --emulated for the CPU")
    try:
        from mbv3fast.csrc.build import BuildError
        from mbv3fast.csrc.build import build as build_library
    except ModuleNotFoundError as error:
        raise click.ClickException("this installation has no CUDA sources") from error
    try:
        library = build_library(FOLDER, emulated=emulated, arch=arch, verbose=verbose, say=click.echo)
    except BuildError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"built {library}" + ", which MBV3FAST_EMULATE=1 loads" * emulated)
