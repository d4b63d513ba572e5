"""How many floating-point operations a program's products need, read off its jaxpr.

XLA's own count takes the body of a loop once, however often it runs, and counts one device's part.
"""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr


def product_flops(program: Any) -> int:
    """FLOP (a multiplication and an addition are two) of all matrix products and convolutions of a traced program, on
    all devices together. The rest (normalisation, gathers, the optimizer) is not counted, as is usual for an MFU, and
    neither is what the program's output does not depend on, which a compiler drops.

    Loops of unknown length count once, and of a condition's branches the most expensive. What rematerialisation
    computes again counts again.

    Args:
        program: a jaxpr, closed or not, as of `jax.jit(f).trace(...).jaxpr`.
    """
    jaxpr = getattr(program, "jaxpr", program)
    total = 0
    for equation in _needed(jaxpr):
        inner = [product_flops(x) for x in _inner(equation)] or [0]
        total += _own(equation) + _times(equation) * (max(inner) if equation.primitive.name == "cond" else sum(inner))
    return total


def _needed(jaxpr: Jaxpr) -> Iterator[Any]:
    """Equations that an output depends on, from the last to the first."""
    wanted = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(variable) in wanted for variable in equation.outvars):
            wanted.update(id(variable) for variable in equation.invars)
            yield equation


def _own(equation: Any) -> int:
    output = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * output * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        # Of the kernel's axes all but the output's take part in each output value.
        out_axis = equation.params["dimension_numbers"].rhs_spec[0]
        taps = math.prod(kernel) // kernel[out_axis]
        return 2 * output * taps
    return 0


def _times(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "shard_map":
        return equation.params["mesh"].size
    return 1


def _inner(equation: Any) -> list[Any]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(getattr(item, "jaxpr", item), Jaxpr):
                found.append(item)
    return found[:1] if equation.primitive.name.startswith("custom_") else found
