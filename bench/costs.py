"""What an op must at least read and compute; the floors that the table measures distances to.

Weights, keys and memory are counted once a call, however many rows there are; activations are not counted. Where
the context's part of gates and readout can be prepared or come from its weights, the cheaper one counts.
"""

from __future__ import annotations

from timing import Cost
from workloads import Workload

# A tanh as an exponential and a division, both by polynomial or Newton steps, in floating-point operations.
# Rows that attend to one position share the exponential of its keys.
TANH = 20
EXPONENTIAL = 12


def attention_cost(w: Workload, sentences: int, rows: int, width: int | None = None) -> Cost:
    """Score, softmax, and the sum of the memory or of something of another width."""
    positions, width = rows * w.source_length, width or w.memory_size
    return Cost(
        values=sentences * w.source_length * (w.attention_size + width),
        products=2.0 * positions * width,
        elementwise=w.attention_size
        * (sentences * w.source_length * EXPONENTIAL + positions * (TANH - EXPONENTIAL + 3.0)),
    )


def _product(rows: int, inputs: int, outputs: int) -> Cost:
    return Cost(inputs * outputs, 2.0 * rows * inputs * outputs)


def _context_cost(w: Workload, sentences: int, rows: int, gates: int, readout: int) -> Cost:
    """Attention, and the context's part of gates and of a readout so wide: by products in the step, or prepared."""
    by_products = attention_cost(w, sentences, rows) + _product(rows, w.memory_size, gates + readout)
    prepared = attention_cost(w, sentences, rows, gates + (readout or w.memory_size))
    return min(by_products, prepared, key=lambda cost: cost.values)


def step_cost(w: Workload, sentences: int, rows: int) -> Cost:
    """Input gates, query, attention, GRU."""
    gates = 3 * w.hidden_size
    state = _product(rows, w.hidden_size, w.attention_size + gates)
    return _context_cost(w, sentences, rows, gates, 0) + state + _product(rows, w.input_size, gates)


def beam_step_cost(w: Workload, sentences: int, rows: int) -> Cost:
    """The step, the readout and the vocabulary; one exponential for each token. What a token gives is looked up."""
    gates, readout = 3 * w.hidden_size, 2 * w.readout_size
    state = _product(rows, w.hidden_size, w.attention_size + gates + readout)
    vocabulary = _product(rows, w.readout_size, w.vocabulary_size)
    looked_up = Cost(rows * (gates + readout), 0.0, EXPONENTIAL * rows * w.vocabulary_size)
    return _context_cost(w, sentences, rows, gates, readout) + state + vocabulary + looked_up


def scan_cost(w: Workload) -> Cost:
    """The keys, and T steps; what the steps share (weights, keys, memory) read once."""
    step = step_cost(w, w.batch, w.batch)
    steps = w.target_length
    return Cost(step.values, step.products * steps, step.elementwise * steps) + keys_cost(w, w.batch)


def keys_cost(w: Workload, sentences: int) -> Cost:
    weights = w.memory_size * w.attention_size
    return Cost(weights, 2.0 * sentences * w.source_length * weights)
