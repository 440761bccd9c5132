"""Every op of the Triton backend against the reference, by the self-test: values, gradients, variants, dtypes."""

from __future__ import annotations

import pytest

import rnnsearch_kernels as rk
from rnnsearch_kernels.selftest import check

(TRITON,) = (backend for backend in rk.list_backends() if backend.name == "triton")


@pytest.mark.parametrize("outcome", list(check(TRITON, "cpu")), ids=lambda outcome: f"{outcome.op}-{outcome.dtype}")
def test_an_op_holds_against_the_reference(outcome):
    assert outcome.complaint is None, outcome.complaint
