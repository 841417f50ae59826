"""Every row of `rows.py`: the counts, the reference, and what every architecture promises."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os

import pytest
import torch
from references import Called, family, reference
from rows import ROWS, Row
from safetensors.torch import load_file, save_file
from torch import nn

from vitrail import create_model, describe, list_models, record
from vitrail.comparison.cost import flops, parameters
from vitrail.errors import UserError
from vitrail.layers.attention import received
from vitrail.layers.memory_format import channels_last

FAMILIES = {family(row.name): row for row in reversed(ROWS)}  # the first row of each
KINDS = [*FAMILIES.values()] + [
    row
    for row in ROWS
    if row.name
    in (
        "vit_base_patch16_gap_224",
        "vit_base_patch16_siglip_224",
        "deit_tiny_distilled_patch16_224",
        "mvitv2_small_cls",
    )
]
TINY = {row.name: row.tiny for row in ROWS}


def over(rows: list[Row]):
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


every, kinds = over(ROWS), over(KINDS)


def tiny(row: Row | str, **changes: object) -> nn.Module:
    """The architecture at toy size, 5 classes."""
    torch.manual_seed(0)
    row = next(other for other in ROWS if other.name == row) if isinstance(row, str) else row
    return create_model(row.name, num_classes=5, **{**row.tiny, **changes})


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Weights for which no branch is silent and no map shrinks: scales about 1, matrices by their fan-in."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and (len(parameter) > 1 or name.endswith("weight")):
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            scale = name.rpartition(".")[2].startswith(("weight", "gamma", "alpha", "ls"))
            parameter.normal_(float(scale), 0.1, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def assert_equals_reference(row: Row, size: tuple[int, int], batch: int = 1, **changes: object) -> None:
    model = randomise(create_model(row.name, **changes)).eval()
    other = reference(model, row.name, size)
    images = torch.randn(batch, model.config.in_chans, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = other(model.state_dict(), images)
        found = difference(model(images), expected)
    if "VITRAIL_PARITY" in os.environ:  # what docs/architectures.md prints
        with open(os.environ["VITRAIL_PARITY"], "a", encoding="utf-8") as file:
            file.write(f"{row.name} {found:.1e}\n")
    assert found < 1e-4
    assert expected.std() > 1e-3, "the logits are silent, so the comparison says nothing"


def create_config(name: str):
    with torch.device("meta"):
        return create_model(name).config


def variants(family: str) -> list[str]:
    return list(importlib.import_module(f"vitrail.models.{family}").VARIANTS)


# ---------------------------------------------------------------------- counts


@every
def test_counts_are_the_references_and_those_printed(row: Row) -> None:
    with torch.device("meta"):
        model = create_model(row.name)
    counted = {"params": parameters(model)}
    assert counted["params"] == row.params
    printed = describe(row.name)["printed"]
    assert "params" in printed
    if "FLOPs" in printed:
        counted["FLOPs"] = flops(model, model.config.img_size)
    for column, count in counted.items():
        number, unit = float(printed[column][:-1]), {"K": 1e3, "M": 1e6, "G": 1e9}[printed[column][-1]]
        decimals = len(printed[column][:-1].partition(".")[2])
        assert abs(count / unit - number) <= 1.01 * 10**-decimals, (
            f"{column}: printed {printed[column]}, counted {count}"
        )


def test_rows_cover_every_name_but_torchvisions() -> None:
    ours = [name for name in list_models() if "torchvision" not in describe(name)["about"]]
    assert sorted(ours) == sorted(row.name for row in ROWS)


# ---------------------------------------------------------------------- the reference


@over([row for row in ROWS if row.parity == "regular"])
def test_equals_its_reference(row: Row) -> None:
    side = create_config(row.name).img_size
    assert_equals_reference(row, (side, side))


@pytest.mark.slow
@over([row for row in ROWS if row.parity == "slow"])
def test_large_equals_its_reference(row: Row) -> None:
    side = create_config(row.name).img_size
    assert_equals_reference(row, (side, side))


@over([row for row in ROWS if row.parity == "toy"])
def test_toy_equals_its_reference(row: Row) -> None:
    assert_equals_reference(row, (row.side, row.side), batch=2, **row.tiny)


@over([row for row in KINDS if row.parity != "toy"])
@pytest.mark.parametrize("in_chans", [1, 4])
def test_equals_its_reference_with_other_channels(row: Row, in_chans: int) -> None:
    side = create_config(row.name).img_size
    assert_equals_reference(row, (side, side), in_chans=in_chans, **row.shallow)


@kinds
@pytest.mark.parametrize("size", [(192, 192), (256, 256), (320, 224)], ids=lambda size: "x".join(map(str, size)))
def test_takes_other_sizes_as_its_reference_or_says_which(row: Row, size: tuple[int, int]) -> None:
    if size in row.sizes and row.parity != "toy":
        assert_equals_reference(row, size, **row.shallow)
        return
    model = create_model(row.name, **row.shallow).eval()
    images = torch.randn(1, 3, *size)
    if size in row.sizes:
        assert model(images).shape == (1, 1000)
    else:
        with pytest.raises(UserError, match=r"\d+"):
            model(images)


@kinds
def test_training_and_its_gradients_equal_the_references(row: Row) -> None:
    """In float64, where no rounding decides which side of a ReLU or a maximum a value is on."""
    toy = row.parity == "toy"
    model = randomise(create_model(row.name, **(row.tiny if toy else row.shallow))).train()
    side = row.side if toy else model.config.img_size
    other = reference(model, row.name, (side, side))
    model.double()
    if isinstance(other, Called):
        other.module.double()
    theirs = {key: value.clone() for key, value in model.state_dict().items()}  # running statistics are written to
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    watched = [matrices[0], matrices[len(matrices) // 2], matrices[-1]]
    for name in watched:
        theirs[name].requires_grad_()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, model.config.in_chans, side, side, generator=generator, dtype=torch.double)
    labels = torch.tensor([1, 4])
    logits, expected = model(images), other(theirs, images)
    assert difference(logits, expected) < 1e-6
    nn.functional.cross_entropy(logits, labels).backward()
    nn.functional.cross_entropy(expected, labels).backward()
    for name in watched:
        assert difference(model.get_parameter(name).grad, theirs[name].grad) < 1e-5, name


# ---------------------------------------------------------------------- what every architecture promises


@kinds
def test_filters_with_channels_innermost_change_nothing(row: Row) -> None:
    images = torch.randn(2, 3, row.side, row.side, generator=torch.Generator().manual_seed(0)).double()
    found = []
    for laid_out in (lambda model: model, channels_last):  # the second one is training's
        model = laid_out(randomise(tiny(row)).train().double())
        torch.manual_seed(0)
        logits = model(images)
        logits = logits if isinstance(logits, torch.Tensor) else sum(logits)
        logits.square().sum().backward()
        found.append([logits, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    largest = max(float(grad.abs().max()) for grad in found[0][1:])
    assert difference(found[1][0], found[0][0]) < 1e-7
    for other, plain in zip(found[1][1:], found[0][1:], strict=True):
        assert float((other - plain).abs().max()) < 1e-7 * largest


@every
def test_protocol(row: Row) -> None:
    model = tiny(row, in_chans=4).eval()
    images = torch.randn(2, 4, row.side, row.side)
    assert model(images).shape == (2, 5)
    features = model.forward_features(images)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert torch.equal(model.forward_head(features), model(images))
    levels = model.pyramid(images)
    assert [level.shape[-2:] for level in levels] == [(math.ceil(row.side / s),) * 2 for s in row.strides]
    assert all(level.ndim == 4 and len(level) == 2 for level in levels)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(images).shape == (2, 7)
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() >= {name for name in names if name.endswith(("_token", "pos_embed"))}


@every
def test_every_parameter_receives_a_gradient(row: Row) -> None:
    model = randomise(tiny(row)).train()
    model(torch.randn(2, 3, row.side, row.side)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # what shifts all logits of a head alike, softmax takes away: its gradient is rounding, or nothing
    silent = [name for name in silent if not name.endswith("rel_pos.mlp.fc2.bias")]
    assert tuple(silent) == row.silent


@every
def test_maps(row: Row) -> None:
    model = randomise(tiny(row)).eval()
    images = torch.randn(2, 3, row.side, row.side)
    with torch.no_grad():
        expected = model(images)
        with record(model) as maps:
            watched = model(images)
    assert len(maps) == row.maps
    assert difference(watched, expected) < 1e-5
    tokens = getattr(model, "num_prefix_tokens", 0) + math.prod(getattr(model, "grid", (0, 0)))
    for name, weights in maps.items():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert weights.ndim == 4
        if name not in maps.places:  # a plain site: all tokens of the grid are keys, in reading order
            assert weights.shape[0] == 2
            late = getattr(model, "num_prefix_tokens", 0)  # a class token may join after the first blocks
            assert weights.shape[-1] in (tokens, tokens - late)
            assert weights.shape[-2] in (1, weights.shape[-1])
            continue
        places = maps.places[name]
        assert len(weights) == 2 * len(places.queries)
        assert weights.shape[-2] == places.queries.shape[-1]
        assert weights.shape[-1] == places.keys.shape[-1]
        seen = places.queries[places.queries >= 0].unique()
        assert torch.equal(seen, torch.arange(math.prod(places.query_grid))), "every position asks"
        assert places.keys.max() < sum(math.prod(grid) for grid in places.key_grids)
        picture = received(weights, places)
        assert picture.shape == (2, weights.shape[1], *places.key_grids[0])
        assert picture.sum((-2, -1)).max() < 1 + 1e-4


@every
def test_saves_and_loads_the_same_bits(row: Row, tmp_path) -> None:
    model, other = randomise(tiny(row)), tiny(row)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(1, 3, row.side, row.side)
    assert torch.equal(model.eval()(images), other.eval()(images))


@kinds
def test_compiles_in_one_graph(row: Row) -> None:
    torch._dynamo.reset()  # counts recompilations of a function over all models
    model = tiny(row).eval()
    images = torch.randn(2, 3, row.side, row.side)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(compiled(images), expected)
        with record(compiled) as maps:
            torch.testing.assert_close(compiled(images), expected)
        assert len(maps) == row.maps
        torch.testing.assert_close(compiled(images), expected)


@kinds
def test_exports(row: Row) -> None:
    model = tiny(row).eval()
    images = torch.randn(2, 3, row.side, row.side)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))


@kinds
def test_learns_8_images_by_heart(row: Row) -> None:
    model = tiny(row).train()
    torch.manual_seed(1)
    images, labels = torch.randn(8, 3, row.side, row.side), torch.arange(8) % 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(model.eval()(images).argmax(1), labels)


# ---------------------------------------------------------------------- ViT and DeiT


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
    assert list_models("vit_*patch8_???") == ["vit_small_patch8_224", "vit_base_patch8_224"]
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
