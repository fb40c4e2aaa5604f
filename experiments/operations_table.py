"""docs/operations.md: what of torch a classifier may call, and what not and why.

Run it with ``python -m experiments.operations_table``. A test goes through torch's own list of what takes and returns
tensors and holds that everything has a rule, is written in operations that have one, or stands in ``REASONS``.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import get_overridable_functions

from tw_seg.lrp.ops import FUNCTIONS, IN_PLACE, MODULES, OPS
from tw_seg.lrp.ops.constants import CONSTANT_FUNCTIONS, STATISTICS
from tw_seg.lrp.trace.lowering import LOWERED_FUNCTIONS, LOWERED_MODULES
from tw_seg.lrp.trace.rewriting import REWRITTEN_MODULES

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"

REASONS: dict[str, str] = {
    "Random: every run draws other values, and relevance would follow the draw. Dropout has a rule": """
        alpha_dropout bernoulli binomial cauchy exponential feature_alpha_dropout feature_dropout fractional_max_pool2d
        fractional_max_pool2d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices geometric
        gumbel_softmax log_normal multinomial native_dropout normal poisson random rrelu uniform
        AlphaDropout FeatureAlphaDropout FractionalMaxPool2d FractionalMaxPool3d RReLU""",
    "Losses: they compare with labels, which a classifier of images does not have": """
        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy ctc_loss
        gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss linear_cross_entropy margin_ranking_loss
        mse_loss multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss poisson_nll_loss
        smooth_l1_loss soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss
        AdaptiveLogSoftmaxWithLoss BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss
        GaussianNLLLoss HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss MarginRankingLoss
        MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss NLLLoss2d PoissonNLLLoss SmoothL1Loss
        SoftMarginLoss TripletMarginLoss TripletMarginWithDistanceLoss""",
    "Steps: not differentiable, nothing can be handed on to single inputs. As a mask or index of detached values they "
    "need no rule": """
        bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor byte ceil char fix floor
        floor_divide fmod frac frexp gcd heaviside int lcm ldexp long nextafter remainder round sgn short sign trunc
        hash_tensor histc histogram histogramdd bincount unique unique_consecutive unravel_index combinations
        cartesian_prod masked_select mode nonzero_static index""",
    "Elementwise functions that classifiers of images rarely use: a custom rule for one is a line": """
        acos acosh angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh atan atan2 atanh copysign cos
        cosh deg2rad digamma erf erfc erfinv exp2 expm1 float_power hypot i0 igamma igammac lgamma log log10 log1p log2
        logaddexp logaddexp2 logit mvlgamma polygamma rad2deg reciprocal sin sinc sinh tan xlogy fmax fmin""",
    "Sums and products along an axis, and of pairs of samples, that have no rule yet": """
        addbmm addr affine_grid affine_grid_generator aminmax block_diag cdist cov corrcoef cross cummax cummin cumprod
        cumsum cumulative_trapezoid diff dist dot embedding_renorm ger gradient grid_sample grid_sampler grid_sampler_2d
        grid_sampler_3d kron logcumsumexp nanmean nanmedian nanquantile nansum outer pairwise_distance pdist prod
        quantile renorm trapezoid trapz vdot PairwiseDistance CrossMapLRN2d""",
    "Parts written or read at computed places: use gather, index_select, narrow, where or an index": """
        alias_copy as_strided as_strided_copy as_strided_scatter detach_copy diag diag_embed diagflat diagonal
        diagonal_copy diagonal_scatter expand_copy fill fill_diagonal index_add index_copy index_fill index_put
        index_reduce map map2 masked_scatter max_unpool1d max_unpool2d max_unpool3d msort narrow_copy permute_copy put
        scatter scatter_add scatter_reduce select_copy select_scatter slice_copy slice_inverse slice_scatter split_copy
        split_with_sizes_copy squeeze_copy t_copy take transpose_copy tril triu trace unbind_copy unfold_copy
        unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze_copy values_copy view_copy apply copy zero resize
        resize_as set broadcast_tensors meshgrid sum_to_size column_stack
        MaxUnpool1d MaxUnpool2d MaxUnpool3d""",
    "What the recurrent layers call: use the layers": """
        gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell RNNBase RNNCellBase""",
    "Only in torch before 2.14: names of axes, and decompositions that moved to `torch.linalg`": """
        align_as align_to cholesky has_names qr refine_names rename""",
    "Linear algebra": """
        cholesky_inverse cholesky_solve det geqrf inverse lobpcg logdet lu lu_solve lu_unpack matrix_exp matrix_power
        nuclear_norm frobenius_norm norm_except_dim orgqr ormqr pca_lowrank pinverse slogdet svd svd_lowrank
        triangular_solve""",
    "Complex numbers and signals": """
        adjoint cdouble cfloat chalf complex conj conj_physical imag isreal istft polar real resolve_conj resolve_neg
        stft view_as_complex view_as_complex_copy view_as_real view_as_real_copy""",
    "Look-ups by integers, which images are not": "embedding embedding_bag one_hot Embedding EmbeddingBag",
    "Sparse and quantised tensors": """
        ccol_indices ccol_indices_copy choose_qparams_optimized coalesce col_indices col_indices_copy crow_indices
        crow_indices_copy dense_dim dequantize fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
        fbgemm_linear_fp16_weight fbgemm_linear_fp16_weight_fp32_activation fbgemm_linear_int8_weight
        fbgemm_linear_int8_weight_fp32_activation fbgemm_linear_quantize_weight fbgemm_pack_gemm_matrix_fp16
        fbgemm_pack_quantized_matrix fused_moving_avg_obs_fake_quant hsmm hspmm indices indices_copy int_repr
        is_coalesced is_distributed q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale
        q_zero_point qscheme quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic quantized_batch_norm
        quantized_gru_cell quantized_lstm_cell quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d
        quantized_rnn_relu_cell quantized_rnn_tanh_cell resize_as_sparse row_indices row_indices_copy saddmm smm
        sparse_dim sparse_mask sparse_resize sparse_resize_and_clear sspaddmm to_dense to_mkldnn to_sparse values""",
    "Internal: what torch's own modules and backends call, not what a forward writes": """
        adaptive_max_pool1d autocast batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt
        batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats
        constant_pad_nd conv_tbc convolution dropout miopen_batch_norm miopen_convolution miopen_convolution_add_relu
        miopen_convolution_relu miopen_convolution_transpose miopen_depthwise_convolution miopen_rnn module_load
        native_batch_norm native_channel_shuffle native_group_norm native_layer_norm native_norm
        sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum""",
    "No values: devices, storage, hooks, and what leaves torch": """
        backward const_data_ptr cpu cuda data_ptr dim_order ipu is_conj is_contiguous
        is_inference is_neg is_pinned is_same_size is_set_to is_shared is_signed item mtia numpy pin_memory
        record_stream register_hook register_post_accumulate_grad_hook requires_grad retain_grad share_memory storage
        storage_offset storage_type tolist untyped_storage xpu""",
    "Read of the kind of a tensor or of its shape only: run while the classifier is traced": """
        atleast_1d atleast_2d atleast_3d""",
    "Made of other modules: traced into": """
        Container Module ModuleDict ModuleList ParameterDict ParameterList Sequential Transformer TransformerDecoder
        TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer""",
    "Of no size yet, or of several devices: give the classifier that is inside, after one run": """
        DataParallel LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d LazyConv1d LazyConv2d LazyConv3d
        LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d LazyInstanceNorm1d LazyInstanceNorm2d
        LazyInstanceNorm3d LazyLinear""",
}
"""Why -> names of what has no rule: functions and methods (also with a last ``_``) and module classes."""


def list_public() -> dict[str, bool]:
    """Names of torch's functions, methods and modules -> whether the package knows every form of it."""
    found: dict[str, bool] = {}
    for holder, functions in get_overridable_functions().items():
        if holder not in (torch, torch.functional, F, Tensor):
            continue
        # As it is now: torch keeps its list, which may have been made while functions were replaced by a tracer.
        present = {getattr(value, "__name__", ""): value for value in vars(holder).values()}
        present.update(vars(holder))
        for function in functions:
            name = getattr(function, "__name__", "_")
            if not name.startswith("_"):
                known = _is_known(name if holder is Tensor else present.get(name, function), name)
                found[name] = known and found.get(name, True)
    for name, value in vars(nn).items():
        if isinstance(value, type) and issubclass(value, nn.Module):
            found[name] = value in MODULES or value in LOWERED_MODULES or value in REWRITTEN_MODULES
    return found


def _is_known(key: object, name: str) -> bool:
    # A constant is changed in place as it is.
    names = {name, name.rstrip("_")}
    tables = (FUNCTIONS, IN_PLACE, LOWERED_FUNCTIONS)
    return any(key in table for table in tables) or bool(names & (CONSTANT_FUNCTIONS | STATISTICS))


def list_reasons() -> dict[str, str]:
    """Name -> why it has no rule."""
    return {name: reason for reason, names in REASONS.items() for name in names.split()}


def write_page() -> str:
    """The page, the same for every release of torch."""
    rewritten = sorted({k if isinstance(k, str) else k.__name__ for k in LOWERED_FUNCTIONS if not _is_in_place(k)})
    lines = [
        "# Operations",
        "",
        "Made by `python -m experiments.operations_table`; a test compares it with torch's own list of what takes and",
        "returns tensors. Everything has a rule, is written in operations that have one, is a constant, or is listed",
        "with the reason. A function, the method of the same name, its synonyms (`divide` is `div`) and its form in",
        "place (`div_`) are one operation.",
        "",
        "## With a rule",
        "",
        ", ".join(f"`{kind}`" for kind in OPS if kind != "custom") + ".",
        "",
        "## Written in others",
        "",
        ", ".join(f"`{word}`" for word in rewritten) + ".",
        "",
        "What is a gate or a scale there is held constant: the scale of `local_response_norm`, the lengths of",
        "`cosine_similarity`, the root of `lp_pool`. `norm`, `std`, `var`, `sqrt` and `rsqrt` are constants as",
        "divisors and scales; as features they get relevance in proportion to what each element adds.",
        "",
        "`LSTM`, `GRU`, `RNN` and their cells are written out, a step for each place of the sequence: relevance goes",
        "to what the gates let through, and none to the gates. Images of another size are traced again.",
        "",
        "## Constants",
        "",
        "They carry no relevance: sizes, comparisons, places. "
        + ", ".join(f"`{word}`" for word in sorted(CONSTANT_FUNCTIONS - {"hold_constant"}))
        + ".",
        "",
        "## Without a rule",
        "",
        "An error where relevance would pass them, before anything is computed, unless there is a",
        "[custom rule](custom_rule.md). Where none passes (under `detach`, or in a mask) they need no rule.",
        "",
        "| why | what |",
        "|---|---|",
    ]
    for reason, names in REASONS.items():
        lines.append(f"| {reason} | {', '.join(f'`{name}`' for name in sorted(set(names.split())))} |")
    return "\n".join(lines) + "\n"


def _is_in_place(key: object) -> bool:
    return (key if isinstance(key, str) else getattr(key, "__name__", "")).endswith("_")


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
