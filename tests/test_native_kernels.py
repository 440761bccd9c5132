"""The C++ CPU kernels, every instruction set that this machine has, against float64 truth computed in plain PyTorch.

What holds for every backend is tested beside the ops; here is what only these kernels can get wrong: widths and
tails, instruction sets, rows and threads that could change a result, strides, and calls straight to the op.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tolerances import EXACT, SEEDS, allowed, rms
from torch import Tensor

from rnnsearch_kernels import native, reference
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME, Flag
from rnnsearch_kernels.selftest import SETTINGS, SIZES, example

built = native.extension()
if built is None:
    pytest.skip(f"no compiled kernels: {native.why_missing()}", allow_module_level=True)
extension = built

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
OPS = ["linear", "additive_attention", "additive_attention_backward", "decoder_step", "gru_scan", "vocabulary_loss"]
# Sizes around the vector widths and the tiles (4 or 16 outputs, 3, 6 or 12 rows), and the paper's.
SHAPES = [
    {"N": 1, "B": 1, "S": 1, "H": 3, "A": 1, "M": 2, "I": 1, "O": 1, "T": 1, "L": 1, "V": 2},
    {"N": 7, "B": 3, "S": 5, "H": 7, "A": 7, "M": 33, "I": 31, "O": 66, "T": 4, "L": 9, "V": 37},
    {"N": 50, "B": 2, "S": 20, "H": 40, "A": 1000, "M": 200, "I": 500, "O": 67, "T": 2, "L": 67, "V": 1100},
]


each_isa = pytest.mark.usefixtures("isa")


def tuple_of(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else tuple(results)


def native_op(name: str, *args: Any) -> tuple[Tensor, ...]:
    return tuple_of(overload_of(name, "cpu")(*args))


def plain(name: str, *args: Any, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The op's definition; with ``dtype`` on the same values, converted."""
    if dtype is not None:
        args = tuple(arg.to(dtype) if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
    return tuple_of(getattr(reference, name)(*args))


def variants(name: str) -> Iterator[dict[str, Any]]:
    """With and without everything optional, both conventions, both directions."""
    op = BY_NAME[name]
    optional = [arg.name for arg in op.tensors if arg.optional]
    flags = {arg.name: SETTINGS[arg.kind] for arg in op.args if isinstance(arg, Flag) and arg.size is None}
    for absent in ([], optional) if optional else ([],):
        for values in itertools.product(*flags.values()):
            yield {"absent": absent, "flags": dict(zip(flags, values, strict=True))}


def sizes(shape: dict[str, int]) -> dict[str, int]:
    return {"R": 3, "K": 8, **shape}


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_error_against_float64_truth(name: str, dtype: torch.dtype) -> None:
    for shape, variant in itertools.product(SHAPES, variants(name)):
        errors, plain_errors, truths = [], [], []
        for seed in range(SEEDS if shape is SHAPES[1] else 1):
            args = list(example(BY_NAME[name], dtype, seed=seed, sizes=sizes(shape), **variant).values())
            truth = plain(name, *args, dtype=torch.float64)
            results = native_op(name, *args)
            # Plain PyTorch in bfloat16 holds every argument in it; that it rounds every result too is not counted.
            rounded = plain(name, *args, dtype=dtype)
            errors.append([result.double() - true for result, true in zip(results, truth, strict=True)])
            plain_errors.append([result.double() - true for result, true in zip(rounded, truth, strict=True)])
            truths.append(truth)
        for result, error, plain_error, truth in zip(
            results, zip(*errors, strict=True), zip(*plain_errors, strict=True), zip(*truths, strict=True), strict=True
        ):
            bound = allowed(rms(torch.stack(plain_error)), torch.stack(truth), result.dtype)
            assert rms(torch.stack(error)) <= bound, (name, shape, variant, tuple(result.shape))


@each_isa
@pytest.mark.parametrize("rows", [1, 12, 50])
def test_bfloat16_weights_times_float32_rows_have_the_error_of_a_float32_product(rows: int, isa: str) -> None:
    """A weight of few bits is no reason to round what it is multiplied with, but where an instruction takes no other:
    there the error is that of plain PyTorch in bfloat16, its rounding of the result not counted."""
    weight = torch.randn(67, 500).bfloat16()
    errors, plain_errors, truths = [], [], []
    for seed in range(SEEDS):
        input = torch.randn(rows, 500, generator=torch.Generator().manual_seed(seed))
        truth = input.double() @ weight.double().T
        errors.append(native_op("linear", input, weight, None)[0].double() - truth)
        taken = input.bfloat16().float() if isa == "avx512-bf16" else input
        plain_errors.append((taken @ weight.float().T).double() - truth)
        truths.append(truth)
    bound = allowed(rms(torch.stack(plain_errors)), torch.stack(truths), torch.float32)
    assert rms(torch.stack(errors)) <= bound


@each_isa
@pytest.mark.parametrize("rows", [300, 1000])
def test_a_loss_over_several_blocks_strips_and_pieces_has_the_error_of_plain_pytorch(rows: int) -> None:
    """1,000 rows of 40,000 logits are two pieces."""
    args = list(example(BY_NAME["vocabulary_loss"], sizes={**SIZES, "N": rows, "V": 40_000, "L": 3}).values())
    truth = plain("vocabulary_loss", *args, dtype=torch.float64)
    results, rounded = native_op("vocabulary_loss", *args), plain("vocabulary_loss", *args)
    for result, plain_result, true in zip(results, rounded, truth, strict=True):
        assert rms(result.double() - true) <= allowed(rms(plain_result.double() - true), true, result.dtype)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_topk_against_a_full_sort(dtype: torch.dtype, biased: bool) -> None:
    for N, L, V, k in [(1, 1, 1, 1), (5, 13, 37, 37), (7, 40, 1300, 12), (50, 8, 513, 3)]:
        readout = torch.randn(N, L, dtype=dtype)
        weight, bias = torch.randn(V, L).to(dtype), torch.randn(V).to(dtype) if biased else None
        banned = torch.randint(-1, V, (N, 2)) if V > k + 2 else None
        log_probs, ids = native_op("vocabulary_topk", readout, weight, bias, banned, k)
        truth = readout.double() @ weight.double().T + (0 if bias is None else bias.double())
        truth = truth.log_softmax(-1)
        torch.testing.assert_close(log_probs.double(), truth.gather(1, ids), rtol=2e-5, atol=2e-5)
        choosable = truth if banned is None else truth.clone()
        if banned is not None:
            for row, tokens in zip(choosable, banned, strict=True):
                row[tokens[tokens >= 0]] = -torch.inf
        best = choosable.sort(descending=True).values[:, :k]
        torch.testing.assert_close(log_probs.double(), best, rtol=2e-5, atol=2e-5)
        assert all(len(set(row)) == k for row in ids.tolist())


@each_isa
def test_topk_ties_go_to_the_lowest_id() -> None:
    weight = torch.zeros(1500, 4)
    _, ids = native_op("vocabulary_topk", torch.randn(3, 4), weight, None, None, 20)
    assert torch.equal(ids, torch.arange(20).expand(3, 20))
    banned = torch.tensor([[0, 1], [5, -1], [-1, 600]])
    _, ids = native_op("vocabulary_topk", torch.randn(3, 4), weight, None, banned, 3)
    assert ids.tolist() == [[2, 3, 4], [0, 1, 2], [0, 1, 2]]


@each_isa
def test_topk_without_enough_to_choose_from_and_with_nan() -> None:
    bias = torch.full((6,), -torch.inf)
    bias[4] = 0
    readout = torch.zeros(2, 3)
    readout[1, 0] = torch.nan
    log_probs, ids = native_op("vocabulary_topk", readout, torch.ones(6, 3), bias, None, 4)
    assert ids.tolist() == [[4, 0, 1, 2], [0, 1, 2, 3]]
    assert log_probs[0].tolist() == [0, -torch.inf, -torch.inf, -torch.inf]
    assert log_probs[1].isnan().all()
    impossible = torch.full((6,), -torch.inf)
    for result, expected in zip(
        native_op("vocabulary_topk", readout, torch.ones(6, 3), impossible, None, 4),
        plain("vocabulary_topk", readout, torch.ones(6, 3), impossible, None, 4),
        strict=True,
    ):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    banned = torch.tensor([[4, 0, 1, 2, 3]] * 2)
    log_probs, ids = native_op("vocabulary_topk", torch.zeros(2, 3), torch.ones(6, 3), None, banned, 3)
    assert ids[0].tolist() == [5, 0, 1]
    assert log_probs[0, 1:].tolist() == [-torch.inf, -torch.inf]


def rows_of_a_call(name: str, dtype: torch.dtype, rows: int) -> tuple[dict[str, Any], list[str]]:
    shape = {"N": rows, "B": 5, "S": 11, "H": 20, "A": 37, "M": 50, "I": 70, "O": 41, "L": 33, "V": 700, "T": 3}
    absent = ["memory_gates"]
    args = example(BY_NAME[name], dtype, sizes=sizes(shape), absent=absent, flags={"reset_after": False})
    return args, [arg.name for arg in BY_NAME[name].tensors if arg.shape[0] == "N"]


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["linear", "additive_attention", "decoder_step", "vocabulary_topk"])
def test_a_row_is_the_same_bits_in_any_batch(name: str, dtype: torch.dtype) -> None:
    args, by_row = rows_of_a_call(name, dtype, 80)
    together = native_op(name, *args.values())
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 16, 17, 33, 47, 48, 49, 64, 79):
        for first in {0, 80 - rows, 3 if rows < 78 else 0}:
            part = {
                key: value[first : first + rows] if key in by_row and value is not None else value
                for key, value in args.items()
            }
            for result, whole in zip(native_op(name, *part.values()), together, strict=True):
                assert torch.equal(result, whole[first : first + rows]), (rows, first)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inputs", [70, 72])
def test_a_row_of_a_product_is_the_same_bits_among_few_rows_and_many(inputs: int, dtype: torch.dtype) -> None:
    """Few gather the weights and many read a panel of them, in blocks of up to 384; 72 inputs are whole blocks of 4."""
    input, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((400, inputs), (83, inputs), (83,)))
    (together,) = native_op("linear", input, weight, bias)
    for rows in (1, 3, 5, 6, 7, 8, 12, 13, 25, 384, 385):
        for part in (slice(rows), slice(400 - rows, 400)):
            assert torch.equal(native_op("linear", input[part], weight, bias)[0], together[part]), rows


@each_isa
def test_a_sentence_is_the_same_bits_in_any_batch_and_with_any_padding() -> None:
    input_gates, state = torch.randn(9, 6, 60), torch.randn(9, 20)
    weight, bias = torch.randn(60, 20), torch.randn(60)
    lengths = torch.tensor([6, 0, 3, 1, 5, 6, 2, 4, 6])
    for reverse, reset_after in itertools.product([False, True], repeat=2):
        states, _ = native_op("gru_scan", input_gates, state, None, weight, bias, lengths, reverse, reset_after)
        for b, length in enumerate(lengths.tolist()):
            if length == 0:
                assert states[b].eq(0).all()
                continue
            alone, _ = native_op(
                "gru_scan",
                input_gates[b : b + 1, :length],
                state[b : b + 1],
                None,
                weight,
                bias,
                None,
                reverse,
                reset_after,
            )
            assert torch.equal(alone[0], states[b, :length])
            assert states[b, length:].eq(0).all()

    query, keys, memory, v = torch.randn(2, 37), torch.randn(2, 30, 37), torch.randn(2, 30, 50), torch.randn(37)
    mask = torch.arange(30).expand(2, 30) >= torch.tensor([[13], [30]])
    context, weights = native_op("additive_attention", query, keys, memory, v, mask, None)
    by_itself = native_op("additive_attention", query[:1], keys[:1, :13], memory[:1, :13], v, None, None)
    assert torch.equal(context[:1], by_itself[0]) and torch.equal(weights[:1, :13], by_itself[1])


@each_isa
@pytest.mark.parametrize("rows", [{"N": 9, "B": 6}, {"N": 40, "B": 15}], ids=["few sentences", "enough"])
@pytest.mark.parametrize("name", [*OPS, "vocabulary_topk"])
def test_threads_do_not_change_a_bit(name: str, rows: dict[str, int]) -> None:
    """Sentences are cut in pieces where there are few for the threads, and else done one after another."""
    shape = {**rows, "S": 400, "H": 150, "A": 200, "M": 300, "I": 300, "O": 900, "V": 3000, "L": 200, "T": 3}
    args = example(BY_NAME[name], sizes=sizes(shape)).values()
    one = native_op(name, *args)
    torch.set_num_threads(3)
    three = native_op(name, *args)
    torch.set_num_threads(1)
    for first, second in zip(one, three, strict=True):
        assert torch.equal(first, second)


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forked_processes_and_python_threads_give_the_same_bits(dtype: torch.dtype) -> None:
    """The matrix unit needs a permission of the process and keeps a state in every thread."""
    args = list(example(BY_NAME["linear"], dtype).values())
    (expected,) = native_op("linear", *args)

    def same(_: int) -> bool:
        return all(torch.equal(native_op("linear", *args)[0], expected) for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert all(threads.map(same, range(4)))
    child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(0 if same(0) else 1))
    child.start()
    child.join(60)
    assert child.exitcode == 0


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_where_the_exponentials_would_overflow(dtype: torch.dtype) -> None:
    """|query| or |keys| beyond what e^{2q} e^{2k} can hold: those rows and positions alone take tanh(q + k)."""
    for scale_query, scale_keys in itertools.product([1.0, 8.0, 30.0, 1e4, 1e30], repeat=2):
        query, keys = torch.randn(4, 23) * scale_query, torch.randn(4, 6, 23) * scale_keys
        keys[:, 3:] /= scale_keys
        args = [x.to(dtype) for x in (query, keys, torch.randn(4, 6, 5), torch.randn(23))]
        truth = plain("additive_attention", *args, None, None, dtype=torch.float64)
        rounded = plain("additive_attention", *args, None, None)
        for result, true, other in zip(native_op("additive_attention", *args, None, None), truth, rounded, strict=True):
            assert rms(result.double() - true) <= allowed(rms(other.double() - true), true, result.dtype)


@each_isa
def test_a_long_neighbour_does_not_change_a_row_of_the_same_sentence() -> None:
    query, keys, memory, v = torch.randn(6, 40), torch.randn(1, 9, 40), torch.randn(1, 9, 30), torch.randn(40)
    index = torch.zeros(6, dtype=torch.int64)
    before = native_op("additive_attention", query, keys, memory, v, None, index)
    query[2] *= 1000
    after = native_op("additive_attention", query, keys, memory, v, None, index)
    for n in (0, 1, 3, 4, 5):
        assert torch.equal(before[0][n], after[0][n]) and torch.equal(before[1][n], after[1][n])


@each_isa
def test_nan_in_padding_is_never_read_and_a_real_one_is_never_lost() -> None:
    args = example(BY_NAME["decoder_step"], absent=["memory_index"], flags={"reset_after": True})
    clean = native_op("decoder_step", *args.values())
    mask = args["key_padding_mask"]
    for name in ("keys", "memory", "memory_gates"):
        args[name] = args[name].masked_fill(mask[..., None], torch.nan)
    for dirty, expected in zip(native_op("decoder_step", *args.values()), clean, strict=True):
        assert torch.equal(dirty, expected)
    assert clean[2][mask].eq(0).all()
    empty = mask.all(1)
    assert empty.any() and clean[1][empty].eq(0).all()

    real = (~mask).nonzero()[0]
    for name, scale in itertools.product(("keys", "memory", "input_gates", "state"), (1.0, 1e3)):
        broken = dict(args)
        broken[name] = (args[name] * scale).clone()
        broken[name][tuple(real[:1] if broken[name].dim() == 2 else real)] = torch.nan
        new_state, *_ = native_op("decoder_step", *{**broken, "memory_gates": None}.values())
        assert new_state[real[0]].isnan().any(), name
        assert new_state[torch.arange(len(mask)) != real[0]].isfinite().all()


@each_isa
def test_backward_of_attention_stays_within_the_real_positions() -> None:
    args = example(BY_NAME["additive_attention_backward"])
    mask = args["key_padding_mask"]
    clean = native_op("additive_attention_backward", *args.values())
    for name in ("keys", "memory"):
        args[name] = args[name].masked_fill(mask[..., None], torch.nan)
    args["grad_attn_weights"] = args["grad_attn_weights"].masked_fill(mask, torch.nan)
    for dirty, expected in zip(native_op("additive_attention_backward", *args.values()), clean, strict=True):
        assert torch.equal(dirty, expected)
    assert clean[1][mask].eq(0).all() and clean[2][mask].eq(0).all()
    assert clean[0][mask.all(1)].eq(0).all()


@each_isa
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype: torch.dtype) -> None:
    """Column slices and permuted tensors give the bits that their contiguous copies give."""
    for name in OPS:
        args = example(BY_NAME[name], dtype)
        expected = native_op(name, *args.values())
        for view in (slice_of_something_wider, permuted):
            viewed = [view(arg) if isinstance(arg, Tensor) and arg.dim() > 1 else arg for arg in args.values()]
            for result, contiguous in zip(native_op(name, *viewed), expected, strict=True):
                assert torch.equal(result, contiguous), (name, view)


def slice_of_something_wider(tensor: Tensor) -> Tensor:
    wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 7)
    wide[..., 3:-4] = tensor
    return wide[..., 3:-4]


def permuted(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


@each_isa
@pytest.mark.parametrize(
    ("name", "argument", "wrong", "message"),
    [
        ("linear", "weight", torch.zeros(23, 18), r"`weight` must be \(O, I\) = \(23, 17\), .* got \(23, 18\)"),
        ("linear", "bias", torch.zeros(22), r"`bias` must be \(O,\) = \(23,\), .* got \(22,\)"),
        ("linear", "weight", torch.zeros(23, 17, dtype=torch.float16), "`weight` must be torch.float32 or"),
        ("linear", "input", torch.zeros(6, 17, dtype=torch.float64), "`input` must be torch.float32"),
        ("additive_attention", "keys", torch.zeros(4, 0, 11), r"every size at least 1; got \(4, 0, 11\)"),
        ("additive_attention", "memory", torch.zeros(4, 8, 19), r"`memory` must be \(B, S, M\) = \(4, 7, M\)"),
        ("additive_attention", "key_padding_mask", torch.zeros(4, 7), "`key_padding_mask` must be torch.bool"),
        ("additive_attention", "memory_index", torch.tensor([0, 1, 2, 3, 4, 0]), r"`memory_index` must lie in 0\.\.B"),
        ("additive_attention", "memory_index", None, "rows that share a sentence need `memory_index`"),
        ("decoder_step", "input_gates", torch.zeros(6, 38), r"`input_gates` must be \(N, 3H\) = \(6, 39\)"),
        ("decoder_step", "memory_gates", torch.zeros(4, 7, 13), r"`memory_gates` must be \(B, S, 3H\) = \(4, 7, 39\)"),
        ("gru_scan", "lengths", torch.tensor([1, 2, 6, 0]), r"`lengths` must lie in 0\.\.T = 0\.\.5; got 6"),
        ("vocabulary_topk", "k", 38, r"`k` must lie in 1\.\.V = 1\.\.37; got 38"),
        ("vocabulary_loss", "bias", torch.zeros(36), r"`bias` must be \(V,\) = \(37,\), .* got \(36,\)"),
        (
            "vocabulary_loss",
            "target",
            torch.tensor([0, 1, 2, -1, 37, 0]),
            r"`target` must lie in -1\.\.V-1 = -1\.\.36; got 37",
        ),
        (
            "vocabulary_loss",
            "target",
            torch.tensor([0, 1, 2, -2, 36, 0]),
            r"`target` must lie in -1\.\.V-1 = -1\.\.36; got -2",
        ),
        ("vocabulary_loss", "label_smoothing", 1.5, r"`label_smoothing` must lie in 0\.\.1; got 1\.5"),
        ("vocabulary_loss", "label_smoothing", float("nan"), r"`label_smoothing` must lie in 0\.\.1; got nan"),
    ],
)
def test_a_direct_call_is_checked(name: str, argument: str, wrong: Any, message: str) -> None:
    args = example(BY_NAME[name])
    args[argument] = wrong
    with pytest.raises(RuntimeError, match=message):
        native_op(name, *args.values())


def test_a_step_without_either_form_of_the_contexts_gates_is_refused() -> None:
    args = {**example(BY_NAME["decoder_step"]), "context_weight": None, "memory_gates": None}
    with pytest.raises(RuntimeError, match=r"`context_weight` .* must be given where there are no `memory_gates`"):
        native_op("decoder_step", *args.values())


@each_isa
@pytest.mark.parametrize("name", OPS)
def test_float64_is_exact_to_rounding(name: str) -> None:
    for shape, variant in itertools.product(SHAPES, variants(name)):
        args = list(example(BY_NAME[name], torch.float64, sizes=sizes(shape), **variant).values())
        for result, truth in zip(native_op(name, *args), plain(name, *args), strict=True):
            torch.testing.assert_close(result, truth, **EXACT)


def test_an_instruction_set_is_chosen_by_name(isa: str) -> None:
    assert extension.isa() == isa
    assert isa in extension.build_info()["isas"]
    with pytest.raises(ValueError, match=f"must be one of .*{isa}.*; got 'pdp-11'"):
        extension.select_isa("pdp-11")


@pytest.mark.parametrize("name", ["baseline", "pdp-11"])
def test_an_instruction_set_is_chosen_by_the_environment(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from rnnsearch_kernels import _cpu; print(_cpu.isa())"],
        env={**os.environ, "RNNSEARCH_CPU_ISA": name},
        capture_output=True,
        text=True,
    )
    if name == "baseline":
        assert done.stdout.split() == ["baseline"], done.stderr
    else:
        assert "RNNSEARCH_CPU_ISA: the instruction set must be one of baseline" in done.stderr
