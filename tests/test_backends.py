"""A backend from outside the package, and what ``auto`` says and does."""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.testing._internal.optests
from torch import library

import rnnsearch_kernels as rk
from rnnsearch_kernels import native, reference
from rnnsearch_kernels.ops import overload_of
from rnnsearch_kernels.schema import BY_NAME
from rnnsearch_kernels.selftest import INFERENCE_ONLY, differentiable_arguments, example, values_and_grads

# By its full name: the package's own attribute of that name is the function.
house = importlib.import_module("rnnsearch_kernels.backends")

CALLS: list[str] = []
NAME = "from_outside_the_package"


def counting(op):
    """A tiny kernel of somebody else's: it notes that it ran, and computes in its own way."""

    def kernel(*args):
        CALLS.append(op)
        return getattr(reference, op)(*args)

    return kernel


def somebody_elses(name: str, rank: int, **options) -> rk.Backend:
    ops = options.pop("ops", ("linear", "gru_scan", "gru_scan_backward", "decoder_step"))
    options = {"devices": ("cpu",), "dtypes": (torch.float32, torch.bfloat16)} | options
    return rk.Backend(name, rank=rank, kernels={op: counting(op) for op in ops}, **options)


@pytest.fixture(autouse=True)
def leaves_no_trace(own_backends):
    CALLS.clear()


def gru(**options):
    args = example(BY_NAME["gru_scan"])
    return rk.gru_scan(**args, **options)


def test_it_is_chosen_by_name_and_by_rank():
    plain = gru(backend="reference")
    rk.register_backend(somebody_elses(f"{NAME}_low", rank=-1))
    rk.register_backend(somebody_elses(f"{NAME}_high", rank=1000))
    assert CALLS == []
    assert torch.equal(gru(backend=f"{NAME}_low"), plain) and CALLS == ["gru_scan"]
    assert torch.equal(gru(), plain) and CALLS == ["gru_scan"] * 2
    names = [backend.name for backend in rk.list_backends()]
    assert (names[0], names[-1]) == (f"{NAME}_high", f"{NAME}_low")
    gru(backend="reference")
    assert CALLS == ["gru_scan"] * 2


def test_a_choice_already_made_is_made_anew_when_a_backend_joins():
    gru()
    rk.register_backend(somebody_elses(f"{NAME}_later", rank=1000))
    gru()
    assert CALLS == ["gru_scan"]


def test_it_has_schema_fake_autograd_and_autocast_without_doing_anything():
    rk.register_backend(somebody_elses(f"{NAME}_complete", rank=-1))
    for op in ("linear", "gru_scan"):
        overload = overload_of(op, f"{NAME}_complete")
        args = example(BY_NAME[op])
        wanted = differentiable_arguments(BY_NAME[op], args)
        mine = values_and_grads(overload, args, wanted)
        theirs = values_and_grads(overload_of(op, "reference"), args, wanted)
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
        for name in wanted:
            args[name].requires_grad_()
        library.opcheck(overload, tuple(args.values()))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results = overload(*args.values())
        assert all(result.dtype == torch.float32 for result in (results if op == "gru_scan" else [results]))
    assert CALLS.count("gru_scan_backward") > 0


def test_a_module_runs_on_it():
    rk.register_backend(somebody_elses(f"{NAME}_module", rank=-1))
    decoder = rk.FusedBahdanauDecoder(6, 5, 7, 4, backend=f"{NAME}_module")
    with torch.no_grad():
        prepared = decoder.prepare_memory(torch.randn(2, 3, 7))
        decoder.step(torch.randn(2, 6), None, prepared)
    assert "decoder_step" in CALLS and set(CALLS) == {"linear", "decoder_step"}


def test_it_says_why_it_cannot_run_a_call():
    name = f"{NAME}_limited"
    rk.register_backend(somebody_elses(name, rank=1000))
    args = example(BY_NAME["decoder_step"], absent=INFERENCE_ONLY)
    trained = {**args, "state": args["state"].clone().requires_grad_()}
    attention = example(BY_NAME["additive_attention"], absent=INFERENCE_ONLY)
    double, meta = example(BY_NAME["gru_scan"], torch.float64), example(BY_NAME["gru_scan"], device="meta")
    for call, reason in [
        (lambda: rk.decoder_step(**trained, backend=name), "it has no decoder_scan_backward, and a gradient is wanted"),
        (lambda: rk.additive_attention(**attention, backend=name), "it has no additive_attention"),
        (lambda: rk.gru_scan(**double, backend=name), "it has no float64"),
        (
            lambda: rk.gru_scan(**meta, backend=name),
            "it runs on cpu, not on meta",
        ),
    ]:
        with pytest.raises(RuntimeError) as caught:
            call()
        assert f"{name}: {reason}" in str(caught.value)
    # auto goes on to the next and keeps the reason
    rk.decoder_step(**trained)
    assert CALLS == []
    chosen, reasons = house.pick("decoder_step", "cpu", torch.float32, True)
    assert chosen is not None and chosen.name != name
    assert reasons[name] == "it has no decoder_scan_backward, and a gradient is wanted"
    rk.decoder_step(**args)
    assert CALLS == ["decoder_step"]


def test_one_that_is_missing_says_so():
    rk.register_backend(somebody_elses(f"{NAME}_missing", rank=1000, missing="its library was not found"))
    gru()
    with pytest.raises(RuntimeError, match="its library was not found"):
        gru(backend=f"{NAME}_missing")


def test_auto_takes_a_gpu_backend_only_on_families_where_it_has_passed():
    rk.register_backend(somebody_elses(f"{NAME}_nowhere", rank=1002, passed=()))
    rk.register_backend(somebody_elses(f"{NAME}_elsewhere", rank=1001, passed=("sm_90",)))
    gru()
    assert CALLS == []
    _, reasons = house.pick("gru_scan", "cpu", torch.float32, True)
    assert reasons[f"{NAME}_nowhere"] == "auto takes it on no GPU yet, for it has passed on none"
    assert reasons[f"{NAME}_elsewhere"] == "auto does not take it on cpu, where it has not passed"
    rk.register_backend(somebody_elses(f"{NAME}_here", rank=1000, passed=("sm_90", "cpu")))  # the family of a CPU
    gru()
    gru(backend=f"{NAME}_nowhere")
    assert CALLS == ["gru_scan"] * 2


def test_what_has_not_passed_on_a_gpu_is_auto_s_choice_on_none():
    assert house.PASSED == {"cuda": (), "triton": ()}  # a family is added by whoever saw bench/gpu_check.py pass there
    for backend in rk.list_backends():
        assert backend.name not in house.PASSED or backend.why_not_auto("cuda") is not None


def test_the_cuda_backend_says_why_it_is_missing(monkeypatch):
    missing = {backend.name: backend for backend in rk.list_backends()}["cuda"].missing
    if torch.version.cuda is None:
        assert missing == f"torch {torch.__version__} is a build without CUDA"
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        _, missing = native._load_cuda()
        assert missing is not None and "the CUDA extension was not built" in missing


def test_a_forward_op_without_its_backward_op_says_so_when_called_by_hand():
    rk.register_backend(somebody_elses(f"{NAME}_by_hand", rank=-1))
    overload = overload_of("decoder_step", f"{NAME}_by_hand")
    args = example(BY_NAME["decoder_step"], absent=INFERENCE_ONLY)
    args["state"].requires_grad_()
    new_state, *_ = overload(*args.values())
    with pytest.raises(RuntimeError, match=f"decoder_step.{NAME}_by_hand has no derivative.*no decoder_scan_backward"):
        new_state.sum().backward()
    args["memory_index"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="`memory_index` is for inference"):
        overload(*args.values())


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"`backend` must be one of \['auto', .*'reference'.*\]; got 'tpu'"):
        gru(backend="tpu")


@pytest.mark.parametrize("name", ["reference", "cpu", "auto", "two words", ""])
def test_a_name_must_be_new_and_an_identifier(name):
    with pytest.raises(ValueError, match="a backend's name must be a new identifier other than 'auto'"):
        rk.register_backend(somebody_elses(name, rank=1))


def test_an_op_that_is_not_in_the_list_is_refused():
    kernels = {"attention_is_all_you_need": lambda: None}
    with pytest.raises(ValueError, match=r"brings \['attention_is_all_you_need'\], which are not among the ops"):
        rk.register_backend(rk.Backend(f"{NAME}_wrong", ("cpu",), (torch.float32,), rank=1, kernels=kernels))


def test_a_wrong_kernel_result_is_seen_by_opcheck():
    """The fake kernel comes from the list, so a kernel that gives other shapes than the list says is found out."""

    def wrong(input, weight, bias):
        return torch.nn.functional.linear(input, weight, bias)[:, :-1].clone()

    name = f"{NAME}_wrong_shape"
    rk.register_backend(rk.Backend(name, ("cpu",), (torch.float32,), rank=-1, kernels={"linear": wrong}))
    with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
        library.opcheck(overload_of("linear", name), tuple(example(BY_NAME["linear"]).values()))
