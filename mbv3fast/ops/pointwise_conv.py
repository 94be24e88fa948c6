"""`pointwise_conv`: the 1x1 convolution, a matrix product over pixels, with what stands around it."""

from __future__ import annotations

from torch import Tensor

from mbv3fast.cuda.launch import activates, serves
from mbv3fast.cuda.pointwise_conv import pointwise_conv as cuda_pointwise_conv
from mbv3fast.cuda.tiles import excites
from mbv3fast.ops.layout import matrix, pixels_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import OpActivation, pointwise_conv_ref


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    activation: OpActivation | None = None,
) -> Tensor:
    """activation((x * scale) convolved with `weight` + bias) + residual.

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [M, C, 1, 1] of x's dtype. bias: [M], of it or float32. residual: [N, M, H, W] of x's dtype.
    scale: [N, C] float32, squeeze-excite's; the product is rounded to x's dtype, as squeeze-excite's own output is.
    activation as in `depthwise_conv`.

    Returns [N, M, H, W] of x's dtype in channels_last memory. Sums are in float32, in a fixed order; float32 factors
    are exact unless PyTorch's own switch allows TF32. CUDA kernels (MBV3FAST_BACKEND=cuda) take float16 and bfloat16,
    C and M in eights, and of activations "relu", "hardswish" or none.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or activation.
    """
    return POINTWISE_CONV(x, weight, bias, residual, scale, activation=activation)


def run_pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    activation: str | None,
    target: Target | None = None,
) -> Tensor:
    """`pointwise_conv`'s kernel, unchecked."""
    target = resolve(target, x)
    images, inputs, height, width = x.shape
    outputs, pixels = weight.shape[0], height * width
    out = empty((images, outputs, height, width), like=x)
    covered = serves(x.dtype, inputs, outputs) and activates(activation) and (scale is None or excites(inputs))
    if target.cuda and covered:
        sizes = {"images": images, "pixels": pixels, "inputs": inputs, "outputs": outputs, "scaled": scale is not None}
        cuda_pointwise_conv(
            pixels_first(x),
            matrix(weight),
            bias.float(),
            out=out.permute(0, 2, 3, 1),
            scale=scale,
            residual=None if residual is None else pixels_first(residual),
            activation=activation,
            tile=target.tile("pointwise_conv", **sizes),
            pdl=target.pdl,
        )
        return out
    from mbv3fast.kernels.pointwise_conv import pointwise_conv as launch

    launch(
        pixels_first(x),
        matrix(weight),
        bias,
        rows=images * pixels,
        pixels=pixels,
        residual=None if residual is None else pixels_first(residual),
        scale=scale,
        out=out,
        activation=activation,
        config=target.config(
            "pointwise_conv",
            rows=images * pixels,
            outputs=outputs,
            inputs=inputs,
            itemsize=x.itemsize,
            pixels=0 if scale is None else pixels,
        ),
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return out


POINTWISE_CONV = Op(
    Spec(
        "pointwise_conv",
        args=(
            Arg("x", "N C H W"),
            Arg("weight", "M C 1 1"),
            Arg("bias", "M", kind="either"),
            Arg("residual", "N M H W", optional=True),
            Arg("scale", "N C", kind="float32", optional=True),
        ),
        outputs=(Output("out", "N M H W"),),
        options=("activation",),
        macs=lambda s: s["N"] * s["H"] * s["W"] * s["M"] * s["C"],
    ),
    run_pointwise_conv,
    pointwise_conv_ref,
)
