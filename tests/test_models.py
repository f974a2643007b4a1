"""ConvNeXt-Tiny: exact counts, stems, and weights that come from a file."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from models import convnext
from models.convnext import convnext_tiny
from models.description import Attention
from models.errors import WeightsError
from models.weights import load_backbone, read_state_dict


@pytest.mark.parametrize(("classes", "expected"), [(1000, 28_589_128), (100, 27_897_028), (10, 27_827_818)])
@pytest.mark.parametrize("stem", ["default", "cifar"])
def test_parameter_count(stem: convnext.Stem, classes: int, expected: int) -> None:
    assert sum(p.numel() for p in convnext_tiny(classes=classes, stem=stem).parameters()) == expected


@pytest.mark.parametrize(("stem", "sides"), [("default", [8, 4, 2, 1]), ("cifar", [16, 8, 4, 2])])
def test_sides_and_widths_after_each_stage(stem: convnext.Stem, sides: list[int]) -> None:
    features = convnext_tiny(classes=10, stem=stem).features
    shapes = []
    x = torch.zeros(1, 3, 32, 32)
    for i, module in enumerate(features):
        x = module(x)
        if i % 2:
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(width, side, side) for width, side in zip(convnext.WIDTHS, sides, strict=True)]


def test_stems_draw_the_same_initial_weights() -> None:
    torch.manual_seed(3)
    default = convnext_tiny(classes=10).state_dict()
    torch.manual_seed(3)
    cifar = convnext_tiny(classes=10, stem="cifar").state_dict()
    assert all(torch.equal(default[name], cifar[name]) for name in default)


def test_parts_cover_every_parameter() -> None:
    network = convnext_tiny(classes=100)
    counts: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        part = convnext.part_of(name)
        counts[part] = counts.get(part, 0) + parameter.numel()
    # last stage: LayerNorm and 2x2 convolution from 384 to 768, and three blocks of width 768
    block = 768 * 49 + 768 + 2 * 768 + 2 * (768 * 3072) + 3072 + 768 + 768
    assert counts["last_stage"] == 2 * 384 + 4 * 384 * 768 + 768 + 3 * block
    assert counts["head"] == 2 * 768 + 768 * 100 + 100
    assert sum(counts.values()) == 27_897_028


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="classes: expected a positive number, found 0"):
        convnext_tiny(classes=0)
    with pytest.raises(ValueError, match="stem: expected 'default' or 'cifar', found 'small'"):
        convnext_tiny(classes=10, stem="small")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a parameter of ConvNeXt"):
        convnext.part_of("layer1.weight")


# ---- weights from a file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: value.half() for name, value in convnext_tiny(classes=200).state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("stem", ["default", "cifar"])
def test_backbone_is_loaded_and_the_classifier_left(
    pretrained: dict[str, torch.Tensor], tmp_path: Path, stem: convnext.Stem, suffix: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    safetensors.torch.save_file(pretrained, path) if suffix == ".safetensors" else torch.save(pretrained, path)
    network = convnext_tiny(classes=100, stem=stem)
    classifier = network.classifier[2].weight.clone()
    load_backbone(network, read_state_dict(path))
    assert torch.equal(network.classifier[2].weight, classifier)
    state = network.state_dict()
    loaded = [name for name in state if not name.startswith("classifier.2.")]
    assert len(loaded) == len(state) - 2
    assert all(torch.equal(state[name], pretrained[name].float()) for name in loaded)


def test_inserted_attention_keeps_its_fresh_weights(pretrained: dict[str, torch.Tensor]) -> None:
    network = convnext_tiny(classes=100, attention={"P3": Attention("se")})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_backbone(network, pretrained)
    unchanged = {name for name, value in network.state_dict().items() if name not in pretrained or torch.equal(value, before[name])}
    added = {name for name in before if name not in pretrained}
    assert added and all(".attention." in name for name in added)
    assert added | {"classifier.2.weight", "classifier.2.bias"} <= unchanged
    assert torch.equal(network.features[5][0].block[0].weight, pretrained["features.5.0.block.0.weight"].float())


def test_weights_of_another_network_are_refused(pretrained: dict[str, torch.Tensor]) -> None:
    network = convnext_tiny(classes=100)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    name = "features.0.0.weight"
    for state, message in [
        (
            {**pretrained, name: pretrained[name][:, :, :2]},
            r"expected shape \(96, 3, 4, 4\), found \(96, 3, 2, 4\)|found \(96, 3, 4, 2\)",
        ),
        ({**pretrained, name: pretrained[name].int()}, "expected float32, float16 or bfloat16, found torch.int32"),
        ({key: value for key, value in pretrained.items() if key != name}, f"1 missing, first {name}"),
        ({**pretrained, "features.9.weight": pretrained[name]}, "found 1 tensors that this network lacks, first features.9.weight"),
    ]:
        with pytest.raises(WeightsError, match=message):
            load_backbone(network, state)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_float32_cannot_hold_are_refused(pretrained: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    name = "features.1.0.layer_scale"
    with pytest.raises(WeightsError, match=f"weights: {name}: expected float32, float16 or bfloat16, found {dtype}; convert it"):
        load_backbone(convnext_tiny(classes=100), {**pretrained, name: pretrained[name].to(dtype)})


def test_the_classifier_of_the_file_may_be_of_any_kind(pretrained: dict[str, torch.Tensor]) -> None:
    load_backbone(convnext_tiny(classes=100), {**pretrained, "classifier.2.bias": torch.zeros(7, dtype=torch.int64)})


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo exploded > exploded",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Bomb(), "cannot be read as either"),
        ([torch.zeros(1)], "expected a flat dict of tensors"),
        ({}, "expected a flat dict of tensors"),
        ({"a": {"b": torch.zeros(1)}}, "expected a flat dict of tensors"),
        ({"a": torch.tensor([0.0, float("nan")])}, "found NaN or infinity in a"),
        ({"a": torch.tensor([0.0, float("inf")]).half()}, "found NaN or infinity in a"),
        ({"a": torch.tensor([0.0, complex(0, float("nan"))])}, "found NaN or infinity in a"),
        (
            {"a": torch.eye(3).to_sparse()},
            "a: expected an ordinary tensor of numbers, found torch.float32, torch.sparse_coo, on cpu",
        ),
        ({"a": torch.zeros(3, device="meta")}, "a: expected an ordinary tensor of numbers, found torch.float32, .*, on meta"),
        ({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, "a: expected an ordinary tensor of numbers, found torch.float8_e4m3fn"),
        ({"a": torch.zeros(1).expand(10**6)}, r"expected 4,000,000 bytes for its tensors, found a file of 1,\d\d\d"),
        ({7: torch.zeros(1)}, "expected names of parameters, found int"),
        ({"two\nlines": torch.zeros(1)}, r"expected names of parameters, found 'two\\nlines'"),
    ],
)
def test_unsafe_and_unsound_files_are_refused(
    content: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "weights.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        read_state_dict(Path("weights.pth"))
    assert str(caught.value).isprintable(), "one line"
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 truncated"])
def test_damaged_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"weights {name}: expected safetensors or a torch.save") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.pth", "", "x" * 300, "a\0b"])
def test_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="expected a file, found none; check WEIGHTS"):
        read_state_dict(tmp_path / name)
