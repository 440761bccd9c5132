"""The arithmetic of one GRU step on blocks of a kernel, forward and backward, both conventions.

    r, z = σ(g + u)
    n    = tanh(g_n + r ∘ u_n)                              RESET_AFTER (torch, cuDNN)
    n    = tanh(g_n + u_n),  u_n = U_n (r ∘ e) + b_n        otherwise (Cho et al. 2014, eq. 8)
    s_t  = (1 - z) ∘ n + z ∘ s_{t-1}                        torch's z; the paper's z is 1 - this one

e, ``entering``, is the old state as it enters a product: state_mask ∘ s_{t-1} where there is a mask. Everything is
float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # libdevice's is not there in the interpreter. This one is within 1.9e-7 of the true value, NaN stays NaN.
    return 2.0 * sigmoid(2.0 * x) - 1.0


@triton.jit
def gru_new_state(g_n, u_n, r, z, old_state, RESET_AFTER: tl.constexpr):
    """The candidate n and the new state, from the gates r and z."""
    if RESET_AFTER:
        n = tanh(g_n + r * u_n)
    else:
        n = tanh(g_n + u_n)
    return n, (1.0 - z) * n + z * old_state


@triton.jit
def gru_new_state_backward(grad_new_state, r, z, n, u_n, old_state, RESET_AFTER: tl.constexpr):
    """Gradients of what enters r, z and n, of u_n, and the part of the old state's that goes past the products.

    Otherwise than RESET_AFTER the gradient of what enters r is zero here: it follows from u_n's through a product,
    in :func:`gru_reset_backward`.
    """
    grad_n = grad_new_state * (1.0 - z) * (1.0 - n * n)
    grad_z = grad_new_state * (old_state - n) * z * (1.0 - z)
    if RESET_AFTER:
        grad_r = grad_n * u_n * r * (1.0 - r)
        grad_u_n = grad_n * r
    else:
        grad_r = tl.zeros_like(grad_n)
        grad_u_n = grad_n
    return grad_r, grad_z, grad_n, grad_u_n, grad_new_state * z


@triton.jit
def gru_reset_backward(grad_reset_state, r, entering):
    """From the gradient of r ∘ entering: that of what enters r, and entering's part."""
    return grad_reset_state * entering * r * (1.0 - r), grad_reset_state * r
