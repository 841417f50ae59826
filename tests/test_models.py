"""Every row of `rows.py`: the counts, the reference, and what every architecture promises."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest
import timm
import torch
from rows import ROWS, Row
from safetensors.torch import load_file, save_file
from torch import nn

from vitrail import create_model, describe, list_models, record
from vitrail.comparison.cost import flops, parameters
from vitrail.errors import UserError
from vitrail.models import printed_figures, vit_pico

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
kinds = pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_base_patch16_gap_224",
        "vit_base_patch16_siglip_224",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_224",
    ],
)
TINY = {row.name: row.tiny for row in ROWS}


def tiny(name: str, **changes: object) -> nn.Module:
    """The architecture at toy size, 5 classes."""
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **{**TINY[name], **changes})


def empty(build, name: str, **changes: object) -> nn.Module:
    """A full-size model whose weights are not initialised, because the test fills them."""
    with torch.device("meta"):
        model = build(name, num_classes=1000, **changes)
    return model.to_empty(device="cpu").eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights for which no branch is silent: norms and scales about 1, the rest small."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.normal_(0, 0.02, generator=generator)
        if re.search(r"norm\d?\.weight$|gamma$", name):
            parameter += 1


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


def assert_equals_timm(row: Row) -> None:
    size = create_config(row.name).img_size
    reference, ours = empty(timm.create_model, row.name), empty(create_model, row.name)
    randomise(reference)
    ours.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = reference(images)
        assert difference(ours(images), expected) < 1e-4
        # and back: our weights in timm's model
        reference.load_state_dict(ours.state_dict(), strict=True)
        assert torch.equal(reference(images), expected)


def create_config(name: str):
    with torch.device("meta"):
        return create_model(name).config


# ---------------------------------------------------------------------- counts


@every
def test_parameters_are_the_references(row: Row) -> None:
    with torch.device("meta"):
        model, reference = create_model(row.name), timm.create_model(row.name, num_classes=1000)
    assert parameters(model) == row.params
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in reference.state_dict().items()}


@pytest.mark.parametrize("name", [row.name for row in ROWS] + list(vit_pico.VARIANTS))
def test_printed_figures_recount(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    printed = describe(name)["printed"]
    assert "params" in printed
    counted = {"params": parameters(model)}
    if "FLOPs" in printed:
        counted["FLOPs"] = flops(model, model.config.img_size)
    for column, count in counted.items():
        number, unit = float(printed[column][:-1]), {"K": 1e3, "M": 1e6, "G": 1e9}[printed[column][-1]]
        decimals = len(printed[column][:-1].partition(".")[2])
        assert abs(count / unit - number) <= 1.01 * 10**-decimals, (
            f"{column}: printed {printed[column]}, counted {count}"
        )


def test_rows_cover_every_transformer() -> None:
    assert [name for family in ("vit", "deit", "deit3") for name in variants(family)] == [row.name for row in ROWS]


def variants(family: str) -> list[str]:
    return list(importlib.import_module(f"vitrail.models.{family}").VARIANTS)


@pytest.mark.parametrize("family", ["vit", "vit_pico", "deit", "deit3"])
def test_every_variant_stands_in_the_docstring(family: str) -> None:
    module = importlib.import_module(f"vitrail.models.{family}")
    assert list(printed_figures(module.__doc__)) == list(module.VARIANTS)


# ---------------------------------------------------------------------- the reference


@pytest.mark.parametrize("row", [row for row in ROWS if row.full], ids=lambda row: row.name)
def test_equals_timm(row: Row) -> None:
    assert_equals_timm(row)


@pytest.mark.parametrize("name", vit_pico.VARIANTS)
def test_small_sizes_equal_timms_class(name: str) -> None:
    config = dataclasses.asdict(vit_pico.VARIANTS[name])
    sizes = {key: config[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")}
    reference, ours = timm.create_model("vit_tiny_patch16_224", **sizes).eval(), create_model(name).eval()
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, config["img_size"], config["img_size"])
    with torch.inference_mode():
        assert difference(ours(images), reference(images)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if not row.full], ids=lambda row: row.name)
def test_large_equals_timm(row: Row) -> None:
    assert_equals_timm(row)


@kinds
@pytest.mark.parametrize(("img_size", "in_chans"), [(192, 1), (256, 4)])
def test_equals_timm_at_another_size_and_other_channels(name: str, img_size: int, in_chans: int) -> None:
    depth = {"depth": 2}
    reference = empty(timm.create_model, name, img_size=img_size, in_chans=in_chans, **depth)
    ours = empty(create_model, name, img_size=img_size, in_chans=in_chans, **depth)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, in_chans, img_size, img_size)
    with torch.inference_mode():
        assert difference(ours(images), reference(images)) < 1e-4


@kinds
@pytest.mark.parametrize("size", [(192, 192), (256, 256), (320, 224)])
def test_takes_other_sizes_as_timm_does(name: str, size: tuple[int, int]) -> None:
    reference, ours = empty(timm.create_model, name, dynamic_img_size=True, depth=1), empty(create_model, name, depth=1)
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        assert difference(ours(images), reference(images)) < 1e-4


@kinds
def test_gradients_equal_timms_in_training(name: str) -> None:
    reference, ours = empty(timm.create_model, name, depth=2).train(), empty(create_model, name, depth=2).train()
    randomise(reference)
    ours.load_state_dict(reference.state_dict())
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([1, 7])
    for model in (reference, ours):
        nn.functional.cross_entropy(model(images), labels).backward()
    for key in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "pos_embed"):
        assert difference(ours.get_parameter(key).grad, reference.get_parameter(key).grad) < 1e-4


# ---------------------------------------------------------------------- what every architecture promises


@every
def test_protocol(row: Row) -> None:
    model = tiny(row.name, in_chans=4).eval()
    images = torch.randn(2, 4, 32, 32)
    assert model(images).shape == (2, 5)
    features = model.forward_features(images)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert torch.equal(model.forward_head(features), model(images))
    assert [level.shape for level in model.pyramid(images)] == [(2, 24, 4, 4)]
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(images).shape == (2, 7)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    assert model.no_weight_decay() >= {name for name, _ in model.named_parameters() if name.endswith("_token")}


@every
def test_every_parameter_receives_a_gradient(row: Row) -> None:
    model = tiny(row.name, drop_path_rate=0.0).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


@every
def test_maps(row: Row) -> None:
    model = tiny(row.name, depth=row.maps - (create_config(row.name).global_pool == "map")).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        with record(model) as maps:
            watched = model(images)
    assert len(maps) == row.maps
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert maps["blocks.0.attn"].shape == (2, 2, 16 + model.num_prefix_tokens, 16 + model.num_prefix_tokens)
    assert difference(watched, expected) < 1e-5


@every
def test_saves_and_loads_the_same_bits(row: Row, tmp_path) -> None:
    model, other = tiny(row.name), tiny(row.name)
    randomise(model)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model.eval()(images), other.eval()(images))


@kinds
def test_compiles_in_one_graph(name: str) -> None:
    torch._dynamo.reset()  # counts recompilations of a function over all models
    model = tiny(name).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(compiled(images), expected)
        with record(compiled) as maps:
            torch.testing.assert_close(compiled(images), expected)
        assert "blocks.1.attn" in maps
        torch.testing.assert_close(compiled(images), expected)


@kinds
def test_exports(name: str) -> None:
    model = tiny(name).eval()
    images = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))


@kinds
def test_learns_8_images_by_heart(name: str) -> None:
    model = tiny(name).train()
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.eval()(images).argmax(1), labels)


def test_pre_logits_is_the_hidden_layer_of_the_head() -> None:
    model = tiny("vit_tiny_patch16_224", representation_size=10).eval()
    images = torch.randn(2, 3, 32, 32)
    hidden = model.forward_head(model.forward_features(images), pre_logits=True)
    assert hidden.shape == (2, 10)
    assert hidden.abs().max() < 1  # tanh
    with torch.device("meta"):
        assert parameters(create_model("vit_base_patch16_224", representation_size=768)) == 87_158_248


def test_distilled_model_returns_the_pair_only_while_a_teacher_is_at_work() -> None:
    model = tiny("deit_tiny_distilled_patch16_224").train()
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 5)
    model.set_distilled_training(True)
    logits, distilled = model(images)
    torch.testing.assert_close((logits + distilled) / 2, model.eval()(images))


def test_dropout_and_drop_path_act_in_training_only() -> None:
    model = tiny("vit_tiny_patch16_224", drop_rate=0.3, drop_path_rate=0.3)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    assert [block.drop_path1.rate for block in model.blocks] == [0.0, 0.3]


# ---------------------------------------------------------------------- names and mistakes


def test_names_match_patterns() -> None:
    assert list_models("deit3*") == variants("deit3")
    assert list_models("*patch8_*") == ["vit_small_patch8_224", "vit_base_patch8_224", "vit_pico_patch8_64"]
    assert len(list_models()) == len(set(list_models()))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: create_model("vit_tinny_patch16_224"), "did you mean 'vit_tiny_patch16_224'"),
        (lambda: create_model("zzz"), "`vitrail models`"),
        (lambda: create_model("vit_tiny_patch16_224", embed_dims=3), "did you mean 'embed_dim'"),
        (lambda: create_model("vit_tiny_patch16_224", img_size=225), "nearest sizes are 224 and 240"),
        (lambda: create_model("vit_tiny_patch16_224", embed_dim=100), "not divisible by num_heads 3"),
        (lambda: create_model("./nowhere.py:vit"), "no model file"),
    ],
)
def test_mistakes_are_said_in_one_sentence(call, says: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_file_of_ones_own(tmp_path) -> None:
    from vitrail.models import FOLDER

    file = tmp_path / "mine.py"
    text = (FOLDER / "vit_pico.py").read_text().replace('"vit_pico_patch2_8"', '"mine"')
    file.write_text(text)
    model = create_model(f"{file}:mine", num_classes=3)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(UserError, match="did you mean 'mine'"):
        create_model(f"{file}:minne")


def test_describe() -> None:
    about = describe("vit_base_patch16_224")
    assert about["paper"].startswith("An Image is Worth 16x16 Words")
    assert about["printed"] == {"params": "86.6M", "FLOPs": "17.6G", "top-1": "84.53"}
    assert about["weights"]["repo"].startswith("timm/vit_base_patch16_224")
    assert about["config"]["embed_dim"] == 768
    assert dataclasses.is_dataclass(create_config("vit_base_patch16_224"))
