"""Every tolerance of the tests, each with its reason.

The rule: against a float64 truth computed from the very values that the op was given, the RMS error over ten
seeds is at most twice the RMS error that plain PyTorch makes on them in the same dtype, and never held below the
floor of 8 · eps · max|truth|. Twice, because an op may sum in another order than PyTorch but may not be a worse
computation; a floor, because where plain PyTorch happens to be almost exact, twice nothing is nothing.
"""

from __future__ import annotations

import torch

TIMES_PLAIN = 2
FLOOR_EPS = 8
SEEDS = 10

# Two float64 computations of one value in different orders: sums of at most a few hundred terms of order one,
# carried through at most a few dozen steps, so some hundreds of eps (2.2e-16) at the very most.
EXACT = {"rtol": 1e-11, "atol": 1e-12}

# gradcheck's own finite differences: step 1e-6 on float64 gives about 1e-10 / 1e-6 = 1e-4 absolute at worst for
# values of order one; torch's defaults for float64 are tighter than that in rtol and hold here.
GRADCHECK = {"eps": 1e-6, "atol": 1e-5, "rtol": 1e-3}

# The same kernel on the same values, through a compiler that may fuse and reorder float32 sums.
SAME_FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}

# float32 against float32 through another runtime (onnxruntime): its own tanh and sigmoid, a few eps each.
OTHER_RUNTIME = {"rtol": 1e-4, "atol": 1e-5}

# Autocast rounds inputs and weights to bfloat16 (eps 2^-8 = 0.0039): values of order one, one product after
# another over a few steps, so a few per cent at worst.
AUTOCAST = {"rtol": 0.05, "atol": 0.05}

# The CUDA kernels on the host against float64, over a few steps: float32 sums and the C library's exp and tanh; in the
# 16-bit types what the blocks hand each other (the state, the gates' gradients) is rounded once a step, half an eps
# (2^-9, 2^-12) of values up to ten, and so are the inputs' gradients.
HOST_KERNELS = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.03},
    torch.float16: {"rtol": 0.0025, "atol": 0.004},
}


def rms(error: torch.Tensor) -> float:
    return float(error.double().square().mean().sqrt())


def allowed(plain_rms: float, truth: torch.Tensor, dtype: torch.dtype) -> float:
    """The RMS error an op may make where plain PyTorch makes ``plain_rms``; ``dtype`` is the result's."""
    return max(TIMES_PLAIN * plain_rms, FLOOR_EPS * torch.finfo(dtype).eps * float(truth.abs().max()))
