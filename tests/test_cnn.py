"""torchvision's CNNs behind timm's protocol compute what torchvision computes, under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import UserError
from vitrail.models import create_model, describe, summaries

FAMILIES = ("alexnet", "vgg", "resnet", "resnext", "wide_resnet", "regnet", "efficientnet", "convnext")
NAMES = [row["name"] for row in summaries() if row["family"] in FAMILIES]

# One small variant a family, and the side of the images it is compared on. ResNet keeps torchvision's stem there.
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (63, {}),
    "vgg11_bn": (32, {}),
    "resnet18": (40, {"small_stem": False}),
    "resnet50": (32, {"small_stem": False}),
    "resnext50_32x4d": (32, {"small_stem": False}),
    "wide_resnet50_2": (32, {"small_stem": False}),
    "regnet_x_400mf": (40, {}),
    "regnet_y_400mf": (32, {}),
    "efficientnet_b0": (40, {}),
    "efficientnet_v2_s": (32, {}),
    "convnext_tiny": (40, {}),
}
# Variants that run the protocol's tests: one of each file that has its own Model.
TINY: dict[str, dict[str, Any]] = {
    "alexnet": {"img_size": 64},
    "vgg11": {"img_size": 32},
    "resnet18": {"img_size": 32},
    "regnet_y_400mf": {"img_size": 32},
    "efficientnet_b0": {"img_size": 32},
    "convnext_tiny": {"img_size": 64, "depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)},
}


def images(side: int, channels: int = 3, count: int = 2) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def randomised(model: nn.Module) -> nn.Module:
    """Weights as drawn, but norms' scales, shifts and statistics (and ConvNeXt's tiny scales) away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim == 1 or key.endswith("layer_scale"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model.eval()


def quick(name: str, **changes: Any) -> Any:
    """The model, with constant weights where drawing the 120 million of a VGG would take seconds."""
    changes = {**TINY[name], **changes}
    if name not in ("vgg11", "alexnet"):
        return create_model(name, **changes)
    with torch.device("meta"):
        model = create_model(name, **changes)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1 / parameter[0].numel())
    return model


@pytest.mark.parametrize("name", NAMES)
def test_printed_figures_are_recounted(name: str) -> None:
    """Parameters and multiply-adds on the meta device, within one unit of the last digit of the docstring's table."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    with torch.device("meta"):
        model: Any = create_model(name).eval()
        side = model.config.img_size
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == weights.meta["num_params"]
    assert side == weights.transforms().crop_size[0]
    printed = describe(name)["printed"]
    for text, value in ((printed["params"], parameters / 1e6), (printed["FLOPs"], counter.get_total_flops() / 2e9)):
        number = text.rstrip("MG")
        unit = 10.0 ** -len(number.partition(".")[2])
        assert abs(float(number) - value) <= unit, (text, value)
    assert float(printed["top-1"]) == pytest.approx(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.05)


@pytest.mark.parametrize("name", list(SMALL))
def test_same_keys_and_the_same_output_as_torchvision(name: str) -> None:
    side, changes = SMALL[name]
    reference = randomised(torchvision.models.get_model(name))
    model = create_model(name, img_size=side, **changes).eval()
    assert list(model.state_dict()) == list(reference.state_dict())
    model.load_state_dict(reference.state_dict(), strict=True)
    x = images(side)
    with torch.no_grad():
        want = reference(x)
        assert want.std() > 0
        assert torch.equal(model(x), want)
    reference.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "efficientnet_b0", "convnext_tiny", "alexnet"])
def test_the_same_seed_draws_torchvisions_weights(name: str) -> None:
    torch.manual_seed(3)
    reference = torchvision.models.get_model(name).state_dict()
    torch.manual_seed(3)
    model = create_model(name).state_dict()
    assert all(torch.equal(model[key], value) for key, value in reference.items())


@pytest.mark.parametrize("name", list(TINY))
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_and_classes(name: str, channels: int) -> None:
    model = quick(name, in_chans=channels, num_classes=7).eval()
    x = images(model.config.img_size, channels)
    with torch.no_grad():
        logits = model(x)
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features), logits)
        assert torch.equal(model.get_classifier()(pooled), logits)
    assert logits.shape == (2, 7)
    assert features.ndim == 4
    assert pooled.shape == (2, model.num_features)
    assert model.no_weight_decay() == set()
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    with torch.no_grad():
        assert torch.equal(model(x), pooled)
    headless = quick(name, num_classes=0)
    assert headless(images(headless.config.img_size)).shape == (2, headless.num_features)


@pytest.mark.parametrize(("name", "std"), [("resnet18", 0.0253), ("vgg11", 0.0589), ("convnext_tiny", 0.02)])
def test_a_first_convolution_for_other_channels_is_drawn_alike(name: str, std: float) -> None:
    """Kaiming over the outputs, as torchvision: sqrt(2 / (kernel area * outputs)); ConvNeXt a plain 0.02."""
    torch.manual_seed(0)
    sizes = {"resnet18": 224, "vgg11": 32, "convnext_tiny": 32}
    model = create_model(name, in_chans=5, img_size=sizes[name])
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert first.in_channels == 5
    assert first.weight.std().item() == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("name", list(SMALL))
def test_the_pyramid_has_four_strides(name: str) -> None:
    with torch.device("meta"):
        model: Any = create_model(name, img_size=256).eval()
        maps = model.pyramid(torch.empty(2, 3, 256, 256))
        assert model.forward_features(torch.empty(2, 3, 256, 256)).shape[-2:] == maps[-1].shape[-2:]
    sides = [map.shape[-1] for map in maps]
    expected = [63, 31, 15, 7] if name == "alexnet" else [64, 32, 16, 8]  # AlexNet's pooling drops the border
    assert sides == expected
    assert all(map.shape[:1] == (2,) and map.shape[-2] == map.shape[-1] for map in maps)


def test_small_images_keep_their_resolution_in_a_resnet() -> None:
    model: Any = create_model("resnet18", img_size=32, num_classes=10)
    assert model.conv1.kernel_size == (3, 3)
    assert [map.shape[-1] for map in model.eval().pyramid(images(32))] == [32, 16, 8, 4]
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == 11_173_962
    )  # He et al.'s ResNet-18 for CIFAR-10
    large: Any = create_model("resnet18", img_size=65)
    assert large.conv1.kernel_size == (7, 7)
    forced: Any = create_model("resnet18", img_size=224, small_stem=True)
    assert forced.conv1.stride == (1, 1)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("vgg11", 32), ("convnext_tiny", 32)])
def test_images_that_are_too_small_are_refused_with_the_smallest_size(name: str, smallest: int) -> None:
    with pytest.raises(
        UserError, match=f"img_size {smallest - 1} is too small for .*; the smallest size is {smallest}"
    ):
        create_model(name, img_size=smallest - 1)
    with torch.device("meta"):
        assert create_model(name, img_size=smallest)(torch.empty(1, 3, smallest, smallest)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf", "efficientnet_b0"])
def test_padded_networks_take_any_size(name: str) -> None:
    assert create_model(name, img_size=8, num_classes=3).eval()(images(8)).shape == (2, 3)


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny"])
def test_drop_path_rises_to_its_rate(name: str) -> None:
    model = create_model(name, drop_path_rate=0.5, **TINY[name])
    rates = [part.p for part in model.modules() if isinstance(part, torchvision.ops.StochasticDepth)]
    assert rates == sorted(rates)
    assert rates[0] == 0
    assert 0.4 < rates[-1] <= 0.5


@pytest.mark.parametrize("name", list(TINY))
def test_every_parameter_receives_a_gradient(name: str) -> None:
    model = quick(name, num_classes=5).train()
    model(images(64, count=4)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", list(TINY))
def test_export_gives_the_same_output(name: str) -> None:
    model = quick(name, num_classes=5).eval()
    x = images(64)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TINY))
def test_compile_in_one_graph(name: str) -> None:
    model = create_model(name, num_classes=5, **TINY[name]).eval()
    x = images(64)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)


def test_one_graph_without_a_break() -> None:
    """What `torch.compile(fullgraph=True)` needs of the model, without the time its backend takes."""
    model = create_model("resnet18", img_size=32, num_classes=5).eval()
    with torch.no_grad():
        assert torch.compile(model, fullgraph=True, backend="eager")(images(32)).shape == (2, 5)
