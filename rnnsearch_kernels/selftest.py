"""Example arguments for every op, made from the list, and every backend held against the reference on them.

The truth is the reference in float64, on the very values that the backend is given: values and gradients, with
every optional argument there and with none, both GRU conventions, both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from . import reference
from .autograd import BACKWARD
from .backends import ANY_DEVICE, Backend
from .checks import split_size
from .ops import overload_of
from .reference.dtypes import accumulate_dtype
from .schema import BY_NAME, CONTEXT_GATES, INDEX, MASK, OPS, STORAGE, Arg, Flag, Op

# Odd on purpose, and none equal to another: a mixed-up size or a missing tail shows.
SIZES = {"B": 4, "S": 7, "T": 5, "N": 6, "H": 13, "A": 11, "M": 19, "L": 9, "V": 37, "R": 3, "K": 8, "I": 17, "O": 23}
# A source of several blocks: GPU kernels split it over programs.
LONG = {**SIZES, "S": 131, "T": 3}
# So many steps for a source that decoder_scan sums memory_gates, forward and backward, in every dtype.
MORE_STEPS = {**SIZES, "S": 3, "T": 13, "M": 61}

# RMS error allowed, in units of max|truth|: 8 eps(storage) for rounding to storage a handful of times, and 64
# eps(accumulate) for sums whose terms cancel, as those of the scores' gradients do (they add up to zero): honest
# kernels were seen to need up to half of that. A gate, a position or a term out of place is wrong in the first digit.
STORAGE_EPS = 8
ACCUMULATE_EPS = 64

DROPOUT = 0.25

# The settings of a flag, by its kind; the last one where nothing is said.
SETTINGS: dict[str, tuple[Any, ...]] = {"bool": (True, False), "float": (0.0, 0.1)}

INFERENCE_ONLY = ("memory_index", "memory_gates")


def example(
    op: Op,
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] = SIZES,
    absent: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Arguments of ``op`` by name, in its order; the same numbers in every dtype, up to rounding.

    Masks have holes and, from three sentences on, a sentence without a real position; lengths reach from 0 to
    T; a state mask is 0 or 1 / (1 - DROPOUT); from three rows on, every third has no target. Without
    ``memory_index`` there are as many rows as sentences, without ``memory_gates`` there is a ``context_weight``. A
    backward op gets what its forward op gave.
    """
    absent, flags = set(absent), dict(flags or {})
    generator = torch.Generator().manual_seed(seed)
    sizes = dict(sizes)
    if "memory_index" in absent:
        sizes["N"] = sizes["B"]
    known: dict[str, Any] = {}
    if op.name.endswith("_backward"):
        forward = BY_NAME[op.name.removesuffix("_backward")]
        known = example(forward, dtype, seed=seed, sizes=sizes, absent=absent | {"memory_index"}, flags=flags)
        results = getattr(reference, forward.name)(*known.values())
        known.update({result.name: value for result, value in zip(forward.results, results, strict=True)})
    made: dict[str, Any] = {}
    for arg in op.args:
        if arg.name in known:
            made[arg.name] = known[arg.name]
        elif isinstance(arg, Flag):
            made[arg.name] = flags.get(arg.name, sizes[arg.size] if arg.size else SETTINGS[arg.kind][-1])
        elif arg.optional and arg.name in absent and not (arg.name == CONTEXT_GATES[0] and CONTEXT_GATES[1] in absent):
            made[arg.name] = None
        else:
            made[arg.name] = _random(arg, dtype, sizes, generator)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in made.items()}


def _random(arg: Arg, dtype: torch.dtype, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    shape = [multiple * sizes[letter] for multiple, letter in map(split_size, arg.shape)]
    if arg.role == MASK:
        mask = torch.rand(shape, generator=generator) < 0.4
        mask[0, 0] = False
        if shape[0] > 2:
            mask[2] = True
        return mask
    if arg.role == INDEX:
        ranges = {"memory_index": (0, sizes["B"]), "banned_ids": (-1, sizes["V"]), "target": (0, sizes["V"])}
        low, high = ranges.get(arg.name, (0, sizes["T"] + 1))
        values = torch.randint(low, high, shape, generator=generator)
        if arg.name == "target":
            values[2::3] = -1
        if arg.name.endswith("lengths"):
            values[0] = sizes["T"]
            values[1:2] = 0
        return values
    if arg.name == "state_mask":
        kept = torch.rand(shape, generator=generator) >= DROPOUT
        return kept.to(accumulate_dtype(dtype)) / (1 - DROPOUT)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if arg.name.endswith("weight") and len(shape) == 2:
        values = values / shape[1] ** 0.5
    return values.to(dtype if arg.role == STORAGE else accumulate_dtype(dtype))


def widen(args: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, exactly, in float64 and on the CPU."""
    return {
        name: (value.double() if value.is_floating_point() else value).cpu() if isinstance(value, Tensor) else value
        for name, value in args.items()
    }


def variants(op: Op, *, differentiable: bool = False) -> Iterator[tuple[set[str], dict[str, Any]]]:
    """(absent arguments, flags): every optional argument there, and none, under each setting of the flags."""
    optional = {arg.name for arg in op.tensors if arg.optional}
    switches = {arg.name: SETTINGS[arg.kind] for arg in op.args if isinstance(arg, Flag) and arg.kind in SETTINGS}
    always_absent = set(INFERENCE_ONLY) & optional if differentiable else set()
    for absent in [always_absent, optional] if optional else [set()]:
        for values in product(*switches.values()):
            yield absent, dict(zip(switches, values, strict=True))


def values_and_grads(
    function: Callable[..., Any], args: Mapping[str, Any], wanted: Sequence[str] = (), seed: int = 1
) -> dict[str, Tensor]:
    """Results by number and, for the arguments ``wanted``, gradients by name under fixed random cotangents."""
    leaves = {
        name: value.detach().clone().requires_grad_() if name in wanted else value for name, value in args.items()
    }
    results = function(*leaves.values())
    results = results if isinstance(results, tuple) else (results,)
    # Copies: a backward pass may write into what the op has saved.
    found = {str(number): result.detach().clone() for number, result in enumerate(results)}
    if wanted:
        generator = torch.Generator().manual_seed(seed)
        live = [result for result in results if result.requires_grad]
        cotangents = [torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result) for result in live]
        grads = torch.autograd.grad(live, [leaves[name] for name in wanted], cotangents)
        found.update({f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)})
    return found


def differentiable_arguments(op: Op, args: Mapping[str, Any]) -> list[str]:
    return [
        arg.name
        for arg in op.tensors
        if arg.role not in (MASK, INDEX) and not arg.constant and args[arg.name] is not None
    ]


@dataclass(frozen=True)
class Outcome:
    """One op of one backend in one dtype: the worst error over all variants, in units of what is allowed."""

    backend: str
    device: str
    op: str
    dtype: torch.dtype
    gradients: bool
    worst: float
    complaint: str | None


def check(backend: Backend, device: str, sizes: Mapping[str, int] = SIZES) -> Iterator[Outcome]:
    """Every op that ``backend`` can run on ``device``, in each of its dtypes."""
    for op in OPS:
        if op.name.endswith("_backward"):
            continue  # held by the gradients of its forward op
        for dtype in backend.dtypes:
            if backend.why_not(op.name, device, dtype, False) is None:
                yield _check_op(backend, device, op, dtype, sizes)


def _check_op(backend: Backend, device: str, op: Op, dtype: torch.dtype, sizes: Mapping[str, int]) -> Outcome:
    differentiable = op.name in BACKWARD and backend.why_not(op.name, device, dtype, True) is None
    overload = overload_of(op.name, backend.name)
    # Where no argument is for inference only, the calls with gradients hold the values of the calls without.
    plain = not differentiable or any(arg.name in INFERENCE_ONLY for arg in op.tensors)
    worst, complaint = 0.0, None
    for gradients in [False] * plain + [True] * differentiable:
        shapes = (sizes, MORE_STEPS) if op.name == "decoder_scan" else (sizes,)
        calls = product(shapes, variants(op, differentiable=gradients))
        for seed, (shape, (absent, flags)) in enumerate(calls):
            args = example(op, dtype, seed=seed, sizes=shape, absent=absent, flags=flags, device=device)
            try:
                for name, ratio in _errors(op, overload, args, dtype, gradients):
                    worst = max(worst, ratio)
                    if not ratio <= 1 and complaint is None:
                        complaint = f"{name} is off by {ratio:.3g} times what is allowed ({_described(absent, flags)})"
            except Exception as error:  # whatever a backend raises is a finding, not the end of the report
                worst = float("inf")
                complaint = complaint or f"{type(error).__name__}: {error} ({_described(absent, flags)})"
    return Outcome(backend.name, device, op.name, dtype, differentiable, worst, complaint)


def _errors(
    op: Op, overload: Any, args: dict[str, Any], dtype: torch.dtype, gradients: bool
) -> Iterator[tuple[str, float]]:
    wanted = differentiable_arguments(op, args) if gradients else []
    found = values_and_grads(overload, args, wanted)
    truth = values_and_grads(overload_of(op.name, "reference"), widen(args), wanted)
    if op.name == "vocabulary_topk":
        # Near ties may come out in another order: the ids are judged by the truth's log-probabilities of them.
        everything = {**widen(args), "k": SIZES["V"]}
        log_probs, token_ids = reference.vocabulary_topk(*everything.values())
        by_id = torch.empty_like(log_probs).scatter_(1, token_ids, log_probs)
        found["1"], truth["1"] = by_id.gather(1, found["1"].cpu()), truth["0"]
    for name, value in found.items():
        label = f"`{op.results[int(name)].name}`" if name.isdigit() else name
        yield label, error_ratio(value, truth[name], dtype)


def error_ratio(found: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """RMS error over what is allowed; infinite where either holds a NaN."""
    eps = max(STORAGE_EPS * torch.finfo(dtype).eps, ACCUMULATE_EPS * torch.finfo(accumulate_dtype(dtype)).eps)
    allowed = eps * float(truth.abs().max())
    error = float((found.double().cpu() - truth).square().mean().sqrt())
    if error == 0:
        return 0.0
    return error / allowed if error < float("inf") and allowed > 0 else float("inf")


def _described(absent: set[str], flags: dict[str, Any]) -> str:
    said = [f"without {' and '.join(sorted(absent))}"] if absent else []
    return ", ".join(said + [f"{name}={value}" for name, value in flags.items()]) or "its only form"


def devices() -> list[str]:
    """The device types of this machine that a backend may run on."""
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def runs_on(backend: Backend, device: str) -> bool:
    return backend.missing is None and (device in backend.devices or ANY_DEVICE in backend.devices)
