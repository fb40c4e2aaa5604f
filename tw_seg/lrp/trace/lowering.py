"""Functions and modules written out in simpler calls, each of which has a relevance rule.

The tracer runs these in place of the originals: attention, normalisation to unit length, gated linear units. They
compute what torch computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import TraceError
from tw_seg.lrp.trace.recurrent import RECURRENT_MODULES
from tw_seg.lrp.trace.rewriting import REWRITTEN_FUNCTIONS, rewrite_module


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` in products and a softmax."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
    scores = torch.matmul(query, key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        if attn_mask is not None:
            raise TraceError("scaled_dot_product_attention takes either attn_mask or is_causal, got both")
        above = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(above, -math.inf)
    left_out = None
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        left_out = torch.logical_not(attn_mask)
        scores = scores.masked_fill(left_out, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    if left_out is not None:
        weights = weights.masked_fill(left_out, 0.0)  # a row that may look nowhere gets zeros, not NaN
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p, training=True)
    return torch.matmul(weights, value)


def _multi_head_module(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention`` likewise."""
    turned = not module.batch_first
    return _multi_head(
        *(_turn(query, key, value) if turned else (query, key, value)),
        module.num_heads,
        module.in_proj_weight
        if module._qkv_same_embed_dim
        else (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight),
        module.in_proj_bias,
        (module.out_proj.weight, module.out_proj.bias),
        refused=module.bias_k is not None or module.add_zero_attn,
        turned=turned,
        dropout=module.dropout,
        training=module.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        average=average_attn_weights,
    )


def _multi_head_function(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward`` likewise."""
    return _multi_head(
        *_turn(query, key, value),
        num_heads,
        (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight,
        in_proj_bias,
        (out_proj_weight, out_proj_bias),
        refused=bias_k is not None or add_zero_attn or static_k is not None or static_v is not None,
        turned=True,
        dropout=dropout_p,
        training=training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        average=average_attn_weights,
    )


def _turn(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(L, N, E) to (N, L, E); what is one value stays one."""
    turned = query.transpose(0, 1)
    if key is query and value is query:
        return turned, turned, turned
    return turned, key.transpose(0, 1), value.transpose(0, 1)


def _multi_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    weight: Any,
    bias: Tensor | None,
    out: tuple[Tensor, Tensor | None],
    *,
    refused: bool,
    turned: bool,
    dropout: float,
    training: bool,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of several heads on (N, L, E).

    Args:
        query: Shape (N, L, E).
        key: Shape (N, S, E).
        value: Shape (N, S, E).
        heads: Number of heads.
        weight: Of the projections, joined in one matrix (3 E, E) or three of them.
        bias: Joined, (3 E,).
        out: Weight and bias of the projection of the result.
        refused: Whether it is asked for extra keys that are no function of the input.
        turned: Whether the result is (L, N, E).
        dropout: Rate at which attention weights are dropped in training.
        training: Whether it is in training mode; recorded, so that a run may follow the module's own flag.
        key_padding_mask: What is left out (True) or added, (N, S).
        need_weights: Whether to return the attention weights.
        attn_mask: What is left out (True) or added, (L, S) or (N * heads, L, S).
        average: Whether to average the returned weights over the heads.
    """
    if refused:
        raise TraceError("multi-head attention with bias_k, bias_v, add_zero_attn or static keys has no relevance rule")
    if query.dim() != 3:
        raise TraceError("multi-head attention needs a batch of sequences of 3 axes, got a single sequence")
    if key is query and value is query and not isinstance(weight, tuple):
        projected: Any = F.linear(query, weight, bias).chunk(3, dim=-1)
    else:
        weights = weight if isinstance(weight, tuple) else weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        projected = tuple(F.linear(x, weights[i], biases[i]) for i, x in enumerate((query, key, value)))
    q, k, v = (projected[i].unflatten(-1, (heads, -1)).transpose(1, 2) for i in range(3))
    scores = torch.matmul(q, k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = _masked(scores, attn_mask.unflatten(0, (-1, heads)) if attn_mask.dim() == 3 else attn_mask)
    if key_padding_mask is not None:
        scores = _masked(scores, key_padding_mask.unsqueeze(1).unsqueeze(1))
    attention = torch.softmax(scores, dim=-1)
    if dropout > 0:
        attention = F.dropout(attention, dropout, training=training)
    result = F.linear(torch.matmul(attention, v).transpose(1, 2).flatten(2), *out)
    result = result.transpose(0, 1) if turned else result
    if not need_weights:
        return result, None
    return result, attention.mean(dim=1) if average else attention


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """``nn.MultiheadAttention`` leaves out what is True, the other way round than the function."""
    return scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _normalize(
    input: Tensor, p: float = 2.0, dim: int | tuple[int, ...] = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    if out is not None:
        raise TraceError("F.normalize(out=...) cannot be traced: use its result")
    norm: Tensor = torch.linalg.vector_norm(input, p, dim, keepdim=True)
    return input / norm.clamp(min=eps)


def _softmin(input: Tensor, dim: int, *_: Any, **__: Any) -> Tensor:
    return torch.softmax(-input, dim=dim)


LOWERED_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_function,
    F.glu: _glu,
    F.normalize: _normalize,
    F.softmin: _softmin,
    **REWRITTEN_FUNCTIONS,
}
"""Function of torch, or name of a method -> the same in simpler operations."""

LOWERED_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: _multi_head_module,
    nn.GLU: lambda module, input: _glu(input, module.dim),
    nn.Softmin: lambda module, input: _softmin(input, module.dim),
    nn.Softmax2d: lambda module, input: torch.softmax(input, dim=-3),
    **RECURRENT_MODULES,
}
"""Module class of torch -> its forward in simpler operations, from the module and its arguments."""


def find_lowered(kind: type[nn.Module], module: nn.Module) -> Callable[..., Any] | None:
    """A module's forward in simpler operations, where it is written out; some are only with some of their options."""
    return LOWERED_MODULES.get(kind) or rewrite_module(kind, module)
