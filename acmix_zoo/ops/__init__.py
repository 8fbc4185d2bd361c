"""The mathematics: pure functions on tensors. Depends on torch alone."""

from acmix_zoo.ops import custom_op as whole  # register the operators and their FLOP formulas
from acmix_zoo.ops import flops
from acmix_zoo.ops.dispatch import BACKENDS, explain_plan, use_backend

__all__ = ["BACKENDS", "explain_plan", "flops", "use_backend", "whole"]
