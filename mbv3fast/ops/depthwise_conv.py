"""`depthwise_conv`, and for blocks with squeeze-excite the squeeze in its epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from mbv3fast.cuda.depthwise_conv import depthwise_conv as cuda_depthwise_conv
from mbv3fast.cuda.launch import activates, serves
from mbv3fast.layers import Padding
from mbv3fast.ops.layout import pixels_first, taps_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, ConvShape, Output, Spec, conv_shape
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import OpActivation, depthwise_conv_ref

if TYPE_CHECKING:
    from mbv3fast.kernels.configs import Config


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | int | str,
    dilation: int = 1,
    activation: OpActivation | None = None,
) -> Tensor:
    """activation(depthwise convolution of x with `weight` + bias).

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [C, 1, k, k] of x's dtype. bias: [C], of it or float32.
    padding: zeros on every side, or at left, right, top, bottom, or "same", TensorFlow's.
    activation: "relu", "relu6", "hardswish", "silu" or None.

    Returns [N, C, P, Q] of x's dtype in channels_last memory. Sums are in float32, in a fixed order. CUDA kernels
    (MBV3FAST_BACKEND=cuda) take float16 and bfloat16, k of 3 or 5, stride 1 or 2, no dilation, C in eights, and of
    activations "relu", "hardswish" or none.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or option.
    """
    return DEPTHWISE_CONV(x, weight, bias, stride=stride, padding=padding, dilation=dilation, activation=activation)


def run_depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    target: Target | None = None,
) -> Tensor:
    """`depthwise_conv`'s kernel, unchecked."""
    target = resolve(target, x)
    geometry = Geometry.of(x, weight, stride, padding, dilation)
    out = geometry.empty(x)
    if geometry.on_cuda(x, activation, target):
        geometry.launch_cuda(x, weight, bias, out, activation, target)
    else:
        geometry.launch(x, weight, bias, out, activation, geometry.config(x, target), target)
    return out


class Geometry(NamedTuple):
    """Of a depthwise convolution: what a launch must know beside its tensors."""

    kernel: int
    stride: int
    dilation: int
    shape: ConvShape

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, stride: int, padding: Sequence[int] | str, dilation: int) -> Geometry:
        kernel = weight.shape[3]
        return cls(kernel, stride, dilation, conv_shape((x.shape[2], x.shape[3]), kernel, stride, padding, dilation))

    def empty(self, x: Tensor) -> Tensor:
        """The output for x [N, C, H, W]."""
        return empty((x.shape[0], x.shape[1], self.shape.height, self.shape.width), like=x)

    def config(self, x: Tensor, target: Target, squeeze: int = 0) -> Config:
        return target.config(
            "depthwise_conv",
            images=x.shape[0],
            out_height=self.shape.height,
            out_width=self.shape.width,
            channels=x.shape[1],
            kernel=self.kernel,
            squeeze=squeeze,
            itemsize=x.itemsize,
        )

    def on_cuda(self, x: Tensor, activation: str | None, target: Target) -> bool:
        """Whether the CUDA kernel computes it, and is preferred."""
        common = self.kernel in (3, 5) and self.stride in (1, 2) and self.dilation == 1
        left, _, top, _ = self.shape.padding
        common = common and max(left, top) < self.kernel and activates(activation)
        return target.cuda and common and serves(x.dtype, x.shape[1])

    def launch_cuda(
        self, x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, activation: str | None, target: Target
    ) -> None:
        """Fill `out`."""
        images, channels, height, width = out.shape
        cuda_depthwise_conv(
            pixels_first(x),
            taps_first(weight),
            bias.float(),
            out=out.permute(0, 2, 3, 1),
            kernel=self.kernel,
            stride=self.stride,
            padding=self.shape.padding,
            activation=activation,
            tile=target.tile("depthwise_conv", images=images, out_height=height, out_width=width, channels=channels),
            pdl=target.pdl,
        )

    def launch(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        out: Tensor,
        activation: str | None,
        config: Config,
        target: Target,
        **sums: Tensor,
    ) -> None:
        """Fill `out`, and `sums` as `kernels.depthwise_conv` takes them."""
        from mbv3fast.kernels.depthwise_conv import depthwise_conv as launch

        launch(
            pixels_first(x),
            taps_first(weight),
            bias,
            out=out.permute(0, 2, 3, 1),
            kernel=self.kernel,
            stride=self.stride,
            padding=self.shape.padding,
            dilation=self.dilation,
            activation=activation,
            **sums,
            config=config,
            pdl=target.pdl,
        )


DEPTHWISE_CONV = Op(
    Spec(
        "depthwise_conv",
        args=(Arg("x", "N C H W"), Arg("weight", "C 1 k k"), Arg("bias", "C", kind="either")),
        outputs=(Output("out", "N C P Q"),),
        options=("stride", "padding", "dilation", "activation"),
        macs=lambda s: s["N"] * s["P"] * s["Q"] * s["C"] * s["k"] ** 2,
    ),
    run_depthwise_conv,
    depthwise_conv_ref,
)
