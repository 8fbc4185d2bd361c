"""The mathematics: pure functions on tensors. Depends on torch alone."""

from acmix_zoo.ops import custom_op as whole  # register the operators and their FLOP formulas
from acmix_zoo.ops import flops
from acmix_zoo.ops.dispatch import FORMS, explain_plan, use_form

__all__ = ["FORMS", "explain_plan", "flops", "use_form", "whole"]
