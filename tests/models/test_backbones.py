"""Backbones: sizes, dilation, weights from files, and every refusal as one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from labelwise.errors import BadFile, UserError
from labelwise.models.backbones import create_backbone, takes_multi_grid

WEIGHTS = Path(os.environ.get("LABELWISE_DATA", "")) / "weights" / "mobilenetv2_100.imagenet.safetensors"
SMALL = "resnet10t"


@pytest.fixture(scope="module")
def whole_state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model(SMALL, pretrained=False).state_dict()


@pytest.mark.parametrize("name", ["tiny", "mobilenetv2_100", SMALL])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_features_have_the_promised_sizes(name: str, output_stride: int) -> None:
    backbone = create_backbone(name, output_stride, None).eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 64, 96))
    found = [tuple(feature.shape[1:]) for feature in features]
    strides = list(backbone.strides)
    assert found == [
        (channels, 64 // stride, 96 // stride) for channels, stride in zip(backbone.channels, strides, strict=True)
    ]
    assert strides == sorted(strides)
    assert strides[-1] == output_stride
    assert 4 in strides


def test_the_tiny_network_is_small() -> None:
    count = sum(parameter.numel() for parameter in create_backbone("tiny", 16, None).parameters())
    assert 500_000 < count < 700_000


def test_output_stride_does_not_change_the_tiny_networks_weights() -> None:
    state = create_backbone("tiny", 16, None).state_dict()
    create_backbone("tiny", 8, None).load_state_dict(state)


@pytest.mark.parametrize(("name", "count"), [("resnet50s", 23_631_808), ("resnet101s", 42_623_936)])
def test_parameters_of_the_papers_backbones(name: str, count: int) -> None:
    with torch.device("meta"):
        backbone = create_backbone(name, 16, None)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == count


@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "stage3", "stage4"),
    [
        (16, None, [1, 1, 1, 1, 1, 1], [1, 2, 2]),
        (8, None, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        (16, (2, 4, 8), [1, 1, 1, 1, 1, 1], [2, 4, 8]),
    ],
    ids=["A", "B", "C"],
)
def test_dilations_of_the_papers_variants(
    output_stride: int, multi_grid: tuple[int, ...] | None, stage3: list[int], stage4: list[int]
) -> None:
    with torch.device("meta"):
        body = create_backbone("resnet50s", output_stride, None, multi_grid).body
    assert [block.conv2.dilation[0] for block in body.layer3] == stage3
    assert [block.conv2.dilation[0] for block in body.layer4] == stage4
    assert [block.conv2.padding[0] for block in body.layer4] == stage4
    assert [block.conv2.stride[0] for block in body.layer4] == [1, 1, 1]


def test_fewer_blocks_than_dilations_take_the_first_numbers() -> None:
    with torch.device("meta"):
        body = create_backbone("resnet18d", 16, None, (2, 4, 8)).body
    convolutions = [(block.conv1, block.conv2) for block in body.layer4]
    assert [[conv.dilation[0] for conv in pair] for pair in convolutions] == [[2, 2], [4, 4]]
    assert [[conv.padding[0] for conv in pair] for pair in convolutions] == [[2, 2], [4, 4]]
    assert [[conv.stride[0] for conv in pair] for pair in convolutions] == [[1, 1], [1, 1]]


def test_a_mobilenets_last_blocks_are_dilated_and_its_last_stride_stays() -> None:
    backbone = create_backbone("mobilenetv2_050", 32, None, (2, 4, 8)).eval()
    blocks = [block for stage in backbone.body.blocks.children() for block in stage.children()]
    depthwise = [conv for block in blocks for conv in block.modules() if getattr(conv, "groups", 1) > 1]
    assert [conv.dilation[0] for conv in depthwise[-4:]] == [1, 2, 4, 8]
    assert [conv.padding[0] for conv in depthwise[-4:]] == [1, 2, 4, 8]
    # After the stem's, which is no depthwise one, none of the four strides is lost.
    assert [conv.stride[0] for conv in depthwise].count(2) == 4
    assert backbone.strides[-1] == 32
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 64, 96))[-1].shape[2:] == (2, 3)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("resnet50s", True),
        ("resnet50s.gluon_in1k", True),
        ("wide_resnet50_2", True),
        ("mobilenetv2_100", True),
        ("resnetv2_50", False),
        ("resnet33ts", False),
        ("tiny", False),
        ("micro_w10", False),
        ("nonsense", False),
    ],
)
def test_only_networks_with_known_last_blocks_take_a_multi_grid(name: str, takes: bool) -> None:
    assert takes_multi_grid(name) == takes


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_are_read_from_a_file(whole_state: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(whole_state, path)
    else:
        torch.save(whole_state, path)
    state = create_backbone(SMALL, 16, path).body.state_dict()
    assert state
    assert all(torch.equal(value, whole_state[key]) for key, value in state.items())


def test_the_classifier_of_other_classes_is_ignored(whole_state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for change in ({"fc.weight": torch.zeros(7, 512)}, {"fc.extra": torch.zeros(1)}):
        save_file({**whole_state, **change}, path)
        create_backbone(SMALL, 16, path)
    save_file({key: value for key, value in whole_state.items() if not key.startswith("fc.")}, path)
    create_backbone(SMALL, 16, str(path))


def test_tiny_weights_are_read_from_a_file(tmp_path: Path) -> None:
    trained = create_backbone("tiny", 16, None).body.state_dict()
    save_file(trained, tmp_path / "tiny.safetensors")
    state = create_backbone("tiny", 8, tmp_path / "tiny.safetensors").body.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda state: state.update({"bn1.weight": torch.zeros(3)}), "of another shape: bn1.weight"),
    ],
)
def test_weights_of_another_network_are_refused_with_their_keys(  # type: ignore[no-untyped-def]
    whole_state: dict[str, Tensor], tmp_path: Path, change, words: str
) -> None:
    state = dict(whole_state)
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(BadFile, match=words) as caught:
        create_backbone(SMALL, 16, tmp_path / "other.safetensors")
    assert str(caught.value).startswith(f"{tmp_path / 'other.safetensors'}: ")
    assert "\n" not in str(caught.value)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(BadFile, match="cannot be read as weights"):
        create_backbone(SMALL, 16, tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match="cannot be read as weights"):
        create_backbone(SMALL, 16, tmp_path / name)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="no such file"):
        create_backbone("tiny", 16, tmp_path / "none.safetensors")


def test_a_checkpoint_with_more_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(BadFile, match="more than named tensors"):
        create_backbone("tiny", 16, tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mobilnetv2_100", 16, None), "did you mean 'mobilenetv2_100'"),
        (("tinny", 16, None), "did you mean 'tiny'"),
        (("resnet50s.nothing", 16, None), "did you mean 'resnet50s.gluon_in1k'"),
        (("hf-hub:somebody/resnet18", 16, None), "unknown backbone"),
        (("qqqqqqqqqqqqq", 16, None), "known are .*tiny"),
        (("vgg11", 16, None), "'vgg11' cannot have output stride 16"),
        (("swin_tiny_patch4_window7_224", 16, None), "cannot have output stride 16"),
        (("tiny", 2, None), "is not 4, 8 or 16"),
        (("tiny", 16, "imagenet"), "no ImageNet weights"),
        (("tiny", 16, None, (2, 4, 8)), "'tiny' has no last blocks to dilate"),
        (("resnetv2_50", 16, None, (2, 4, 8)), "no last blocks to dilate; --backbone resnet50s or mobilenetv2_100"),
        (("resnet33ts", 16, None, (2, 4, 8)), "no last blocks to dilate"),
        (("micro_w10", 16, None), "output stride 4 and no other; --output-stride 4"),
        (("micro_w10", 4, "imagenet"), "no ImageNet weights"),
        (("micro_w10", 4, None, (2, 4, 8)), "no last blocks to dilate"),
        (("micro_w0", 4, None), "unknown backbone 'micro_w0'"),
        (("micro_w1000", 4, None), "unknown backbone 'micro_w1000'"),
        (("resnet50s", 4, None), "cannot have output stride 4"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments: tuple, words: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=words) as caught:
        create_backbone(*arguments)
    assert "\n" not in str(caught.value)


def test_pretrained_weights_out_of_reach_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="--backbone-weights FILE or --backbone-weights none"):
        create_backbone(SMALL, 16, "imagenet")


def test_none_may_be_said_in_words() -> None:
    assert create_backbone("tiny", 16, "none").strides == (2, 4, 8, 16)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="LABELWISE_DATA has no pretrained weights")
def test_real_weights_are_loaded() -> None:
    file = load_file(WEIGHTS)
    state = create_backbone("mobilenetv2_100", 16, WEIGHTS).body.state_dict()
    assert all(torch.equal(value, file[key]) for key, value in state.items())
