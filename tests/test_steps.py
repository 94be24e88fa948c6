"""Steps by themselves: each computes what its reference does, and can be called again and again."""

from __future__ import annotations

import torch
from torch import Tensor

from mbv3fast.plan import Plan
from mbv3fast.steps import repeatable, step_arguments, step_inputs, step_reference, step_run
from tests.networks import trained_small

CPU = torch.device("cpu")
SHAPE = (2, 3, 40, 52)


def plan() -> Plan:
    return trained_small().plan()


def test_every_step_of_a_cpus_plan_computes_its_reference() -> None:
    ops = set()
    for step, inputs in step_inputs(plan(), SHAPE):
        torch.manual_seed(0)
        given = step_arguments(step, inputs, torch.float32, CPU)
        (wanted,) = step_reference(step, given, torch.float64)
        got = step_run(plan(), step, given, CPU)()
        assert got.shape == wanted.shape
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
        ops.add(step.op)
    assert ops == {"stem_conv", "pointwise_conv", "depthwise_conv", "squeeze_excite", "global_mean", "linear"}


def test_shapes_are_those_of_the_network() -> None:
    inputs = step_inputs(plan(), SHAPE)
    assert inputs[0][1] == {"x": SHAPE}
    assert inputs[-1][1]["x"] == (2, 1024)


def test_random_arguments_are_fresh_and_of_the_step() -> None:
    step, inputs = step_inputs(plan(), SHAPE)[1]
    first, second = (step_arguments(step, inputs, torch.float32, CPU) for _ in range(2))
    assert first.keys() == {"x", "weight", "bias", *step.options}
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert not torch.equal(value, second[name])
            assert value.shape == (inputs[name] if name in inputs else step.tensors[name].shape)


def test_repeatable_calls_leave_their_input_and_give_the_same_again() -> None:
    for step, inputs in step_inputs(plan(), SHAPE):
        given = repeatable("torch", step, step_arguments(step, inputs, torch.float32, CPU))
        before = given["x"].clone()
        run = step_run(plan(), step, given, CPU)
        first = run().clone()
        for _ in range(10):
            again = run()
        torch.testing.assert_close(given["x"], before)
        torch.testing.assert_close(again, first)
