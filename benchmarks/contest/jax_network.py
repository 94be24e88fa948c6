"""The network in JAX, made from the folded layers, in two forms of which the faster is for each machine to say."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.contenders import Ready, importable
from mbv3fast.fold import FoldedBlock, FoldedConv, FoldedNetwork, FoldedSqueezeExcite, fold_features, fold_head

_CPU = torch.device("cpu")


class _JaxNetwork:
    """Folded layers as JAX computes them, on images [N, H, W, C].

    convolutions: whether depthwise and 1x1 convolutions are XLA's own; else sums of shifted products, and matrix
    products, which XLA fuses with what surrounds them.
    """

    def __init__(self, jax: Any, network: FoldedNetwork, dtype: str, convolutions: bool) -> None:
        self._lax, self._numpy = jax.lax, jax.numpy
        self._network, self._convolutions = network, convolutions
        self._dtype = jax.numpy.dtype(dtype)
        # Or float32 would be TF32 on a GPU. It is said in each call, since what a context says is forgotten after it.
        self._precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
        nn = jax.nn
        self._functions = {"relu": nn.relu, "hardswish": nn.hard_swish, "hardsigmoid": nn.hard_sigmoid}

    def forward(self, x: Any) -> Any:
        """Logits [N, classes] of x [N, H, W, C]."""
        for layer in self._network.layers:
            x = self._conv(layer, x) if isinstance(layer, FoldedConv) else self._block(layer, x)
        x = self._mean(x)
        for linear in self._network.head:
            x = self._linear(x, linear.weight, linear.bias, linear.activation)
        return x

    def array(self, tensor: Tensor) -> Any:
        """In the network's dtype."""
        return tensor.contiguous().numpy().astype(self._dtype)

    def _block(self, block: FoldedBlock, x: Any) -> Any:
        y = x if block.expand is None else self._conv(block.expand, x)
        y = self._conv(block.depthwise, y)
        y = y if block.squeeze_excite is None else self._squeeze_excite(block.squeeze_excite, y)
        y = self._conv(block.project, y)
        return x + y if block.has_residual else y

    def _squeeze_excite(self, layer: FoldedSqueezeExcite, x: Any) -> Any:
        squeezed = self._linear(self._mean(x), layer.fc1_weight, layer.fc1_bias, layer.activation)
        return x * self._linear(squeezed, layer.fc2_weight, layer.fc2_bias, "hardsigmoid")[:, None, None]

    def _mean(self, x: Any) -> Any:
        return x.mean((1, 2), dtype="float32").astype(self._dtype)

    def _conv(self, conv: FoldedConv, x: Any) -> Any:
        if not self._convolutions and conv.weight[0, 0].numel() == conv.stride == 1:
            return self._linear(x, conv.weight[:, :, 0, 0], conv.bias, conv.activation)
        taps = not self._convolutions and conv.weight.shape[1] == 1  # it is depthwise
        return self._activated((self._taps if taps else self._xla_conv)(conv, x), conv.bias, conv.activation)

    def _xla_conv(self, conv: FoldedConv, x: Any) -> Any:
        return self._lax.conv_general_dilated(
            x,
            self.array(conv.weight.permute(2, 3, 1, 0)),
            window_strides=(conv.stride,) * 2,
            padding="SAME" if conv.padding == "same" else (conv.padding[2:], conv.padding[:2]),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=conv.groups,
            precision=self._precision,
        )

    def _taps(self, conv: FoldedConv, x: Any) -> Any:
        """A depthwise convolution, in float32."""
        left, right, top, bottom = map(int, conv.padding)  # not "same", which torchvision hasn't
        kernel, stride = conv.weight.shape[-1], conv.stride
        x = self._numpy.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))).astype("float32")
        height, width = ((size - kernel) // stride * stride + 1 for size in x.shape[1:3])
        weight = self.array(conv.weight[:, 0]).astype("float32")
        return sum(
            x[:, i : i + height : stride, j : j + width : stride] * weight[:, i, j]
            for i in range(kernel)
            for j in range(kernel)
        )

    def _linear(self, x: Any, weight: Tensor, bias: Tensor | None, activation: str | None) -> Any:
        product = self._numpy.dot(x, self.array(weight.T), precision=self._precision)
        return self._activated(product, bias, activation)

    def _activated(self, x: Any, bias: Tensor | None, activation: str | None) -> Any:
        """In float32, which a fusion has for nothing: rounding each step to float16 tripled the logits' error."""
        x = x.astype("float32") if bias is None else x.astype("float32") + bias.numpy()
        return (self._functions[activation](x) if activation else x).astype(self._dtype)


def _set_up_jax() -> None:
    """Before its first use: PyTorch needs memory too, and as many threads as PyTorch has are fair."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["NPROC"] = str(torch.get_num_threads())  # XLA has no other setting for it


def lacks_jax(device: str) -> str:
    """Why JAX can't run there; nothing is started to know."""
    _set_up_jax()
    plugin = any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return importable("jax") or ("" if device == "cpu" or plugin else "this JAX has no CUDA plugin")


def _in_jax(case: NetworkCase, device: torch.device, convolutions: bool) -> Ready:
    _set_up_jax()
    jax, model = import_module("jax"), case.ours(_CPU)
    folded = FoldedNetwork(fold_features(model.features), fold_head(model.classifier))
    network = _JaxNetwork(jax, folded, case.dtype, convolutions)
    images = network.array(case.images(_CPU).float().permute(0, 2, 3, 1))
    x = jax.device_put(images, jax.devices(device.type)[device.index or 0])
    # Weights are constants, so that XLA can lay them out once; as arguments they were no faster on a CPU.
    compiled = jax.jit(network.forward)
    compiled(x).block_until_ready()  # compiles
    return Ready(
        run=lambda: compiled(x),
        fetch=lambda out: torch.from_numpy(np.array(out, dtype=np.float32)),
        wait=lambda out: out.block_until_ready(),
    )


def prepare_jax(case: NetworkCase, device: torch.device) -> Ready:
    """With XLA's convolutions."""
    return _in_jax(case, device, convolutions=True)


def prepare_jax_products(case: NetworkCase, device: torch.device) -> Ready:
    """With sums and products in place of depthwise and 1x1 convolutions."""
    return _in_jax(case, device, convolutions=False)
