"""Wrong arguments: the message names the tensor, what was wanted (letters and numbers) and what was given."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import implementations

import rnnsearch_kernels as rk
from rnnsearch_kernels.schema import BY_NAME, MASK, OPS, Arg
from rnnsearch_kernels.selftest import INFERENCE_ONLY, SIZES, example

FUNCTIONS = tuple(op.name for op in OPS if not op.name.endswith("_backward"))
IMPLEMENTATIONS = implementations(*FUNCTIONS)


def call(op, backend, args):
    with torch.no_grad():
        return getattr(rk, op)(**args, backend=backend)


def raised(op, backend, args):
    with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
        call(op, backend, args)
    return caught.value


@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_a_wrong_shape_names_the_tensor_the_shape_wanted_and_the_shape_given(op, backend, device):
    for arg in BY_NAME[op].tensors:
        for dim in range(len(arg.shape)):
            args = example(BY_NAME[op], device=device)
            right = tuple(args[arg.name].shape)
            args[arg.name] = torch.cat([args[arg.name], args[arg.name].narrow(dim, 0, 1)], dim)
            given = tuple(args[arg.name].shape)
            used = sum(
                letter.lstrip("3") == arg.shape[dim].lstrip("3") for a in BY_NAME[op].tensors for letter in a.shape
            )
            if used == 1 and not arg.shape[dim].startswith("3"):
                call(op, backend, args)  # a size that no other tensor has may be any
                continue
            error = raised(op, backend, args)
            assert isinstance(error, ValueError)
            # the first tensor that does not fit the ones before it is named; that may be a later one
            named = re.search(r"`(\w+)` (must be|has N)", str(error))
            assert named, str(error)
            if named[1] == arg.name and named[2] == "must be":
                letters = ", ".join(arg.shape) + ("," if len(arg.shape) == 1 else "")
                assert f"`{arg.name}` must be ({letters}) = (" in str(error), (given, right)
                assert str(error).endswith(f"got {given}")


def test_the_message_of_a_wrong_shape_in_full():
    args = example(BY_NAME["additive_attention"], sizes={**SIZES, "B": 8, "S": 40, "A": 10}, absent=INFERENCE_ONLY)
    args["memory"] = torch.randn(8, 41, 19)
    with pytest.raises(ValueError) as caught:
        call("additive_attention", "auto", args)
    assert str(caught.value) == "`memory` must be (B, S, M) = (8, 40, M), every size at least 1; got (8, 41, 19)"


@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_a_wrong_rank_is_a_wrong_shape(op, backend, device):
    for arg in BY_NAME[op].tensors:
        if (op, arg.name) == ("linear", "input"):
            continue  # any number of leading sizes
        args = example(BY_NAME[op], device=device)
        args[arg.name] = args[arg.name][None]
        error = raised(op, backend, args)
        assert isinstance(error, ValueError)
        assert f"`{arg.name}` must be (" in str(error) and f"got {tuple(args[arg.name].shape)}" in str(error)


@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_a_wrong_dtype_names_the_tensor_and_the_dtypes(op, backend, device):
    for arg in BY_NAME[op].tensors:
        args = example(BY_NAME[op], device=device)
        args[arg.name] = args[arg.name].to(torch.int32)
        error = raised(op, backend, args)
        assert isinstance(error, TypeError), error
        assert re.search(rf"`{arg.name}` must be .*torch\.\w+.*; got torch\.int32", str(error)), str(error)


@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_a_wrong_device_names_the_tensor_and_the_devices(op, backend, device):
    for arg in BY_NAME[op].tensors[1:]:
        args = example(BY_NAME[op], device=device)
        args[arg.name] = args[arg.name].to("meta")
        error = raised(op, backend, args)
        assert re.search(r"`\w+` must be on (meta|cpu|cuda\S*), where `\w+` is; got|it runs on", str(error)), str(error)


@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_what_is_no_tensor_is_named(op, backend, device):
    for arg in BY_NAME[op].tensors:
        args = example(BY_NAME[op], device=device)
        args[arg.name] = [1.0]
        error = raised(op, backend, args)
        assert isinstance(error, TypeError)
        assert f"`{arg.name}` must be " in str(error) and "got list" in str(error)
        if not arg.optional:
            args[arg.name] = None
            assert f"`{arg.name}` must be a tensor; got NoneType" in str(raised(op, backend, args))


@pytest.mark.parametrize(("op", "backend", "device"), implementations("linear"))
def test_an_input_without_features_is_an_error_whatever_its_leading_sizes(op, backend, device):
    for leading in ((), (3,), (3, 4)):
        args = {"input": torch.ones(*leading, 0, device=device), "weight": torch.ones(5, 0, device=device)}
        error = raised(op, backend, args)
        assert isinstance(error, ValueError) and "every size at least 1" in str(error)


@pytest.mark.parametrize("letter", ["S", "B", "T", "H"])
@pytest.mark.parametrize(("op", "backend", "device"), IMPLEMENTATIONS)
def test_a_size_of_nothing_is_an_error(op, backend, device, letter):
    args = example(BY_NAME[op], device=device)
    emptied = False
    for arg in BY_NAME[op].tensors:
        for dim, size in enumerate(arg.shape):
            if size.lstrip("34") == letter:
                args[arg.name] = args[arg.name].narrow(dim, 0, 0)
                emptied = True
    if emptied:
        error = raised(op, backend, args)
        assert isinstance(error, ValueError) and "every size at least 1" in str(error)


@pytest.mark.parametrize(
    ("op", "name", "low", "high", "wanted"),
    [
        ("additive_attention", "memory_lengths", 0, SIZES["S"], "0..S = 0..7"),
        ("decoder_step", "memory_lengths", 0, SIZES["S"], "0..S = 0..7"),
        ("decoder_scan", "memory_lengths", 0, SIZES["S"], "0..S = 0..7"),
        ("decoder_scan", "input_lengths", 0, SIZES["T"], "0..T = 0..5"),
        ("gru_scan", "lengths", 0, SIZES["T"], "0..T = 0..5"),
        ("additive_attention", "memory_index", 0, SIZES["B"] - 1, "0..B-1 = 0..3"),
        ("decoder_step", "memory_index", 0, SIZES["B"] - 1, "0..B-1 = 0..3"),
        ("vocabulary_loss", "target", -1, SIZES["V"] - 1, "-1..V-1 = -1..36"),
    ],
)
def test_values_out_of_range_name_the_range_and_what_was_given(op, name, low, high, wanted):
    for _, backend, device in implementations(op):
        for bad in (low - 1, high + 1):
            args = example(BY_NAME[op], absent={"key_padding_mask"}, device=device)
            if name == "memory_lengths":
                args[name] = torch.full((SIZES["B"],), low, device=device)
            args[name] = args[name].clone().fill_(low)
            call(op, backend, {**args, name: args[name].fill_(high)})
            args[name].view(-1)[-1] = bad
            if device != "cpu":
                continue  # a look at the values would synchronise
            error = raised(op, backend, args)
            given = f"{min(bad, high)}..{max(bad, high)}"
            assert isinstance(error, ValueError)
            assert str(error) == f"`{name}` must lie in {wanted}; got {given}", backend


@pytest.mark.parametrize(
    ("op", "backend", "device"), implementations("additive_attention", "decoder_step", "decoder_scan")
)
def test_both_masks_at_once_are_an_error(op, backend, device):
    args = example(BY_NAME[op], device=device)
    args["memory_lengths"] = torch.ones(SIZES["B"], dtype=torch.int64, device=device)
    error = raised(op, backend, args)
    assert isinstance(error, ValueError)
    assert str(error) == "give `key_padding_mask` or `memory_lengths`, not both"


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        (torch.ones(3, dtype=torch.int64), ValueError, r"`memory_lengths` must be \(B,\) = \(4,\); got \(3,\)"),
        (torch.ones(4), TypeError, "`memory_lengths` must be an int64 tensor; got torch.float32"),
        ([1, 2, 3, 4], TypeError, "`memory_lengths` must be an int64 tensor; got list"),
    ],
)
def test_wrong_memory_lengths_are_named(lengths, error, message):
    args = example(BY_NAME["additive_attention"], absent={*INFERENCE_ONLY, "key_padding_mask"})
    with pytest.raises(error, match=message):
        call("additive_attention", "auto", {**args, "memory_lengths": lengths})
    with pytest.raises(TypeError, match="`memory` must be a tensor; got list"):
        call("additive_attention", "auto", {**args, "memory": [1.0], "memory_lengths": torch.tensor([1])})
    with pytest.raises(ValueError, match=r"`memory` must be \(B, S, M\).*got \(4, 7\)"):
        lengths = torch.ones(4, dtype=torch.int64)
        call("additive_attention", "auto", {**args, "memory": args["memory"][..., 0], "memory_lengths": lengths})


@pytest.mark.parametrize("k", [0, -1, SIZES["V"] + 1])
@pytest.mark.parametrize(("op", "backend", "device"), implementations("vocabulary_topk"))
def test_a_wrong_k_is_an_error(op, backend, device, k):
    args = {**example(BY_NAME[op], device=device), "k": k}
    error = raised(op, backend, args)
    assert isinstance(error, ValueError) and str(error) == f"`k` must lie in 1..V = 1..37; got {k}"


@pytest.mark.parametrize(("op", "backend", "device"), implementations("additive_attention", "decoder_step"))
def test_rows_that_share_sentences_without_an_index_are_told_of_it(op, backend, device):
    args = {**example(BY_NAME[op], device=device), "memory_index": None}
    error = raised(op, backend, args)
    assert isinstance(error, ValueError) and "need `memory_index` (N,)" in str(error)


@pytest.mark.parametrize(("op", "backend", "device"), implementations("decoder_step"))
def test_a_step_needs_the_contexts_weight_or_its_gates(op, backend, device):
    error = raised(op, backend, {**example(BY_NAME[op], device=device), "context_weight": None, "memory_gates": None})
    assert isinstance(error, ValueError) and "`context_weight` (3H, M) must be given" in str(error)


def test_the_module_names_what_does_not_fit():
    decoder, after = rk.FusedBahdanauDecoder(6, 5, 7, 4), rk.FusedBahdanauDecoder(6, 5, 7, 4, attend_after=True)
    input, memory = torch.randn(3, 4, 6), torch.randn(3, 8, 7)
    mask, lengths = torch.zeros(3, 8, dtype=torch.bool), torch.tensor([8, 8, 8])
    prepared = decoder.prepare_memory(memory)
    cases = [
        (
            lambda: decoder(input[0], memory),
            r"`input` must be \(B, T, E\) = \(B, T, 6\) with T at least 1; got \(4, 6\)",
        ),
        (lambda: decoder(input[:, :0], memory), r"`input` must be .* with T at least 1; got \(3, 0, 6\)"),
        (lambda: after(input[:, :0], memory), r"`input` must be .* with T at least 1; got \(3, 0, 6\)"),
        (lambda: decoder(input[..., 1:], memory), r"`input` must be \(B, T, E\) = \(B, T, 6\).*; got \(3, 4, 5\)"),
        (lambda: decoder(input, memory[..., 1:]), r"`memory` must be \(B, S, M\) = \(B, S, 7\).*got \(3, 8, 6\)"),
        (lambda: decoder(input, memory[:, :0]), r"`memory` must be .* with S at least 1; got \(3, 0, 7\)"),
        (lambda: decoder(input, memory[:2]), r"`keys` must be|`memory` must be|`state` must be"),
        (lambda: decoder(input, memory, key_padding_mask=mask, memory_lengths=lengths), "not both"),
        (
            lambda: decoder(input, memory, key_padding_mask=mask[:, 1:]),
            r"`key_padding_mask` must be \(B, S\) = \(3, 8\)",
        ),
        (lambda: decoder(input, memory, key_padding_mask=mask.int()), "`key_padding_mask` must be torch.bool; got"),
        (lambda: decoder(input, memory, memory_lengths=lengths + 1), "`memory_lengths` must lie in 0..S = 0..8"),
        (lambda: decoder(input, memory, input_lengths=lengths), "`input_lengths` must lie in 0..T = 0..4; got 8..8"),
        (lambda: decoder(input, memory, torch.zeros(3, 6)), r"`state` must be \(B, H\) = \(3, 5\).*got \(3, 6\)"),
        (lambda: decoder(None, memory), "give `input` .* or `input_gates` .*, one of the two"),
        (lambda: decoder(input, memory, input_gates=torch.zeros(3, 4, 15)), "one of the two"),
        (
            lambda: decoder(None, memory, input_gates=torch.zeros(3, 4, 14)),
            r"`input_gates` must be \(B, T, 3H\) = \(B, T, 15\) with T at least 1; got \(3, 4, 14\)",
        ),
        (lambda: decoder(None, memory, input_gates=[1.0]), "`input_gates` must be a tensor; got list"),
        (lambda: decoder.prepare_memory(memory[0]), r"`memory` must be \(B, S, M\)"),
        (lambda: decoder.prepare_memory(memory, key_padding_mask=mask[:1, 1:]), "`key_padding_mask` must be"),
        (lambda: decoder.step(input, None, prepared), r"`input_t` must be \(N, E\) = \(N, 6\); got \(3, 4, 6\)"),
        (lambda: decoder.step(None, None, prepared), "give `input_t` .* or `input_gates` .*, one of the two"),
        (lambda: decoder.step(None, None, prepared, input_gates=[1.0]), "`input_gates` must be a tensor; got list"),
        (lambda: decoder.input_gates(input), r"`input` must be \(N, E\) = \(N, 6\); got \(3, 4, 6\)"),
        (lambda: decoder.step(input[:2, 0], None, prepared), "need `memory_index`"),
        (lambda: decoder.step(input[:, 0], None, memory), "`memory` must be what `prepare_memory` gave; got Tensor"),
        (lambda: decoder(input, [1.0]), "`memory` must be a tensor; got list"),
        (lambda: rk.FusedBahdanauDecoder(6, 0, 7), "`hidden_size` must be at least 1; got 0"),
        (lambda: rk.FusedBahdanauDecoder(6, 5, 7, backend="typo"), "`backend` must be one of .*'auto'.*; got 'typo'"),
    ]
    for wrong, message in cases:
        with pytest.raises((ValueError, TypeError), match=message):
            wrong()


@pytest.mark.parametrize(("own", "given"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_a_memory_of_another_dtype_is_refused_where_it_comes_in(own, given):
    """And not in a later step; under autocast every dtype is right."""
    decoder, memory = rk.FusedBahdanauDecoder(6, 5, 7, 4, dtype=own), torch.randn(3, 8, 7, dtype=given)
    input = torch.randn(3, 4, 6, dtype=own)
    for wrong in (lambda: decoder.prepare_memory(memory), lambda: decoder(input, memory)):
        with pytest.raises(TypeError, match=f"`memory` must be {own} as the decoder's parameters; got {given}"):
            wrong()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        step = decoder.step(input[:, 0], None, decoder.prepare_memory(memory))
        assert step.context.dtype == decoder(input, memory).context.dtype == torch.bfloat16


def test_meta_tensors_give_meta_results():
    """What has no values has shapes: the way to plan memory without any."""
    args = example(BY_NAME["decoder_scan"], device="meta")
    states, contexts, attn_weights = rk.decoder_scan(**args, backend="reference")
    assert states.device.type == "meta" and contexts.shape == (4, 5, 19) and attn_weights.shape == (4, 5, 7)


def test_masks_are_bool_everywhere():
    assert all(
        arg.name == "key_padding_mask"
        for op in BY_NAME.values()
        for arg in op.args
        if isinstance(arg, Arg) and arg.role == MASK
    )
