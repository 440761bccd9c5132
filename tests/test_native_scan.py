"""The C++ scans beyond what holds for every backend: each instruction set, threads and rows that could change a result,
sizes around the panels and tiles, large queries and keys, and memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tolerances
import torch
from torch import Tensor

from rnnsearch_kernels import native
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.reference.decoder import decoder_scan as reference_scan
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import SIZES, differentiable_arguments, example, values_and_grads, variants, widen

built = native.extension()
if built is None:
    pytest.skip(f"no compiled kernels: {native.why_missing()}", allow_module_level=True)
extension = built

SCANS = ["decoder_scan", "gru_scan"]
# Around the panels (8, 16, 32 and 64 outputs), tiles of rows (6) and of positions (4), and the vectors; and more inputs
# than one block of a panel has.
SHAPES = [
    {"B": 1, "S": 1, "T": 1, "H": 1, "A": 1, "M": 1},
    {"B": 2, "S": 4, "T": 3, "H": 16, "A": 64, "M": 32},
    {"B": 7, "S": 9, "T": 3, "H": 23, "A": 65, "M": 67},
    {"B": 13, "S": 6, "T": 2, "H": 66, "A": 31, "M": 130},
    {"B": 5, "S": 4, "T": 17, "H": 23, "A": 9, "M": 67},
    {"B": 7, "S": 2, "T": 2, "H": 3, "A": 4100, "M": 4100},
]
# Where decoder_scan sums contexts, and where it sums memory_gates, in both directions and in every dtype.
FORMS = {
    "contexts": {"B": 5, "S": 19, "T": 12, "H": 40, "A": 71, "M": 51},
    "memory_gates": {"B": 5, "S": 3, "T": 11, "H": 40, "A": 71, "M": 103},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]

each_form = pytest.mark.parametrize("form", FORMS)


each_isa = pytest.mark.usefixtures("isa")


def form_of(sizes: dict[str, int], dtype: torch.dtype) -> dict[str, str]:
    forms: dict[str, str] = extension.decoder_scan_forms(
        str(dtype).removeprefix("torch."), sizes["S"], sizes["T"], sizes["M"]
    )
    return forms


def found(op: str, args: dict[str, Any], backend: str = "cpu") -> dict[str, Tensor]:
    """Results and every gradient."""
    return values_and_grads(overload_of(op, backend), args, differentiable_arguments(BY_NAME[op], args))


@each_isa
@pytest.mark.parametrize("op", SCANS)
def test_values_and_gradients_are_exact_in_float64(op: str) -> None:
    for shape, (absent, flags) in itertools.product(SHAPES, variants(BY_NAME[op], differentiable=True)):
        args = example(BY_NAME[op], torch.float64, sizes={**SIZES, **shape}, absent=absent, flags=flags)
        truth = found(op, args, "reference")
        for name, value in found(op, args).items():
            torch.testing.assert_close(value, truth[name], **tolerances.EXACT, msg=lambda text, n=name: f"{n}: {text}")


def test_the_cheaper_form_is_taken() -> None:
    assert all(
        form_of(sizes, dtype) == {"forward": form, "backward": form}
        for form, sizes in FORMS.items()
        for dtype in DTYPES
    )
    # As much source as target, or more: the loop would read as much and products would come on top. Twice as much
    # target: the larger part of the products leaves the loop.
    assert set(form_of({"S": 25, "T": 25, "M": 512}, torch.float32).values()) == {"contexts"}
    assert set(form_of({"S": 1500, "T": 50, "M": 1024}, torch.float32).values()) == {"contexts"}
    assert set(form_of({"S": 25, "T": 50, "M": 512}, torch.float32).values()) == {"memory_gates"}
    # Where bfloat16 is multiplied at twice the rate and summed at the same, more must leave it.
    assert set(form_of({"S": 25, "T": 50, "M": 512}, torch.bfloat16).values()) == {"contexts"}
    assert set(form_of({"S": 25, "T": 100, "M": 512}, torch.bfloat16).values()) == {"memory_gates"}
    # The backward pass has three products with memory_gates, and two for each step with contexts.
    assert form_of({"S": 25, "T": 36, "M": 512}, torch.float32) == {"forward": "memory_gates", "backward": "contexts"}


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("op", "form"), [("gru_scan", "contexts"), ("gru_scan", "step"), *(("decoder_scan", form) for form in FORMS)]
)
def test_error_is_at_most_twice_that_of_plain_pytorch(op: str, form: str, dtype: torch.dtype) -> None:
    sizes = {**SIZES, **({"T": 1} if form == "step" else FORMS[form])}
    for absent, flags in variants(BY_NAME[op], differentiable=True):
        errors: dict[str, list[Tensor]] = {}
        plain: dict[str, list[Tensor]] = {}
        truths: dict[str, list[Tensor]] = {}
        for seed in range(tolerances.SEEDS):
            args = example(BY_NAME[op], dtype, seed=seed, sizes=sizes, absent=absent, flags=flags)
            truth = found(op, widen(args), "reference")
            for kept, backend in ((errors, "cpu"), (plain, "reference")):
                for name, value in found(op, args, backend).items():
                    kept.setdefault(name, []).append(value.double() - truth[name])
            for name, value in truth.items():
                truths.setdefault(name, []).append(value)
        for name, error in errors.items():
            allowed = tolerances.allowed(tolerances.rms(torch.stack(plain[name])), torch.stack(truths[name]), dtype)
            assert tolerances.rms(torch.stack(error)) <= allowed, (name, absent, flags)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_row_of_gru_scan_is_the_same_bits_in_any_batch(steps: int, dtype: torch.dtype, reset_after: bool) -> None:
    sizes = {**SIZES, "B": 80, "T": steps, "H": 70}
    args = example(BY_NAME["gru_scan"], dtype, sizes=sizes, absent={"lengths"}, flags={"reset_after": reset_after})
    scan = overload_of("gru_scan", "cpu")
    whole = scan(*args.values())
    for rows in (1, 2, 3, 5, 6, 7, 12, 16, 17, 31, 33, 48, 49, 79, 80):
        for first in {0, 80 - rows}:
            part = {name: args[name][first : first + rows] for name in ("input_gates", "state", "state_mask")}
            for one, other in zip(scan(*{**args, **part}.values()), whole, strict=True):
                assert torch.equal(one, other[first : first + rows]), (rows, first)


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("reset_after", [True, False])
def test_a_source_of_one_token_is_encoded_to_the_same_bits_alone_and_beside_longer_ones(
    dtype: torch.dtype, reset_after: bool
) -> None:
    """A single step sums its products in an order of its own, which shows in no sum of zeros, an encoder's first."""
    sizes = {**SIZES, "B": 17, "T": 3, "H": 70}
    args = example(BY_NAME["gru_scan"], dtype, sizes=sizes, absent={"lengths"}, flags={"reset_after": reset_after})
    args["state"].zero_()
    scan = overload_of("gru_scan", "cpu")
    whole = scan(*args.values())
    args["input_gates"] = args["input_gates"][:, :1]
    for one, several in zip(scan(*args.values()), whole, strict=True):
        assert torch.equal(one, several[:, :1])


@each_isa
@each_form
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_decoder_scan_is_the_same_bits_in_any_batch(dtype: torch.dtype, form: str) -> None:
    B = 25
    args = example(BY_NAME["decoder_scan"], dtype, sizes={**SIZES, **FORMS[form], "B": B}, absent={"input_lengths"})
    by_row = ("input_gates", "state", "state_mask", "keys", "memory", "key_padding_mask")
    scan = overload_of("decoder_scan", "cpu")
    whole = scan(*args.values())
    for rows in (1, 2, 6, 7, 13, 24):
        for first in (0, B - rows):
            part = {name: args[name][first : first + rows] for name in by_row}
            for one, other in zip(scan(*{**args, **part}.values()), whole, strict=True):
                assert torch.equal(one, other[first : first + rows]), (rows, first)


@each_isa
@pytest.mark.parametrize("op", SCANS)
def test_lengths_of_other_rows_change_no_bit_of_a_row(op: str) -> None:
    name = "input_lengths" if op == "decoder_scan" else "lengths"
    args = example(BY_NAME[op], sizes={**SIZES, "B": 9, "T": 6, "H": 20})
    args[name] = torch.tensor([6, 0, 3, 6, 1, 2, 5, 4, 6])
    other = {**args, name: torch.tensor([6, 6, 3, 1, 0, 2, 4, 4, 0])}
    same = (args[name] == other[name]).nonzero()[:, 0]
    for one, two in zip(*(overload_of(op, "cpu")(*given.values()) for given in (args, other)), strict=True):
        assert torch.equal(one[same], two[same])


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("op", "lengths"),
    [("gru_scan", {"T": 6}), ("decoder_scan", {"S": 150, "T": 6}), ("decoder_scan", {"S": 8, "T": 40, "M": 290})],
)
def test_threads_change_no_bit_of_results_and_gradients(op: str, lengths: dict[str, int], dtype: torch.dtype) -> None:
    # Large enough that every phase is cut up. The library's products over all steps may depend on its threads.
    args = example(BY_NAME[op], dtype, sizes={**SIZES, "B": 17, "H": 130, "A": 140, "M": 270, **lengths})
    once = found(op, args)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for name, value in found(op, args).items():
                of_library = name.endswith("_weight") and "score" not in name
                close = tolerances.SAME_FLOAT32 if dtype == torch.float32 else tolerances.AUTOCAST
                allowed = close if of_library else {"rtol": 0, "atol": 0}
                torch.testing.assert_close(value, once[name], **allowed, msg=lambda text, n=name: f"{n}: {text}")
    finally:
        torch.set_num_threads(1)


@each_isa
@pytest.mark.parametrize("sizes", [{"H": 64, "M": 1}, {"H": 1, "A": 62}], ids=str)
def test_one_input_has_no_other_half_in_its_slot(sizes: dict[str, int]) -> None:
    """Where inputs go in pairs and the outputs fill their panels, what stood in that memory before must not count."""
    op = BY_NAME["decoder_scan"]
    args = example(op, torch.bfloat16, sizes={**SIZES, **sizes})
    rooms = [torch.full((size,), float("nan")) for size in range(1, 2000) for _ in range(3)]
    del rooms  # what `empty` finds
    for value in found(op.name, args).values():
        assert value.isfinite().all()


@each_isa
@pytest.mark.parametrize("which", ["queries", "keys", "one key", "one row"])
def test_beyond_the_range_of_the_shared_exponential(which: str) -> None:
    """|query| or |key| above 9: there e^{2(query + key)} is computed for itself."""
    args = example(BY_NAME["decoder_scan"], sizes={**SIZES, "B": 5, "S": 11, "A": 20})
    if which == "queries":
        args["query_bias"] = args["query_bias"] * 20
    elif which == "keys":
        args["keys"] = args["keys"] * 20
    elif which == "one key":
        args["keys"][0, 5, 3] = 40
    else:
        args["state"][3] *= 100
    truth = found("decoder_scan", widen(args), "reference")
    plain = found("decoder_scan", args, "reference")
    for name, value in found("decoder_scan", args).items():
        error, plain_error = (tolerances.rms(one.double() - truth[name]) for one in (value, plain[name]))
        assert error <= tolerances.allowed(plain_error, truth[name], torch.float32), name


@each_isa
@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_in_padding_and_past_the_lengths_changes_no_bit_in_either_form(form: str, dtype: torch.dtype) -> None:
    op = BY_NAME["decoder_scan"]
    args = example(op, dtype, sizes={**SIZES, **FORMS[form]})
    past = torch.arange(FORMS[form]["T"]) >= args["input_lengths"][:, None]
    padded = args["key_padding_mask"]

    def gradients(fill: float, **other: Tensor) -> list[Tensor]:
        given = {**args, **other}
        wanted = differentiable_arguments(op, given)
        leaves = {name: value.clone().requires_grad_() if name in wanted else value for name, value in given.items()}
        results = overload_of(op.name, "cpu")(*leaves.values())[:3]
        cotangents = [torch.ones_like(result).masked_fill(past[..., None], fill) for result in results]
        cotangents[2] = cotangents[2].masked_fill(padded[:, None], fill)
        grads = torch.autograd.grad(results, [leaves[name] for name in wanted], cotangents)
        return [*(result.detach() for result in results), *grads]

    nan = float("nan")
    hidden = {name: args[name].masked_fill(padded[..., None], nan) for name in ("keys", "memory")}
    hidden["input_gates"] = args["input_gates"].masked_fill(past[..., None], nan)
    for one, other in zip(gradients(nan, **hidden), gradients(0.0), strict=True):
        assert torch.equal(one, other)


@each_isa
def test_nothing_of_size_batch_by_target_by_source_by_attention_is_allocated() -> None:
    sizes = {**SIZES, "B": 2, "S": 200, "T": 30, "H": 8, "A": 64, "M": 8}
    args = example(BY_NAME["decoder_scan"], sizes=sizes, absent={"key_padding_mask", "input_lengths"})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        found("decoder_scan", args)
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    largest = max(changes)
    assert 0 < largest < 4 * sizes["B"] * sizes["S"] * sizes["T"] * sizes["A"] // 8
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    assert peak < 4 * sizes["B"] * sizes["S"] * sizes["T"] * sizes["A"] // 2


@each_isa
@pytest.mark.parametrize(
    ("op", "argument", "wrong", "message"),
    [
        ("decoder_scan", "memory", torch.zeros(4, 8, 19), r"`memory` must be \(B, S, M\) = \(4, 7, M\)"),
        ("decoder_scan", "query_weight", torch.zeros(11, 12), r"`query_weight` must be \(A, H\) = \(11, 13\)"),
        ("decoder_scan", "input_lengths", torch.tensor([1, 2, 6, 0]), r"`input_lengths` must lie in 0\.\.T = 0\.\.5"),
        ("decoder_scan_backward", "gates", torch.zeros(4, 5, 51), r"`gates` must be \(B, T, 4H\) = \(4, 5, 52\)"),
        ("gru_scan_backward", "states", torch.zeros(4, 4, 13), r"`states` must be \(B, T, H\) = \(4, 5, 13\)"),
    ],
)
def test_a_direct_call_is_checked(op: str, argument: str, wrong: Tensor, message: str) -> None:
    args = example(BY_NAME[op])
    args[argument] = wrong
    with pytest.raises(RuntimeError, match=message):
        overload_of(op, "cpu")(*args.values())


@each_isa
def test_a_nan_in_a_real_position_shows_and_one_in_padding_does_not() -> None:
    args = example(BY_NAME["decoder_scan"], absent={"input_lengths"}, sizes={**SIZES, "B": 4, "S": 9})
    mask = args["key_padding_mask"] = torch.zeros(4, 9, dtype=torch.bool)
    mask[1, 4:] = True
    clean = reference_scan(*args.values())
    args["keys"][1, 5, 0] = args["memory"][1, 6, 0] = float("nan")
    for one, other in zip(overload_of("decoder_scan", "cpu")(*args.values()), clean, strict=True):
        torch.testing.assert_close(one, other, **tolerances.SAME_FLOAT32)
    args["keys"][1, 2, 0] = float("nan")
    states = overload_of("decoder_scan", "cpu")(*args.values())[0]
    assert states[1].isnan().all() and states[[0, 2, 3]].isfinite().all()
