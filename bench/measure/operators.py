"""What kind of work an operator does, by its name and the shapes of its inputs."""

from collections.abc import Sequence

CONVOLUTION = "convolution"
DEPTHWISE = "depthwise convolution"
MATRIX = "matrix product"
ATTENTION = "attention"  # the two products of scaled dot-product attention, with the softmax between them
NORM = "norm"
ELEMENTWISE = "elementwise"  # activations, arithmetic, reductions, loss
OPTIMIZER = "optimizer"
COPY = "copy"  # copies, casts, gathers, fills
BOOKKEEPING = "bookkeeping"  # views, allocation, autograd's own work: no number is computed
COMPILED = "compiled"  # what torch.compile has fused
OTHER = "other"  # an operator that this table does not know
IDLE = "idle"  # no operator ran

KINDS = (
    CONVOLUTION, DEPTHWISE, MATRIX, ATTENTION, NORM, ELEMENTWISE, OPTIMIZER, COPY, BOOKKEEPING, COMPILED, OTHER, IDLE,
)  # fmt: skip

_OPERATORS = {
    CONVOLUTION: """
        conv1d conv2d convolution convolution_backward convolution_overrideable cudnn_convolution mkldnn_convolution
        nnpack_spatial_convolution slow_conv2d_backward slow_conv2d_forward thnn_conv2d conv_depthwise2d
        """,
    MATRIX: "addbmm addmm addmm_activation addmv baddbmm bmm dot einsum linear matmul mm mkldnn_linear mv",
    NORM: """
        layer_norm native_layer_norm native_layer_norm_backward batch_norm native_batch_norm native_batch_norm_backward
        cudnn_batch_norm cudnn_batch_norm_backward group_norm native_group_norm native_group_norm_backward
        """,
    ELEMENTWISE: """
        abs adaptive_avg_pool2d add addcdiv addcmul all amax amin any arange argmax avg_pool2d bernoulli bitwise_and bitwise_not
        bitwise_or ceil clamp clamp_max clamp_min cross_entropy_loss div dropout eq erf exp floor foreach_add foreach_mul
        foreach_sub ge gelu gelu_backward gt isfinite le lerp log log_softmax log_softmax_backward_data logical_and logical_not
        lt max maximum mean min minimum mul native_dropout native_dropout_backward ne neg nll_loss nll_loss_backward
        nll_loss_forward nll_loss_nd pow prod reciprocal relu remainder round rsqrt rsub sgn sigmoid sigmoid_backward sign silu
        silu_backward softmax softmax_backward_data sqrt std sub sum sum_to_size tanh tanh_backward threshold_backward uniform
        value_selecting_reduction_backward var var_mean where
        """,
    COPY: """
        cat clone constant_pad_nd contiguous copy fill flip full full_like gather index index_add index_copy index_fill index_put
        index_put_impl index_select index_select_backward masked_fill masked_select new_full new_ones new_zeros ones ones_like pad
        repeat roll scatter scatter_add select_backward slice_backward stack to to_copy tril triu zero zeros zeros_like
        """,
    BOOKKEEPING: """
        alias as_strided broadcast_to broadcast_tensors can_cast chunk conj detach empty empty_like empty_strided expand expand_as
        flatten is_nonzero item lift_fresh local_scalar_dense mT movedim narrow new_empty new_empty_strided nnpack_available
        numpy_T permute promote_types requires_grad reshape reshape_alias resize resize_as resolve_conj resolve_neg result_type
        select set slice split split_with_sizes squeeze swapaxes t T transpose type_as unbind unflatten unsafe_split unsafe_view
        unsqueeze view view_as
        """,
}  # in the spelling of :func:`_stem`
_KIND_OF = {operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()}
OURS = {  # our own kernels, by name
    "_convolve": DEPTHWISE, "_weight_gradient": DEPTHWISE, "_sum_shares": DEPTHWISE, "_mixed_norm": DEPTHWISE, "_norm": NORM,
    "_norm_backward": NORM, "_scaled_sum": ELEMENTWISE, "_scaled_sum_backward": ELEMENTWISE, "_column_sums": ELEMENTWISE,
    "_product": MATRIX, "_attention": ATTENTION, "_attention_backward": ATTENTION, "_batch": COPY,
}  # fmt: skip
_COMPILED = ("triton_", "cpp_fused", "Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph", "inductor::")


def kind_of(name: str) -> str:
    """The kind of work that an operator does itself, without the operators that it calls.

    Args:
        name: as ``torch.profiler`` writes it: ``aten::add_``, ``AddBackward0``.
    """
    if name.startswith(_COMPILED):
        return COMPILED
    if name.startswith(("autograd::", "torch::autograd::")) or "::" not in name:  # nodes of the graph, and Python's own
        return BOOKKEEPING
    return _KIND_OF.get(_stem(name), OTHER)


def kind_within(name: str, shapes: Sequence[Sequence[int]] = ()) -> str | None:
    """The kind of an operator with everything that it calls, or None where the operators that it calls tell better.

    Args:
        name: as ``torch.profiler`` writes it.
        shapes: of its inputs; empty for what is no tensor.
    """
    plain = _stem(name).lower().replace("_", "")
    if "scaleddotproduct" in plain or "flashattention" in plain or "efficientattention" in plain:
        return ATTENTION
    if _KIND_OF.get(_stem(name)) == CONVOLUTION and _is_depthwise(shapes[1:3] if name.endswith("_backward") else shapes[:2]):
        return DEPTHWISE
    return None


def _is_depthwise(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether images ``[N, C, ...]`` meet a weight ``[C, 1, ...]``: as many groups as channels."""
    if len(shapes) < 2 or not len(shapes[0]) == len(shapes[1]) > 2:
        return False
    images, weight = shapes
    return 1 < images[1] == weight[0] and weight[1] == 1


def _stem(name: str) -> str:
    """``aten::_to_copy`` and ``aten::copy_`` without name space, and without the underscores of internal and in-place variants."""
    return name.rpartition("::")[2].strip("_")
