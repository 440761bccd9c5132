"""Every Triton op on drawn shapes, strides, lengths, masks, flags and dtypes, against the reference in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, Flag
from rnnsearch_kernels.selftest import INFERENCE_ONLY, differentiable_arguments, error_ratio, example, widen

(TRITON,) = (backend for backend in rk.list_backends() if backend.name == "triton")
SEEDS = 6
# By letter, the largest size drawn: past a block of rows, of features, of positions and of units, and not much more.
LARGEST = {"B": 4, "N": 20, "S": 36, "T": 3, "H": 20, "A": 40, "M": 70, "L": 40, "V": 140, "R": 3, "I": 40, "O": 40}
EDGES = (1, 15, 16, 17, 31, 32, 33)
FEW = 8
LAYOUTS = ("as it is", "sliced", "every other", "permuted", "expanded")
OPS = [name for name in TRITON.ops if not name.endswith("_backward")]


def drawn_size(draw: random.Random, largest: int) -> int:
    """An edge of a block as often as anything else."""
    edges = [edge for edge in EDGES if edge <= largest]
    return draw.choice(edges) if draw.random() < 0.5 else draw.randint(1, largest)


def laid_out(value: torch.Tensor, how: str, draw: random.Random) -> torch.Tensor:
    """A tensor of the shape and dtype of ``value`` in that layout; the same numbers, or, expanded, its first row's."""
    if how == "sliced":
        return torch.cat([value, value[..., :1], value[..., :1]], -1)[..., : value.shape[-1]]
    if how == "every other":
        return torch.stack([value, value], -1)[..., 0]
    if how == "permuted":
        order = list(range(value.dim()))
        draw.shuffle(order)
        return value.permute(order).contiguous().permute([order.index(dim) for dim in range(value.dim())])
    return value[:1].expand_as(value) if how == "expanded" else value


@dataclass
class Drawn:
    args: dict[str, Any]
    dtype: torch.dtype
    sizes: dict[str, int]
    layouts: dict[str, str]
    absent: set[str]
    flags: dict[str, bool]

    def __str__(self) -> str:
        return f"{self.dtype} {self.sizes} {self.layouts} without {sorted(self.absent)} {self.flags}"


def drawn(name: str, seed: int) -> Drawn:
    draw, op = random.Random(f"{name} {seed}"), BY_NAME[name]
    sizes = {letter: drawn_size(draw, largest) for letter, largest in LARGEST.items()}
    sizes["K"] = draw.randint(1, min(12, sizes["V"]))
    dtype = TRITON.dtypes[seed % len(TRITON.dtypes)]
    optional = [arg.name for arg in op.tensors if arg.optional]
    # What is for inference alone has no gradients to look at.
    absent = {arg for arg in optional if draw.random() < 0.4} | (set(INFERENCE_ONLY) & set(optional))
    flags = {arg.name: draw.random() < 0.5 for arg in op.args if isinstance(arg, Flag) and arg.kind == "bool"}
    args = example(op, dtype, seed=seed, sizes=sizes, absent=absent, flags=flags)
    layouts = {key: draw.choice(LAYOUTS) for key, value in args.items() if isinstance(value, torch.Tensor)}
    args.update({key: laid_out(args[key], how, draw) for key, how in layouts.items()})
    return Drawn(args, dtype, sizes, layouts, absent, flags)


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", OPS)
def test_whatever_is_drawn_it_holds_against_float64(name, seed):
    case, reference = drawn(name, seed), overload_of(name, "reference")
    wanted = [] if name == "vocabulary_topk" else differentiable_arguments(BY_NAME[name], case.args)
    found = through(overload_of(name, "triton"), case.args, wanted)
    truth = through(reference, widen(case.args), wanted)
    if name == "vocabulary_topk":
        # Near ties may come out in another order: ids are judged by the truth's log-probabilities of them.
        log_probs, token_ids = reference(*{**widen(case.args), "k": case.sizes["V"]}.values())
        found[1] = torch.empty_like(log_probs).scatter_(1, token_ids, log_probs).gather(1, found[1])
        truth[1] = truth[0]
    for place, (mine, theirs) in enumerate(zip(found, truth, strict=True)):
        real = theirs.isfinite()
        assert torch.equal(mine.isfinite(), real), f"{place} of {case}"
        # A few numbers are no average: terms of order one may cancel in all of them.
        scale = min(1.0, float(theirs[real].abs().max())) if real.sum() in range(1, FEW) else 1.0
        assert error_ratio(mine[real], theirs[real], case.dtype) * scale <= 1, f"{place} of {case}"


def test_every_dtype_layout_flag_and_optional_argument_is_drawn():
    cases = {name: [drawn(name, seed) for seed in range(SEEDS)] for name in OPS}
    assert {how for found in cases.values() for case in found for how in case.layouts.values()} == set(LAYOUTS)
    assert all({case.dtype for case in found} == set(TRITON.dtypes) for found in cases.values())
    for argument in {arg.name for name in OPS for arg in BY_NAME[name].tensors if arg.optional} - set(INFERENCE_ONLY):
        having = [case for name, found in cases.items() if argument in cases[name][0].args for case in found]
        assert {argument in case.absent for case in having} == {True, False}, argument
    for flag in ("reset_after", "reverse"):
        assert {case.flags[flag] for case in cases["gru_scan"]} == {True, False}


def through(overload, args, wanted):
    """Results, and gradients of the arguments themselves, whose strides a copy would lose."""
    leaves = {key: value.detach().requires_grad_() if key in wanted else value for key, value in args.items()}
    results = overload(*leaves.values())
    results = results if isinstance(results, tuple) else (results,)
    live = [result for result in results if result.requires_grad]
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result) for result in live]
    grads = torch.autograd.grad(live, [leaves[key] for key in wanted], cotangents) if live else ()
    return [value.detach() for value in (*results, *grads)]
