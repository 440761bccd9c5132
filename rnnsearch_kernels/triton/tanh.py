"""The tanh of the scores, in three forms; a configuration chooses by ``TANH`` (configs.py).

What each takes of the units that make exponentials and reciprocals, and its largest error on float32: with exact units,
as in the interpreter, and with a GPU's (2^-22 of an exponential, 2^-23 of a reciprocal), emulated:

    EXACT        an exponential and a reciprocal          1.9e-7   4.2e-7   2σ(2x) - 1
    SHARED       an exponential, half a reciprocal        3.5e-7   5.9e-7   see below
    APPROXIMATE  one instruction, on NVIDIA alone         -        4.9e-4   tanh.approx.f32, relative 2^-11 (PTX ISA)

SHARED, with e = exp(2x) of two neighbours: 1/(1+e) = (1+e')/((1+e)(1+e')). Were it made of exp(2 query) exp(2 keys),
which could be kept, it would hold for small query and keys alone, and double what is read of 16-bit keys; so the
exponential is of their sum, and what guards the product against overflow changes nothing: from 15 on a tanh is 1.
The RMS error of attention over ten seeds, in units of plain PyTorch's, at A = 64, 256, 1000 (float32, interpreted):
EXACT 1.3, 1.6, 1.2, SHARED 1.6, 0.7, 0.6; in 16 bits both are below 0.5. Gradients keep the rule too, since SHARED
makes the slope 1 - tanh² of the exponential: of the tanh it would be the error of a quotient where that is nearly 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import configs
from .gru import tanh

SHARED = tl.constexpr(configs.SHARED)
APPROXIMATE = tl.constexpr(configs.APPROXIMATE)


@triton.jit
def shared_halves(x):
    """e = exp(2x), and 2/(1+e)."""
    e = tl.exp(2.0 * tl.minimum(x, 15.0, propagate_nan=tl.PropagateNan.ALL))
    one, other = tl.split(tl.reshape(1.0 + e, (x.shape[0], x.shape[1] // 2, 2)))
    twice = 2.0 / (one * other)
    return e, tl.reshape(tl.join(other * twice, one * twice), x.shape)


@triton.jit
def tile_tanh(x, TANH: tl.constexpr):
    """tanh of a float32 tile with two axes, the last one even."""
    if TANH == SHARED:
        return 1.0 - shared_halves(x)[1]
    elif TANH == APPROXIMATE:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tanh(x)


@triton.jit
def tile_tanh_and_slope(x, TANH: tl.constexpr):
    """The tanh, and 1 - tanh²: 4e/(1+e)² in the shared form."""
    if TANH == SHARED:
        e, half = shared_halves(x)
        return 1.0 - half, e * half * half
    else:
        activation = tile_tanh(x, TANH)
        return activation, 1.0 - activation * activation
