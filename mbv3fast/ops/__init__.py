"""Fused ops, public and the one door to the kernels: `torch.ops.mbv3fast.*`.

Each takes [N, C, H, W] tensors with PyTorch's own weights, batch norms folded in. On a GPU with Triton, or on a CPU
under Triton's interpreter (`TRITON_INTERPRET=1`), our kernels run; elsewhere, and wherever gradients are recorded, the
references of `mbv3fast.reference`.
"""

from mbv3fast.ops.depthwise_conv import depthwise_conv
from mbv3fast.ops.depthwise_excite_project import depthwise_excite_project
from mbv3fast.ops.depthwise_project import depthwise_project
from mbv3fast.ops.inverted_residual import inverted_residual
from mbv3fast.ops.layout import pack_taps
from mbv3fast.ops.linear import linear, pointwise_mean_linear
from mbv3fast.ops.op import OPS
from mbv3fast.ops.pointwise_conv import pointwise_conv
from mbv3fast.ops.squeeze_excite import squeeze_excite
from mbv3fast.ops.stem_conv import stem_conv

__all__ = [
    "OPS",
    "depthwise_conv",
    "depthwise_excite_project",
    "depthwise_project",
    "inverted_residual",
    "linear",
    "pack_taps",
    "pointwise_conv",
    "pointwise_mean_linear",
    "squeeze_excite",
    "stem_conv",
]
