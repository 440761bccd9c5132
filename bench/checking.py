"""No number without a right result: what a contender computes is held against float64 before it is timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from cases import Case, Contender

# Rounding errors are random: a right implementation may land somewhat above plain PyTorch, not far above it.
TIMES_EAGER = 2.0
# Where plain PyTorch happens to be nearly exact, so many units in the last place of the largest value are allowed.
UNITS = 8.0
# Eager sets the measure for the others, and has this one itself: a few dozen operations' rounding errors.
EAGER_UNITS = 32.0


class Mismatch(AssertionError):
    """A contender's result is wrong; nothing is timed."""


def errors(case: Case, results: Any, truth: Any) -> list[tuple[float, float]]:
    """For every compared result: its RMS error against float64 and the largest value there."""
    return [
        (float((got.double() - want).square().mean().sqrt()), float(want.abs().max()))
        for got, want in case.pairs(results, truth)
    ]


Errors = dict[Contender, list[tuple[float, float]]]


def judged(case: Case) -> tuple[Errors, dict[Contender, str]]:
    """Everybody's `errors`, and what is wrong with whom: further from float64 than its dtype explains, or no result.

    The RMS error may be twice that of eager in the same dtype, or 8 eps of the largest value where that is more;
    eager's own may be 32 eps of it, and so may that of whoever comes first where eager was left out.
    """
    everybody: Errors = {}
    complaints: dict[Contender, str] = {}
    for dtype in dict.fromkeys(contender.dtype for contender in case.calls):
        truth = case.truth(dtype)
        eager: list[tuple[float, float]] = []
        for contender, call in case.calls.items():
            if contender.dtype != dtype:
                continue
            who = f"{contender.backend} in {str(dtype).removeprefix('torch.')}"
            try:
                found = errors(case, call(), truth)
            except Exception as error:  # a contender's own; the others have their turn
                said = (str(error).splitlines() or [""])[0]
                complaints[contender] = f"{case.workload.name} {case.op}: {who}: {type(error).__name__}: {said}"
                continue
            everybody[contender] = found
            first = not eager  # and that is eager, where it is there
            eager = eager or found
            for place, ((error, largest), (eager_error, _)) in enumerate(zip(found, eager, strict=True)):
                unit = torch.finfo(dtype).eps * largest
                allowed = EAGER_UNITS * unit if first else max(TIMES_EAGER * eager_error, UNITS * unit)
                if not error <= allowed and contender not in complaints:
                    complaints[contender] = (
                        f"{case.workload.name} {case.op}: result {place} of {who} is {error:.3g} (RMS) from float64; "
                        f"{allowed:.3g} would be explained by its dtype"
                    )
    return everybody, complaints


def without_wrong(case: Case) -> tuple[Case, Errors, list[str]]:
    """``case`` without those whose results are wrong, everybody's `errors`, and what is wrong with whom."""
    everybody, complaints = judged(case)
    calls = {contender: call for contender, call in case.calls.items() if contender not in complaints}
    return replace(case, calls=calls), everybody, list(complaints.values())


def check(case: Case) -> Errors:
    """Everybody's `errors`; raise :class:`Mismatch` where somebody is wrong."""
    everybody, complaints = judged(case)
    for complaint in complaints.values():
        raise Mismatch(complaint)
    return everybody


def worst(found: list[tuple[float, float]]) -> float:
    """The largest RMS error of a result or gradient, over its largest value."""
    return max(error / largest for error, largest in found if largest > 0)
