"""A block of EfficientNet as a plain module, and by mbv3fast's ops with its batch norms folded: compared, then timed.

    python examples/efficientnet_block.py --dtype float16 --batch 8

MBConv of Tan and Le 2019, section 4: expand, depthwise, squeeze-excite, project, residual, with SiLU; random weights.
On a GPU both are timed in a CUDA graph. On a CPU the ops compute their references, unless TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbv3fast.backend import op_backend, op_server
from mbv3fast.ops import depthwise_conv, inverted_residual, pack_taps, pointwise_conv, squeeze_excite
from mbv3fast.timing import Run, graph_seconds, latency_seconds, waiter

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ConvNorm(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class MBConv(nn.Module):
    """EfficientNet's block, [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, ratio: int = 6) -> None:
        super().__init__()
        expanded, squeezed = ratio * inputs, max(1, inputs // 4)
        self.expand = ConvNorm(inputs, expanded, 1)
        self.depthwise = ConvNorm(expanded, expanded, kernel, stride, groups=expanded)
        self.fc1 = nn.Conv2d(expanded, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, expanded, 1)
        self.project = ConvNorm(expanded, outputs, 1)
        self.has_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.expand(x))
        y = F.silu(self.depthwise(y))
        y = y * torch.sigmoid(self.fc2(F.silu(self.fc1(y.mean((2, 3), keepdim=True)))))
        y = self.project(y)
        return y + x if self.has_residual else y


@torch.no_grad()
def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight and the bias of one convolution that does what both do in eval; the bias is float32."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("norm: has no running statistics, needs them to be folded")
    scale = norm.weight.float() * torch.rsqrt(variance.float() + norm.eps)
    offset = -mean.float() if conv.bias is None else conv.bias.float() - mean.float()
    weight = conv.weight.float() * scale[:, None, None, None]
    return weight.to(conv.weight.dtype), norm.bias.float() + offset * scale


class FusedMBConv(nn.Module):
    """What an MBConv computes in eval, by ops; a copy of its weights, as buffers named like the op's arguments."""

    def __init__(self, block: MBConv) -> None:
        super().__init__()
        weights: dict[str, Tensor] = {}
        for prefix, part in (("expand_", block.expand), ("", block.depthwise), ("project_", block.project)):
            weights[f"{prefix}weight"], weights[f"{prefix}bias"] = fold(part.conv, part.norm)
        weights["weight"] = pack_taps(weights["weight"])  # in the order that the kernel reads, or each call copies it
        for name, layer in (("fc1", block.fc1), ("fc2", block.fc2)):
            weights |= {f"{name}_{kind}": tensor.detach().clone() for kind, tensor in layer.named_parameters()}
            weights[f"{name}_weight"] = weights[f"{name}_weight"].flatten(1)
        for name, tensor in weights.items():
            self.register_buffer(name, tensor)
        conv = block.depthwise.conv
        self.geometry: dict[str, Any] = {"stride": conv.stride[0], "padding": conv.padding[0]}
        self.has_residual = block.has_residual

    def forward(self, x: Tensor) -> Tensor:
        """By one op."""
        weights: dict[str, Any] = dict(self.named_buffers())
        return inverted_residual(
            x,
            **weights,
            residual=x if self.has_residual else None,
            **self.geometry,
            activation="silu",
            squeeze_activation="silu",
            gate="sigmoid",
        )

    def in_steps(self, x: Tensor) -> Tensor:
        """The same by four, for blocks that differ somewhere between."""
        w = dict(self.named_buffers())
        y = pointwise_conv(x, w["expand_weight"], w["expand_bias"], activation="silu")
        y = depthwise_conv(y, w["weight"], w["bias"], **self.geometry, activation="silu")
        fc = w["fc1_weight"], w["fc1_bias"], w["fc2_weight"], w["fc2_bias"]
        y = squeeze_excite(y, *fc, activation="silu", gate="sigmoid")
        return pointwise_conv(y, w["project_weight"], w["project_bias"], residual=x if self.has_residual else None)


def random_block(channels: int, seed: int = 0) -> MBConv:
    """In eval, with batch norms that do something."""
    torch.manual_seed(seed)
    block = MBConv(channels, channels)
    for name, tensor in block.state_dict().items():
        if name.endswith(("norm.weight", "norm.running_var")):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif name.endswith(("norm.bias", "norm.running_mean")):
            nn.init.normal_(tensor, std=0.5)
    return block.eval()


def largest_errors(runs: dict[str, Run], truth: Tensor) -> dict[str, float]:
    return {name: (run().double() - truth).abs().max().item() for name, run in runs.items()}


def median_seconds(run: Run, device: torch.device, rounds: int) -> float:
    """Of a call: by the GPU's own clock, in a graph where the host has no part, or as the caller of a CPU sees it."""
    graphed = device.type == "cuda"
    return statistics.median(graph_seconds(run, rounds) if graphed else latency_seconds(run, waiter(device), rounds))


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU ({platform.processor() or platform.machine()}, threads: {torch.get_num_threads()})"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=80, help="of input and output")
    parser.add_argument("--size", type=int, default=14, help="height and width")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=50, help="times are medians of so many")
    options = parser.parse_args()
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), DTYPES[options.dtype]
    block = random_block(options.channels).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(options.batch, options.channels, options.size, options.size, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    fused = FusedMBConv(block)
    runs: dict[str, Run] = {
        "PyTorch": lambda: block(x),
        "one op": lambda: fused(x),
        "four ops": lambda: fused.in_steps(x),
    }
    server = op_server("inverted_residual", device, dtype)
    print(f"x {[*x.shape]}, {options.dtype}, on {name_of(device)}")
    print(f"inverted_residual: {server}")
    truth = copy.deepcopy(block).double()(x.double())
    errors = largest_errors(runs, truth)
    print("largest error against float64:", ", ".join(f"{name} {error:.2g}" for name, error in errors.items()))
    allowed = 2 * errors["PyTorch"] + torch.finfo(dtype).eps * truth.abs().max().item()
    if not all(error <= allowed for error in errors.values()):  # which NaN isn't
        raise SystemExit("the ops err more than twice as much as PyTorch")
    if device.type == "cpu" and op_backend(device, dtype) != "torch":
        print("not timed: on a CPU kernels run for tests alone")
        return
    times = {name: median_seconds(run, device, options.rounds) for name, run in runs.items()}
    print("time of a call:", ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items()))
    if device.type == "cpu":
        print("no kernel of mbv3fast ran: on a CPU its ops compute their references, whose times say nothing of a GPU")


if __name__ == "__main__":
    main()
