"""The GRU, both conventions, over one step and over a sequence:

    u    = hidden_weight s_{t-1} + hidden_bias
    r, z = σ(g + u)                                         g = input_gates, parts r, z, n
    n    = tanh(g_n + r ∘ u_n)                              reset_after=True   (torch, cuDNN)
    n    = tanh(g_n + U_n (r ∘ s_{t-1}) + b_n)              reset_after=False  (Cho et al. 2014, eq. 8)
    s_t  = (1 - z) ∘ n + z ∘ s_{t-1}                        torch's z; the paper's z is 1 - this one

With a ``state_mask`` (dropout of the state, the same for all steps: Gal and Ghahramani 2016) every s_{t-1} in u and in
r ∘ s_{t-1} is state_mask ∘ s_{t-1}, and the one that z carries on is not.

``gates`` keeps r, z, n and u_n (or ``U_n (r ∘ s_{t-1}) + b_n``) for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dtypes import accumulate_dtype
from .linear import linear


def masked(state: Tensor, state_mask: Tensor | None) -> Tensor:
    return state if state_mask is None else state_mask * state


def gru_cell(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """One step on accumulate tensors: the new state (N, H) and ``gates`` (N, 4H)."""
    entering = masked(state, state_mask)
    hidden = state.shape[-1]
    g_r, g_z, g_n = input_gates.split(hidden, -1)
    if reset_after:
        u_r, u_z, u_n = linear(entering, hidden_weight, hidden_bias).split(hidden, -1)
    else:
        bias_rz, bias_n = (None, None) if hidden_bias is None else hidden_bias.split([2 * hidden, hidden])
        weight_rz, weight_n = hidden_weight.split([2 * hidden, hidden])
        u_r, u_z = linear(entering, weight_rz, bias_rz).split(hidden, -1)
    r, z = torch.sigmoid(g_r + u_r), torch.sigmoid(g_z + u_z)
    if reset_after:
        n = torch.tanh(g_n + r * u_n)
    else:
        u_n = linear(r * entering, weight_n, bias_n)
        n = torch.tanh(g_n + u_n)
    return (1 - z) * n + z * state, torch.cat([r, z, n, u_n], -1)


def gru_cell_backward(
    grad_state: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    gates: Tensor,
    hidden_weight: Tensor,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the new state's gradient to those of ``input_gates``, of u (N, 3H each) and of the old state."""
    hidden = state.shape[-1]
    r, z, n, u_n = gates.split(hidden, -1)
    grad_n = grad_state * (1 - z) * (1 - n * n)
    grad_z = grad_state * (state - n) * z * (1 - z)
    if reset_after:
        grad_r = grad_n * u_n * r * (1 - r)
        grad_hidden = torch.cat([grad_r, grad_z, grad_n * r], -1)
        grad_entering = grad_hidden @ hidden_weight
    else:
        grad_reset_state = grad_n @ hidden_weight[2 * hidden :]
        grad_r = grad_reset_state * masked(state, state_mask) * r * (1 - r)
        grad_hidden = torch.cat([grad_r, grad_z, grad_n], -1)
        grad_entering = grad_reset_state * r + grad_hidden[:, : 2 * hidden] @ hidden_weight[: 2 * hidden]
    grad_old = grad_state * z + masked(grad_entering, state_mask)
    return torch.cat([grad_r, grad_z, grad_n], -1), grad_hidden, grad_old


def hidden_weight_grad(grad_hidden: Tensor, entering: Tensor, gates: Tensor, reset_after: bool) -> Tensor:
    """The gradient of hidden_weight (3H, H), all steps in one product; ``entering`` are the old states, masked."""
    grad_hidden, entering, gates = grad_hidden.flatten(0, -2), entering.flatten(0, -2), gates.flatten(0, -2)
    if reset_after:
        return grad_hidden.t() @ entering
    hidden = entering.shape[-1]
    grad_rz, grad_n = grad_hidden.split([2 * hidden, hidden], -1)
    return torch.cat([grad_rz.t() @ entering, grad_n.t() @ (gates[:, :hidden] * entering)])


def of_every_step(state_mask: Tensor | None) -> Tensor | None:
    """The mask beside tensors (B, T, H)."""
    return None if state_mask is None else state_mask[:, None]


def from_last_to_first(of_steps: list[Tensor]) -> Tensor:
    """T tensors (B, …) of a way back as (B, T, …); the list is empty then, so that they are not held twice."""
    of_steps.reverse()
    values = torch.stack(of_steps, 1)
    of_steps.clear()
    return values


def steps_within(lengths: Tensor | None, steps: int) -> Tensor | None:
    """(B, T, 1): whether step t lies within the row's length."""
    if lengths is None:
        return None
    return (torch.arange(steps, device=lengths.device) < lengths[:, None])[..., None]


def zero_outside(values: Tensor, within: Tensor | None) -> Tensor:
    return values if within is None else values.masked_fill(~within, 0)


def reverse_within(values: Tensor, lengths: Tensor | None) -> Tensor:
    """``values`` (B, T, …) with the first ``lengths`` steps of each row in reverse order; its own inverse."""
    if lengths is None:
        return values.flip(1)
    step = torch.arange(values.shape[1], device=values.device)
    mirrored = torch.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    return values.gather(1, mirrored[..., None].expand_as(values))


def gru_scan(
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    hidden_weight: Tensor,
    hidden_bias: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    accumulate = accumulate_dtype(hidden_weight.dtype)
    weight = hidden_weight.to(accumulate)
    within = steps_within(lengths, input_gates.shape[1])
    g = zero_outside(input_gates.to(accumulate), within)
    if reverse:
        g = reverse_within(g, lengths)
    states, gates = [], []
    for t in range(g.shape[1]):
        new_state, new_gates = gru_cell(g[:, t], state, state_mask, weight, hidden_bias, reset_after)
        state = new_state if within is None else torch.where(within[:, t], new_state, state)
        states.append(state)
        gates.append(new_gates)
    results = [zero_outside(torch.stack(parts, 1), within) for parts in (states, gates)]
    if reverse:
        results = [reverse_within(values, lengths) for values in results]
    return results[0], results[1]


def gru_scan_backward(
    grad_states: Tensor,
    input_gates: Tensor,
    state: Tensor,
    state_mask: Tensor | None,
    hidden_weight: Tensor,
    lengths: Tensor | None,
    states: Tensor,
    gates: Tensor,
    reverse: bool,
    reset_after: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = hidden_weight.to(states.dtype)
    within = steps_within(lengths, states.shape[1])
    grad_states = zero_outside(grad_states, within)
    if reverse:
        grad_states, states, gates = (reverse_within(values, lengths) for values in (grad_states, states, gates))
    old_states = torch.cat([state[:, None], states[:, :-1]], 1)
    grads_input: list[Tensor] = []
    grads_hidden: list[Tensor] = []
    grad_state = torch.zeros_like(state)
    for t in reversed(range(states.shape[1])):
        total = grad_state + grad_states[:, t]
        grad_g, grad_u, grad_old = gru_cell_backward(
            total, old_states[:, t], state_mask, gates[:, t], weight, reset_after
        )
        if within is not None:
            grad_g, grad_u = zero_outside(grad_g, within[:, t]), zero_outside(grad_u, within[:, t])
            grad_old = torch.where(within[:, t], grad_old, grad_state)
        grads_input.append(grad_g)
        grads_hidden.append(grad_u)
        grad_state = grad_old
    grad_input, grad_hidden = from_last_to_first(grads_input), from_last_to_first(grads_hidden)
    entering = masked(old_states, of_every_step(state_mask))
    grad_weight = hidden_weight_grad(grad_hidden, entering, gates, reset_after)
    grad_bias = grad_hidden.sum((0, 1))
    if reverse:
        grad_input = reverse_within(grad_input, lengths)
    storage = hidden_weight.dtype
    return grad_input.to(input_gates.dtype), grad_state, grad_weight.to(storage), grad_bias.to(storage)
