"""Whose a call of a model is: an engine's, or PyTorch's whatever the backend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbv3fast.torch_state import autocast_enabled, global_hooks, is_replica, transform_active

TRAINING = "the model is in training mode"
CUSTOMISED = "the model's own forward methods are overridden, or it has hooks"
TRACED = "the input is traced, compiled or no plain tensor"


def refusal(model: nn.Module, x: Tensor, customised: bool) -> str:
    """Why `model(x)`, called now with a plain tensor, is PyTorch's; empty where it isn't.

    customised: whether the model has forward methods of its own, which an engine would bypass.
    """
    if model.training:
        return TRAINING
    if is_replica(model):
        return "a replica of nn.DataParallel lives for one call"
    if customised:
        return "the model's own forward methods are overridden"
    if torch.is_grad_enabled():
        return "gradients are enabled: call the model under torch.inference_mode()"
    if autocast_enabled(x.device):
        return "autocast is enabled"
    if transform_active():
        return "a torch.func transform or forward-mode differentiation is active"
    return "hooks for all modules are registered" if global_hooks() else ""
