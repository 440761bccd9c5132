"""What an op must at least read and compute; the floors that the table measures distances to.

Weights, keys and memory are counted once a call, however many rows there are; activations are not counted. Where
the gates' context part can come from prepared ``memory_gates`` or from the context weight, the cheaper one counts.
"""

from __future__ import annotations

from timing import Cost
from workloads import Workload

# A tanh as an exponential and a division, both by polynomial or Newton steps, in floating-point operations.
TANH = 20


def attention_cost(w: Workload, sentences: int, rows: int) -> Cost:
    """Score, softmax, context."""
    positions = rows * w.source_length
    return Cost(
        values=sentences * w.source_length * (w.attention_size + w.memory_size),
        products=2.0 * positions * w.memory_size,
        elementwise=positions * w.attention_size * (TANH + 3.0),
    )


def step_cost(w: Workload, sentences: int, rows: int) -> Cost:
    """Input gates, query, attention, GRU."""
    gates = 3 * w.hidden_size
    weights = gates * w.input_size + w.hidden_size * (w.attention_size + gates)
    context = min(
        Cost(gates * w.memory_size, 2.0 * rows * gates * w.memory_size),
        Cost(sentences * w.source_length * gates, 2.0 * rows * gates * w.source_length),
        key=lambda cost: cost.values,
    )
    return attention_cost(w, sentences, rows) + context + Cost(weights, 2.0 * rows * weights)


def beam_step_cost(w: Workload, sentences: int, rows: int) -> Cost:
    """The step, the readout and the vocabulary; one exponential for each token."""
    weights = 2 * w.readout_size * (w.hidden_size + w.input_size + w.memory_size) + w.vocabulary_size * w.readout_size
    exponentials = TANH / 2 * rows * w.vocabulary_size
    return step_cost(w, sentences, rows) + Cost(weights, 2.0 * rows * weights, exponentials)


def scan_cost(w: Workload) -> Cost:
    """The keys, and T steps; what the steps share (weights, keys, memory) read once."""
    step = step_cost(w, w.batch, w.batch)
    steps = w.target_length
    return Cost(step.values, step.products * steps, step.elementwise * steps) + keys_cost(w, w.batch)


def keys_cost(w: Workload, sentences: int) -> Cost:
    weights = w.memory_size * w.attention_size
    return Cost(weights, 2.0 * sentences * w.source_length * weights)
