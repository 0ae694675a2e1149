"""Sixteen float32 numbers as one value in numba functions, so that hot loops say what the vector unit shall do.

LLVM turns an ordinary loop over 16 channels into vector code only after checking at run time, on every entry, that none
of the arrays it writes overlaps another; with ten arrays in a backward pass the checks cost more than the arithmetic. A
value of this type is loaded, computed with and stored explicitly. LLVM maps it to one AVX-512 register, two of AVX2 or
four of NEON.

numba's own exp calls the C library once an element, hence the exp2 here; everything is plain float32 arithmetic.
"""

import operator
from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.base import BaseContext
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, overload, register_model
from numba.np.arrayobj import make_array
from numpy.polynomial import Chebyshev, Polynomial

LANES = 16
FLAGS = ("contract", "reassoc", "nsz", "arcp")  # sums may change their order; infinities and NaN are not assumed away

_float, _int = ir.FloatType(), ir.IntType(32)
_vector, _int_vector = ir.VectorType(_float, LANES), ir.VectorType(_int, LANES)


class Float32x16(types.Type):
    """The numba type."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = Float32x16()


@register_model(Float32x16)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: object, fe_type: object):
        super().__init__(manager, fe_type, _vector)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_vector, [float(np.float32(value))] * LANES)


def _pointer(
    context: BaseContext, builder: ir.IRBuilder, array_type: types.Array, array: ir.Value, offset: ir.Value
) -> ir.Value:
    data = make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _vector.as_pointer())


@intrinsic
def load(typing_context, array, offset):
    """Read the 16 numbers from a flat offset of a C-contiguous float32 array."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(pointer, align=4)

    return float32x16(array, types.int64), generate


@intrinsic
def store(typing_context, array, offset, value):
    """Write the 16 numbers to a flat offset of a C-contiguous float32 array."""

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, float32x16), generate


@intrinsic
def broadcast(typing_context, value):
    """Repeat one number 16 times."""

    def generate(context, builder, signature, arguments):
        one = builder.insert_element(ir.Constant(_vector, ir.Undefined), arguments[0], ir.Constant(_int, 0))
        mask = ir.Constant(_int_vector, [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(_vector, ir.Undefined), mask)

    return float32x16(types.float32), generate


@intrinsic
def sum_lanes(typing_context, value):
    """Add the 16 numbers up."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_float, [_float, _vector])
        function = get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(function, [ir.Constant(_float, 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(float32x16), generate


def _binary(operation: str) -> Callable[..., object]:
    @intrinsic
    def function(typing_context, left, right):
        def generate(context, builder, signature, arguments):
            return getattr(builder, operation)(*arguments, flags=FLAGS)

        return float32x16(float32x16, float32x16), generate

    return function


_add, _subtract, _multiply, _divide = (_binary(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


def _overload(symbol: Callable[..., object], function: Callable[..., object]) -> None:
    @overload(symbol)
    def overloaded(left, right):
        if left is float32x16 and right is float32x16:
            return lambda left, right: function(left, right)
        if left is float32x16 and isinstance(right, types.Float):
            return lambda left, right: function(left, broadcast(np.float32(right)))
        if isinstance(left, types.Float) and right is float32x16:
            return lambda left, right: function(broadcast(np.float32(left)), right)
        return None


for _symbol, _function in (
    (operator.add, _add),
    (operator.sub, _subtract),
    (operator.mul, _multiply),
    (operator.truediv, _divide),
    (operator.iadd, _add),
    (operator.imul, _multiply),
):
    _overload(_symbol, _function)


# 2^f on [-1/2, 1/2] by Chebyshev interpolation: degree 6 is off by 2e-9, well under float32's 6e-8, so that decays
# multiplied over a million positions drift by rounding alone.
_POWERS = Chebyshev.interpolate(lambda f: 2.0**f, 6, domain=[-0.5, 0.5]).convert(kind=Polynomial, domain=[-1, 1]).coef
# log(1 + e) = 2 atanh(s) with s = e / (2 + e) <= 1/3; the series is off by 3e-8 at s = 1/3 after these terms.
_ATANH = [1.0 / k for k in (1, 3, 5, 7, 9, 11, 13)]
# Below 2^-100 a factor does not show in a float32 sum, and going further would make denormal numbers, which are slow.
LOWEST, HIGHEST = -100.0, 126.0
LOG2_E = np.float32(1.0 / np.log(2.0))


def _polynomial(builder: ir.IRBuilder, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
    result = _constant(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = builder.fadd(builder.fmul(result, x, flags=FLAGS), _constant(coefficient), flags=FLAGS)
    return result


def _clamp(builder: ir.IRBuilder, x: ir.Value, lowest: float, highest: float) -> ir.Value:
    low, high = _constant(lowest), _constant(highest)
    x = builder.select(builder.fcmp_ordered(">", x, low), x, low)
    return builder.select(builder.fcmp_ordered("<", x, high), x, high)


@intrinsic
def exp2(typing_context, value):
    """2^x with x held within [-100, 126]; relative error below 3e-7. NaN stays NaN."""

    def generate(context, builder, signature, arguments):
        x = _clamp(builder, arguments[0], LOWEST, HIGHEST)
        kind = ir.FunctionType(_vector, [_vector])
        nearest = get_or_insert_function(builder.module, kind, f"llvm.nearbyint.v{LANES}f32")
        whole = builder.call(nearest, [x])
        power = _polynomial(builder, builder.fsub(x, whole), _POWERS)
        exponent = builder.add(builder.fptosi(whole, _int_vector), ir.Constant(_int_vector, [127] * LANES))
        shifted = builder.shl(exponent, ir.Constant(_int_vector, [23] * LANES))
        result = builder.fmul(power, builder.bitcast(shifted, _vector))
        return builder.select(builder.fcmp_unordered("uno", arguments[0], arguments[0]), arguments[0], result)

    return float32x16(float32x16), generate


@intrinsic
def positive_part(typing_context, value):
    """max(x, 0); NaN stays NaN."""

    def generate(context, builder, signature, arguments):
        negative = builder.fcmp_ordered("<", arguments[0], _constant(0.0))
        return builder.select(negative, _constant(0.0), arguments[0])

    return float32x16(float32x16), generate


@intrinsic
def _twice_atanh(typing_context, value):
    def generate(context, builder, signature, arguments):
        s = arguments[0]
        series = _polynomial(builder, builder.fmul(s, s), _ATANH)
        return builder.fmul(builder.fadd(s, s), series)

    return float32x16(float32x16), generate


@njit(inline="always")
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return np.float32(1.0) / (np.float32(1.0) + exp2(x * -LOG2_E))


@njit(inline="always")
def softplus(x):
    """log(1 + e^x), exact to rounding for small and large values alike."""
    positive = positive_part(x)
    magnitude = positive + positive_part(x * np.float32(-1.0))
    e = exp2(magnitude * -LOG2_E)
    return positive + _twice_atanh(e / (np.float32(2.0) + e))
