"""The ops as one would write them by hand, one row and one position at a time: the tests' independent truth.

Nothing here is shared with the package. Every function is differentiable, works in whatever dtype it is given,
and never touches a padded position, so that what is padded cannot matter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(input, weight, bias):
    rows = []
    for row in input:
        out = (weight * row).sum(1)
        rows.append(out if bias is None else out + bias)
    return torch.stack(rows)


def _real(mask, sentence, positions):
    return [j for j in range(positions) if mask is None or not mask[sentence, j]]


def attend_one(query, keys, memory, score_weight, real):
    """One row: context (M,) and weights (S,), over the real positions alone."""
    if not real:
        return memory.new_zeros(memory.shape[1]), query.new_zeros(keys.shape[0])
    scores = torch.stack([(score_weight * torch.tanh(query + keys[j])).sum() for j in real])
    scores = scores - scores.max().detach()
    alphas = scores.exp() / scores.exp().sum()
    context = sum(alpha * memory[j] for alpha, j in zip(alphas, real, strict=True))
    weights = [query.new_zeros(())] * keys.shape[0]
    for alpha, j in zip(alphas, real, strict=True):
        weights[j] = alpha
    return context, torch.stack(weights)


def additive_attention(query, keys, memory, score_weight, key_padding_mask, memory_index):
    contexts, weights = [], []
    for row in range(query.shape[0]):
        b = row if memory_index is None else int(memory_index[row])
        real = _real(key_padding_mask, b, keys.shape[1])
        context, alpha = attend_one(query[row], keys[b], memory[b], score_weight, real)
        contexts.append(context)
        weights.append(alpha)
    return torch.stack(contexts), torch.stack(weights)


def dropped(state, mask):
    """What is left of one row's state (H,) after dropout."""
    return state if mask is None else torch.stack([kept * value for kept, value in zip(mask, state, strict=True)])


def gru_one(g, state, mask, weight, bias, reset_after):
    """One row of the GRU: g (3H,), state and its mask (H,); the new state and r, z, n, u_n."""
    hidden, left = state.shape[0], dropped(state, mask)
    bias = weight.new_zeros(3 * hidden) if bias is None else bias
    (g_r, g_z, g_n), (w_r, w_z, w_n), (b_r, b_z, b_n) = g.chunk(3), weight.chunk(3), bias.chunk(3)
    r = 1 / (1 + torch.exp(-(g_r + w_r @ left + b_r)))
    z = 1 / (1 + torch.exp(-(g_z + w_z @ left + b_z)))
    if reset_after:
        u_n = w_n @ left + b_n
        n = torch.tanh(g_n + r * u_n)
    else:
        u_n = w_n @ (r * left) + b_n
        n = torch.tanh(g_n + u_n)
    return (1 - z) * n + z * state, torch.cat([r, z, n, u_n])


def decoder_step(
    input_gates,
    state,
    state_mask,
    keys,
    memory,
    score_weight,
    query_weight,
    query_bias,
    context_weight,
    hidden_weight,
    hidden_bias,
    key_padding_mask,
    memory_index,
    memory_gates,
    reset_after,
):
    rows = []
    for row in range(state.shape[0]):
        b = row if memory_index is None else int(memory_index[row])
        mask = None if state_mask is None else state_mask[row]
        query = query_weight @ dropped(state[row], mask)
        if query_bias is not None:
            query = query + query_bias
        real = _real(key_padding_mask, b, keys.shape[1])
        context, weights = attend_one(query, keys[b], memory[b], score_weight, real)
        if memory_gates is None:
            gates = context_weight @ context
        else:
            gates = sum((weights[j] * memory_gates[b, j] for j in real), input_gates.new_zeros(input_gates.shape[1]))
        new_state, kept = gru_one(input_gates[row] + gates, state[row], mask, hidden_weight, hidden_bias, reset_after)
        rows.append((new_state, context, weights, kept))
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def decoder_scan(
    input_gates,
    state,
    state_mask,
    keys,
    memory,
    score_weight,
    query_weight,
    query_bias,
    context_weight,
    hidden_weight,
    hidden_bias,
    key_padding_mask,
    input_lengths,
    reset_after,
):
    steps = input_gates.shape[1]
    rows = []
    for b in range(state.shape[0]):
        mask = None if key_padding_mask is None else key_padding_mask[b : b + 1]
        length = steps if input_lengths is None else int(input_lengths[b])
        carried, outs = state[b : b + 1], []
        for t in range(length):
            out = decoder_step(
                input_gates[b : b + 1, t],
                carried,
                None if state_mask is None else state_mask[b : b + 1],
                keys[b : b + 1],
                memory[b : b + 1],
                score_weight,
                query_weight,
                query_bias,
                context_weight,
                hidden_weight,
                hidden_bias,
                mask,
                None,
                None,
                reset_after,
            )
            carried = out[0]
            outs.append(out)
        sizes = (state.shape[1], memory.shape[2], keys.shape[1], 4 * state.shape[1])
        outs += [tuple(state.new_zeros(1, size) for size in sizes)] * (steps - length)
        rows.append(tuple(torch.cat(parts) for parts in zip(*outs, strict=True)))
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def gru_scan(input_gates, state, state_mask, hidden_weight, hidden_bias, lengths, reverse, reset_after):
    steps, hidden = input_gates.shape[1], state.shape[1]
    rows = []
    for b in range(state.shape[0]):
        length = steps if lengths is None else int(lengths[b])
        carried, mask = state[b], None if state_mask is None else state_mask[b]
        outs = [(state.new_zeros(hidden), state.new_zeros(4 * hidden))] * steps
        for t in reversed(range(length)) if reverse else range(length):
            carried, kept = gru_one(input_gates[b, t], carried, mask, hidden_weight, hidden_bias, reset_after)
            outs[t] = (carried, kept)
        rows.append(tuple(torch.stack(parts) for parts in zip(*outs, strict=True)))
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def vocabulary_topk(readout, weight, bias, banned_ids, k):
    values, ids = [], []
    for row, logits in enumerate(linear(readout, weight, bias)):
        log_probs = (logits - torch.logsumexp(logits, 0)).tolist()
        if banned_ids is not None:
            for token in banned_ids[row].tolist():
                if token >= 0:
                    log_probs[token] = float("-inf")
        best = sorted(range(len(log_probs)), key=lambda token: (-log_probs[token], token))[:k]
        ids.append(best)
        values.append([log_probs[token] for token in best])
    return torch.tensor(values, dtype=weight.dtype), torch.tensor(ids)


def vocabulary_loss(readout, weight, bias, target, label_smoothing):
    """The loss, and its gradients by autograd; that of a bias of zeros where there is none."""
    given = (readout, weight, weight.new_zeros(weight.shape[0]) if bias is None else bias)
    leaves = [value.detach().requires_grad_() for value in given]
    with torch.enable_grad():
        grads = torch.autograd.grad(_summed_loss(*leaves, target, label_smoothing), leaves)
    return _summed_loss(*given, target, label_smoothing), *grads


def _summed_loss(readout, weight, bias, target, label_smoothing):
    total, vocabulary = 0 * weight.sum(), weight.shape[0]
    for row, token in enumerate(target.tolist()):
        if token >= 0:
            (logits,) = linear(readout[row : row + 1], weight, bias)
            log_probs = logits - torch.logsumexp(logits, 0)
            total = total - (1 - label_smoothing) * log_probs[token] - label_smoothing / vocabulary * log_probs.sum()
    return total


class HandWrittenDecoder(nn.Module):
    """The decoder loop as everyone writes it: what ``FusedBahdanauDecoder`` replaces."""

    def __init__(
        self, input_size, hidden_size, memory_size, attention_size, *, bias, query_bias, key_bias, score_bias,
        input_order="input_context", attend_after=False, dtype=torch.float64,
    ):  # fmt: skip
        super().__init__()
        self.cell = nn.GRUCell(input_size + memory_size, hidden_size, bias=bias, dtype=dtype)
        self.query = nn.Linear(hidden_size, attention_size, bias=query_bias, dtype=dtype)
        self.key = nn.Linear(memory_size, attention_size, bias=key_bias, dtype=dtype)
        self.score = nn.Linear(attention_size, 1, bias=score_bias, dtype=dtype)
        self.input_order, self.attend_after = input_order, attend_after

    def attend(self, memory: Tensor, state: Tensor, key_padding_mask: Tensor | None):
        scores = self.score(torch.tanh(self.query(state)[:, None] + self.key(memory)))[..., 0]
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask, float("-inf"))
        attn_weights = torch.softmax(scores, -1)
        return torch.bmm(attn_weights[:, None], memory)[:, 0], attn_weights

    def forward(self, input: Tensor, memory: Tensor, state: Tensor, key_padding_mask: Tensor | None = None):
        outputs, contexts, weights = [], [], []
        context = memory.new_zeros(memory.shape[0], memory.shape[2])
        for t in range(input.shape[1]):
            if not self.attend_after:
                context, attn_weights = self.attend(memory, state, key_padding_mask)
            parts = [input[:, t], context]
            if self.input_order == "context_input":
                parts.reverse()
            state = self.cell(torch.cat(parts, -1), state)
            if self.attend_after:
                context, attn_weights = self.attend(memory, state, key_padding_mask)
            outputs.append(state)
            contexts.append(context)
            weights.append(attn_weights)
        return torch.stack(outputs, 1), torch.stack(contexts, 1), torch.stack(weights, 1), state
