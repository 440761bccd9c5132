"""The decoder's steps and attention in Triton: how many launches, sources that are split, the forms of the tanh."""

from __future__ import annotations

from itertools import product

import pytest
import tolerances
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

import rnnsearch_kernels as rk
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import (
    INFERENCE_ONLY,
    SIZES,
    differentiable_arguments,
    error_ratio,
    example,
    values_and_grads,
    widen,
)
from rnnsearch_kernels.triton import attention, attention_backward, configs
from rnnsearch_kernels.triton.tanh import tile_tanh, tile_tanh_and_slope

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FEW = {**SIZES, "B": 3, "N": 3}


def blocks_of(monkeypatch, **changes):
    """Other blocks for the sizes of the tests, forward and backward."""
    for table in (configs.ATTEND, configs.ATTEND_BACKWARD, configs.MERGE, configs.GRAD_KEYS):
        for rows in table[configs.DEFAULT].values():
            for largest, config in rows.items():
                known = {name: value for name, value in changes.items() if name in config}
                monkeypatch.setitem(rows, largest, {**config, **known})


@pytest.fixture
def split(monkeypatch):
    """A source is split from three positions on, and its parts are merged in several tiles."""
    blocks_of(monkeypatch, BLOCK_S=2, BLOCK_C=2)


def ratios(name, dtype=torch.float32, *, gradients=True, **options):
    """The errors of one op on one example, in units of what is allowed."""
    op = BY_NAME[name]
    args = example(op, dtype, **options)
    wanted = differentiable_arguments(op, args) if gradients else ()
    found = values_and_grads(overload_of(name, "triton"), args, wanted)
    truth = values_and_grads(overload_of(name, "reference"), widen(args), wanted)
    return {result: error_ratio(value, truth[result], dtype) for result, value in found.items()}


def held(found):
    assert max(found.values()) <= 1, found


# From context, T=2, and from memory_gates, T=5; lengths reach from 0 to T and masks have holes.
@pytest.mark.parametrize(
    ("dtype", "reset_after", "steps"),
    [*product(DTYPES[:1], (True, False), (2, 5)), (DTYPES[1], True, 5), (DTYPES[1], False, 2), (DTYPES[2], False, 5)],
    ids=str,
)
def test_a_scan_whose_source_is_split_holds_against_the_reference(split, dtype, reset_after, steps):
    held(ratios("decoder_scan", dtype, sizes={**FEW, "S": 5, "T": steps}, flags={"reset_after": reset_after}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_and_a_step_of_decoding_whose_source_is_split_hold(split, dtype):
    held(ratios("additive_attention", dtype, sizes=FEW, absent=INFERENCE_ONLY))
    for absent in ((), ("memory_gates",)):
        held(ratios("decoder_step", dtype, gradients=False, absent=absent, flags={"reset_after": True}))


def test_a_long_source_is_split_by_the_configurations_in_use():
    held(ratios("decoder_scan", sizes={**FEW, "S": 150, "T": 2, "B": 2}, flags={"reset_after": True}))


def test_a_source_that_is_split_loses_no_more_than_plain_pytorch_where_one_position_has_all_the_weight():
    """The scores' gradients are differences of nearly equal numbers there, which no part may blow up."""
    op, sizes = BY_NAME["additive_attention"], {**FEW, "B": 2, "S": 17, "A": 514}  # scores some 20 apart
    args = example(op, sizes=sizes, absent=INFERENCE_ONLY)
    wanted = differentiable_arguments(op, args)
    ours, plain, truth = (
        values_and_grads(overload_of(op.name, backend), given, wanted)
        for backend, given in (("triton", args), ("reference", args), ("reference", widen(args)))
    )
    for name in (f"gradient of {argument}" for argument in ("query", "keys", "score_weight")):
        allowed = tolerances.TIMES_PLAIN * tolerances.rms(plain[name] - truth[name])
        assert tolerances.rms(ours[name] - truth[name]) <= allowed, name


def test_a_row_comes_out_alike_whether_padding_has_its_source_split_or_not(monkeypatch):
    blocks_of(monkeypatch, BLOCK_S=8)
    args = example(BY_NAME["decoder_step"], flags={"reset_after": True})
    source = args["keys"].shape[1]
    assert source <= 8
    spoilt = {name: torch.cat([args[name], torch.full_like(args[name], torch.nan), args[name]], 1)
              for name in ("keys", "memory", "memory_gates")}  # fmt: skip
    padding = torch.cat([args["key_padding_mask"], torch.ones(len(args["keys"]), 2 * source, dtype=torch.bool)], 1)
    step = overload_of("decoder_step", "triton")
    new_state, context, weights, gates = step(*args.values())
    longer = step(*{**args, **spoilt, "key_padding_mask": padding}.values())
    assert torch.equal(longer[0], new_state) and torch.equal(longer[1], context) and torch.equal(longer[3], gates)
    assert torch.equal(longer[2][:, :source], weights) and not longer[2][:, source:].any()


@pytest.mark.parametrize("positions", [64, 2])
def test_bits_do_not_depend_on_how_many_programs_share_a_block(monkeypatch, positions):
    blocks_of(monkeypatch, BLOCK_S=positions, BLOCK_A=4, BLOCK_W=4)
    op, sizes = BY_NAME["decoder_scan"], {**FEW, "B": 1, "S": 3, "T": 3}
    args = example(op, sizes=sizes)
    wanted, found = differentiable_arguments(op, args), []
    for programs in (1, 3):
        for module in (attention, attention_backward):
            monkeypatch.setattr(
                module, "sharing", lambda device, blocks, parts, programs=programs: min(programs, parts)
            )
        found.append(values_and_grads(overload_of("decoder_scan", "triton"), args, wanted))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def launches(monkeypatch, op, args):
    """The kernels that a call launches."""
    names, run = [], interpreter.GridExecutor.__call__

    def counted(self, *given, **named):
        names.append(self.fn.__name__)
        return run(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(interpreter.GridExecutor, "__call__", counted)
        overload_of(op, "triton")(*args.values())
    return names


# Sources of up to four positions are whole; those no longer than T are summed from memory_gates, others from memory.
@pytest.mark.parametrize(
    ("source", "steps", "reset_after", "forward", "backward"),
    [
        (2, 2, True, 2, 2),
        (2, 2, False, 3, 3),
        (4, 1, True, 3, 3),
        (5, 5, True, 3, 3),
        (5, 1, True, 4, 4),
        (5, 1, False, 5, 5),
    ],
)
def test_a_step_takes_two_launches_and_one_for_each_thing_that_must_be_whole_before(
    monkeypatch, source, steps, reset_after, forward, backward
):
    blocks_of(monkeypatch, BLOCK_S=4)
    counts = []
    for op in ("decoder_scan", "decoder_scan_backward"):
        sizes = {**SIZES, "B": 1, "S": source}
        few, more = (
            example(
                BY_NAME[op], sizes={**sizes, "T": count}, absent={"input_lengths"}, flags={"reset_after": reset_after}
            )
            for count in (steps, steps + 1)
        )
        counts.append(len(launches(monkeypatch, op, more)) - len(launches(monkeypatch, op, few)))
    assert counts == [forward, backward]


@pytest.mark.parametrize(
    ("absent", "reset_after", "expected"), [((), True, 2), ((), False, 3), (("memory_gates",), True, 3)]
)
def test_a_step_of_decoding_takes_two_launches_where_memory_gates_are_there(monkeypatch, absent, reset_after, expected):
    args = example(BY_NAME["decoder_step"], absent=("state_mask", *absent), flags={"reset_after": reset_after})
    assert len(launches(monkeypatch, "decoder_step", args)) == expected


def loads(monkeypatch, op, args):
    """How many tiles a call reads, and how many programs it has."""
    counts, load, begin = (
        [0, 0],
        interpreter.InterpreterBuilder.create_masked_load,
        interpreter.InterpreterBuilder.set_grid_idx,
    )

    def loaded(*given):
        counts[0] += 1
        return load(*given)

    def begun(*given):
        counts[1] += 1
        return begin(*given)

    with monkeypatch.context() as patched:
        patched.setattr(interpreter.InterpreterBuilder, "create_masked_load", loaded)
        patched.setattr(interpreter.InterpreterBuilder, "set_grid_idx", begun)
        overload_of(op, "triton")(*args.values())
    return counts


@pytest.mark.parametrize(("source", "reset_after"), [(2, True), (9, False)])
@pytest.mark.parametrize("op", ["decoder_scan", "decoder_scan_backward"])
def test_in_a_step_that_no_row_reaches_a_program_looks_at_its_rows_and_returns(monkeypatch, op, source, reset_after):
    """A source of 9 positions is split, and its context multiplied in the loop."""
    blocks_of(monkeypatch, BLOCK_S=4)
    counts = []
    for steps in (3, 4):
        sizes, flags = {**SIZES, "B": 3, "S": source, "T": steps}, {"reset_after": reset_after}
        args = example(BY_NAME[op], sizes=sizes, flags=flags)
        args["input_lengths"] = torch.tensor([2, 1, 0])
        counts.append(loads(monkeypatch, op, args))
    (few, fewer), (more, programs) = counts
    assert 0 < more - few <= 2 * (programs - fewer)


@triton.jit
def tanh_kernel(input_ptr, tanh_ptr, slope_ptr, TANH: tl.constexpr):
    place = tl.program_id(0) * 256 + tl.arange(0, 4)[:, None] * 64 + tl.arange(0, 64)[None, :]
    input = tl.load(input_ptr + place)
    slope = tile_tanh_and_slope(input, TANH)[1]
    tl.store(tanh_ptr + place, tile_tanh(input, TANH))
    tl.store(slope_ptr + place, slope)


def tanh_of(values, form):
    """The tanh and its slope."""
    activation, slope = torch.empty_like(values), torch.empty_like(values)
    tanh_kernel[(len(values) // 256,)](values, activation, slope, TANH=form)
    return activation, slope


@pytest.mark.parametrize(("form", "largest"), [(configs.EXACT, 1.9e-7), (configs.SHARED, 3.5e-7)])
def test_a_tanh_is_as_close_as_is_said_and_lets_a_nan_through(form, largest):
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(2**14, generator=generator)
    far = torch.linspace(-20, 20, 2**14)[torch.randperm(2**14, generator=generator)]
    huge = torch.tensor([-torch.inf, torch.inf, 88.0, -88.0, 45.0, -45.0, 3e38, -3e38, 0.0, 1e-30, 15.0, 16.0])
    for values in (near, far, huge.repeat(64)):
        activation, slope = tanh_of(values, form)
        truth = values.double().tanh()
        assert (activation.double() - truth).abs().max() <= largest
        assert (slope.double() - (1 - truth * truth)).abs().max() <= 2 * largest
    values = torch.linspace(-3, 3, 256)
    values[7] = torch.nan
    for found in tanh_of(values, form):
        assert found[7].isnan() and not found[:6].isnan().any() and not found[8:].isnan().any()


def test_where_a_tanh_is_nearly_one_the_shared_form_has_its_slope_right_to_the_last_digits():
    values = torch.linspace(-9, 9, 2**14)
    slope = 1 / values.double().cosh() ** 2
    assert ((tanh_of(values, configs.SHARED)[1].double() - slope) / slope).abs().max() <= 1e-6


@pytest.mark.parametrize("form", [configs.EXACT, configs.SHARED])
def test_gradients_are_at_most_twice_as_far_off_as_plain_pytorch_where_tanh_are_nearly_one(monkeypatch, form):
    blocks_of(monkeypatch, TANH=form)
    op, wanted = BY_NAME["additive_attention"], ("query", "keys", "score_weight")
    errors = torch.zeros(2, len(wanted), dtype=torch.float64)
    for seed in range(tolerances.SEEDS):
        args = example(op, seed=seed, sizes={**SIZES, "B": 2, "A": 32}, absent=("memory_index", "key_padding_mask"))
        args = {**args, "keys": 3 * args["keys"], "score_weight": args["score_weight"] / 4}
        ours, plain, truth = (
            values_and_grads(overload_of(op.name, backend), given, wanted)
            for backend, given in (("triton", args), ("reference", args), ("reference", widen(args)))
        )
        for place, found in enumerate((ours, plain)):
            for number, name in enumerate(f"gradient of {argument}" for argument in wanted):
                errors[place, number] += tolerances.rms(found[name] - truth[name]) ** 2
    assert (errors[0].sqrt() <= tolerances.TIMES_PLAIN * errors[1].sqrt()).all(), errors.sqrt()


@pytest.mark.parametrize("form", [configs.EXACT, configs.SHARED])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_is_at_most_twice_as_far_off_as_plain_pytorch(monkeypatch, dtype, form):
    blocks_of(monkeypatch, TANH=form)
    op, errors = BY_NAME["additive_attention"], torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(tolerances.SEEDS):
        sizes = {**SIZES, "B": 2, "S": 20, "A": 64}
        args = example(op, dtype, seed=seed, sizes=sizes, absent=("memory_index", "key_padding_mask"))
        truth = overload_of(op.name, "reference")(*widen(args).values())
        query, keys, memory, weight = (args[name] for name in ("query", "keys", "memory", "score_weight"))
        plain_weights = (torch.tanh(query[:, None].to(dtype) + keys) @ weight).softmax(-1)
        plain = torch.bmm(plain_weights[:, None], memory)[:, 0], plain_weights
        for place, results in enumerate((overload_of(op.name, "triton")(*args.values()), plain)):
            for number, (result, wanted) in enumerate(zip(results, truth, strict=True)):
                errors[place, number] += tolerances.rms(result.double() - wanted) ** 2
    ours, theirs = errors.sqrt()
    assert (ours <= tolerances.TIMES_PLAIN * theirs).all(), (ours, theirs)


@pytest.mark.parametrize("reset_after", [True, False])
def test_a_decoding_step_that_attends_after_equals_the_reference(reset_after):
    """Its GRU is the step of a decoder over one position of zeros: sizes of 1 that no other caller has."""
    made = {"attend_after": True, "reset_after": reset_after}
    mine, theirs = (rk.FusedBahdanauDecoder(6, 5, 7, 4, backend=name, **made) for name in ("triton", "reference"))
    theirs.load_state_dict(mine.state_dict())
    memory, index = torch.randn(2, 8, 7), torch.tensor([0, 0, 1, 1, 0])
    input, state, context = torch.randn(5, 6), torch.randn(5, 5), torch.randn(5, 7)
    with torch.no_grad():
        found, wanted = (
            decoder.step(input, state, decoder.prepare_memory(memory), context=context, memory_index=index)
            for decoder in (mine, theirs)
        )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerances.SAME_FLOAT32)
