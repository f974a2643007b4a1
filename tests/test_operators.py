"""What kind of work an operator does: by its name, and by the shapes of its inputs."""

import pytest

from bench.measure.operators import kind_of, kind_within


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::conv2d", "convolution"),
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::convolution_backward", "convolution"),
        ("aten::addmm", "matrix product"),
        ("aten::baddbmm", "matrix product"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten::gelu_backward", "elementwise"),
        ("aten::add_", "elementwise"),
        ("aten::_log_softmax_backward_data", "elementwise"),
        ("aten::_foreach_add_", "elementwise"),
        ("aten::copy_", "copy"),
        ("aten::_to_copy", "copy"),
        ("aten::index", "copy"),
        ("aten::view", "bookkeeping"),
        ("aten::empty_strided", "bookkeeping"),
        ("AddmmBackward0", "bookkeeping"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "bookkeeping"),
        ("torch::autograd::AccumulateGrad", "bookkeeping"),
        ("triton_poi_fused_add_0", "compiled"),
        ("CompiledFunctionBackward", "compiled"),
        ("aten::fresh_from_the_press", "other"),
        ("mine::mm_and_more", "other"),
    ],
)
def test_kind_of_an_operator(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::conv2d", [[128, 96, 8, 8], [96, 1, 7, 7], [96], []], "depthwise convolution"),
        ("aten::convolution_backward", [[128, 96, 8, 8], [128, 96, 8, 8], [96, 1, 7, 7], []], "depthwise convolution"),
        ("aten::conv2d", [[128, 3, 32, 32], [96, 3, 4, 4], [96]], None),
        ("aten::convolution_backward", [[128, 192, 4, 4], [128, 96, 8, 8], [192, 96, 2, 2]], None),
        ("aten::conv1d", [[128, 1, 384], [1, 1, 5], []], None),  # one channel is no group of channels: ECA
        ("aten::conv2d", [[128, 2, 4, 4], [1, 2, 7, 7]], None),  # CBAM
        ("aten::conv2d", [], None),
        ("aten::mul", [[128, 96, 8, 8], [96, 1, 7, 7]], None),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [], "attention"),
        ("aten::_efficient_attention_backward", [], "attention"),
        ("ScaledDotProductEfficientAttentionBackward0", [], "attention"),
    ],
)
def test_kind_of_an_operator_with_all_that_it_calls(name: str, shapes: list[list[int]], kind: str | None) -> None:
    assert kind_within(name, shapes) == kind
