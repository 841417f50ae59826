"""Maps: rollout against its closed forms and its matrix product, Grad-CAM on models whose answer is known, pictures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import vitrail
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from vitrail.errors import UserError
from vitrail.interpretability import draw
from vitrail.interpretability.attention import attention_from, class_attention, entropy, to_grid
from vitrail.interpretability.explain import explain, visible
from vitrail.interpretability.gradcam import gradcam, weigh
from vitrail.interpretability.rollout import rollout, rollout_map
from vitrail.layers.attention import record
from vitrail.models import create_model
from vitrail.recipe import Data, Recipe
from vitrail.run import Run

TINY: dict[str, Any] = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32, "num_classes": 5}


def attention(blocks: int, batch: int = 2, heads: int = 3, tokens: int = 5, seed: int = 0) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, tokens)
    return [torch.randn(shape, generator=draws, dtype=torch.float64).softmax(-1) for _ in range(blocks)]


def matrix_rollout(maps: list[Tensor]) -> Tensor:
    """The paper's definition: the product of (A + I) / 2, later blocks from the left."""
    product = torch.eye(maps[0].shape[-1], dtype=torch.float64).expand(len(maps[0]), -1, -1)
    for weights in maps:
        product = (weights.mean(1) + torch.eye(maps[0].shape[-1], dtype=torch.float64)) / 2 @ product
    return product


# ------------------------------------------------------------------ rollout


def test_rollout_of_identity_stays_on_the_class_token():
    maps = [torch.eye(6, dtype=torch.float64).expand(2, 3, 6, 6)] * 4
    assert torch.equal(rollout(maps), torch.eye(6, dtype=torch.float64)[:1].expand(2, -1))


@pytest.mark.parametrize("blocks", [1, 3, 12])
def test_rollout_of_uniform_attention_has_its_closed_form(blocks):
    tokens = 10
    row = rollout([torch.full((1, 2, tokens, tokens), 1 / tokens, dtype=torch.float64)] * blocks)[0]
    rest = (1 - 2.0**-blocks) / tokens
    torch.testing.assert_close(row[0], torch.tensor(2.0**-blocks + rest, dtype=torch.float64))
    torch.testing.assert_close(row[1:], torch.full((tokens - 1,), rest, dtype=torch.float64))


def test_rollout_is_the_matrix_product_and_blocks_do_not_commute():
    maps = attention(4)
    torch.testing.assert_close(rollout(maps), matrix_rollout(maps)[:, 0], rtol=1e-12, atol=0)
    assert not torch.allclose(rollout(maps), rollout(maps[::-1]))


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.integers(1, 4),
    tokens=st.integers(2, 9),
    seed=st.integers(0, 999),
    fusion=st.sampled_from(["mean", "max", "min"]),
    ratio=st.sampled_from([0.0, 0.3, 0.9, 0.99]),
)
def test_rollout_is_a_distribution(blocks, tokens, seed, fusion, ratio):
    row = rollout(attention(blocks, tokens=tokens, seed=seed), fusion=fusion, discard_ratio=ratio)
    assert (row >= 0).all()
    torch.testing.assert_close(row.sum(-1), torch.ones(2, dtype=torch.float64))


def test_start_of_all_tokens_is_the_mean_over_queries():
    maps = attention(3, tokens=4)
    start = torch.full((2, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(rollout(maps, start=start), matrix_rollout(maps).mean(1))


def test_discard_drops_the_smallest_weights_of_each_image_and_keeps_the_class_tokens_own():
    weights = torch.tensor([[0.01, 0.59, 0.40], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]], dtype=torch.float64)
    both = torch.stack([weights, weights.flip(-1)])[:, None]
    row = rollout([both], discard_ratio=0.4)  # 3 of 9: of the first image 0.01 (kept: it is [0, 0]) and twice 0.2
    torch.testing.assert_close(row[0], (torch.tensor([1, 0, 0]) + weights[0]) / 2)
    one_by_one = torch.cat([rollout([both[:1]], discard_ratio=0.4), rollout([both[1:]], discard_ratio=0.4)])
    assert torch.equal(row, one_by_one)
    first = torch.tensor([[0.5, 0.1, 0.4]] * 3, dtype=torch.float64)[None, None]
    torch.testing.assert_close(rollout([first], discard_ratio=0.34)[0], torch.tensor([1.5, 0, 0.4]).double() / 1.9)


def test_rollout_refuses_a_ratio_that_leaves_nothing():
    with pytest.raises(UserError, match="discard_ratio is 1"):
        rollout(attention(1), discard_ratio=1.0)


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_transformers_give_maps_that_share_out_one(pool):
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", **TINY, global_pool=pool).eval()
    images = torch.randn(2, 3, 32, 32)
    rolled, heads = rollout_map(model, images), class_attention(model, images)
    assert rolled.shape == (2, 4, 4)
    assert heads.shape == (2, 2, 4, 4)
    whole = torch.ones(2)
    if pool == "token":  # the class token keeps a part
        assert (rolled.sum((1, 2)) < whole).all()
        assert (heads.sum((2, 3)) < 1).all()
    else:
        torch.testing.assert_close(rolled.sum((1, 2)), whole)
        torch.testing.assert_close(heads.sum((2, 3)), torch.ones(2, 2))


def test_attention_pooling_is_read_from_its_probe():
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", **TINY, global_pool="map").eval()
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(class_attention(model, images), class_attention(model, images, layer=2))


def test_a_distilled_model_has_two_tokens_before_its_patches():
    model = create_model("deit_tiny_distilled_patch16_224", **TINY).eval()
    images = torch.randn(1, 3, 32, 32)
    assert model.num_prefix_tokens == 2
    assert rollout_map(model, images).shape == gradcam(model, images).shape == (1, 4, 4)


def test_a_block_that_does_not_exist_is_refused():
    model = create_model("vit_tiny_patch16_224", **TINY).eval()
    with pytest.raises(UserError, match="blocks 0 to 2"):
        class_attention(model, torch.randn(1, 3, 32, 32), layer=3)


def maps_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), record(model) as maps:
        model(images)
    return maps


def test_attention_from_a_patch_is_its_row():
    torch.manual_seed(0)
    model = create_model("deit_tiny_distilled_patch16_224", **TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    weights = maps_of(model, images)["blocks.1.attn"]  # two tokens before the patches
    row = weights[:, :, 2 + 4 * 3 + 1, 2:].unflatten(-1, (4, 4))
    torch.testing.assert_close(attention_from(model, images, layer=1, query=(3, 1)), row)
    torch.testing.assert_close(attention_from(model, images, layer=-2), weights[:, :, 0, 2:].unflatten(-1, (4, 4)))


def test_attention_from_a_window_stays_inside():
    torch.manual_seed(0)
    small = {"patch_size": 2, "img_size": 32, "embed_dim": 8, "num_heads": (2,) * 4, "window_size": 4}
    model = create_model("swin_tiny_patch4_window7_224", **small).eval()
    images = torch.randn(1, 3, 32, 32)  # 16 x 16 positions; the second block shifts by 2
    plain = attention_from(model, images, layer=0, query=(5, 10))[0]
    shifted = attention_from(model, images, layer=1, query=(5, 10))[0]
    border = attention_from(model, images, layer=1, query=(0, 1))[0]
    for found, rows, columns in ((plain, (4, 8), (8, 12)), (shifted, (2, 6), (10, 14)), (border, (0, 2), (0, 2))):
        inside = found[:, slice(*rows), slice(*columns)]
        torch.testing.assert_close(inside.sum((1, 2)), torch.ones(2))
        assert (inside > 0).all()
    weights = maps_of(model, images)["layers.0.blocks.0.attn"][4 + 2]  # the window at rows 4 to 7, columns 8 to 11
    torch.testing.assert_close(plain[:, 4:8, 8:12], weights[:, 4 * 1 + 2].unflatten(-1, (4, 4)))


def test_the_class_token_asks_where_there_is_one_and_all_positions_where_it_has_not_joined():
    torch.manual_seed(0)
    small = {"embed_dim": 24, "num_heads": 2, "depth": 1, "patch_size": 8, "img_size": 32}
    model = create_model("cait_xxs24_224", **small).eval()
    images = torch.randn(1, 3, 32, 32)
    maps = list(maps_of(model, images).values())
    torch.testing.assert_close(attention_from(model, images, layer=0), maps[0].mean(2).unflatten(-1, (4, 4)))
    torch.testing.assert_close(attention_from(model, images), maps[-1][:, :, 0, 1:].unflatten(-1, (4, 4)))
    model = create_model("mvit_base_16_224", embed_dim=12, depths=(1, 1, 1, 1), img_size=32).eval()
    maps = list(maps_of(model, images).values())  # pooled keys, after the class token's
    torch.testing.assert_close(attention_from(model, images, layer=1), maps[1][:, :, 0, 1:].unflatten(-1, (4, 4)))


def test_patches_of_an_oblong_image_keep_its_proportions():
    class Two(nn.Module):
        num_prefix_tokens = 1

    row = torch.arange(1.0 + 2 * 6)[None]
    assert to_grid(row, Two(), torch.zeros(1, 3, 16, 48)).tolist() == [[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]]


def test_entropy_runs_from_one_patch_to_all():
    one = torch.zeros(4, 4)
    one[1, 2] = 0.3
    torch.testing.assert_close(entropy(torch.stack([one, torch.full((4, 4), 0.01)])), torch.tensor([0.0, 1.0]))


# ------------------------------------------------------------------ Grad-CAM


class OneSpot(nn.Module):
    """Its last map is the image itself, and class 1's logit is the value of one pixel."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images * 1.0

    def forward_head(self, features: Tensor) -> Tensor:
        spot = features[:, 0, 2, 5]
        return torch.stack([-spot, spot, features.sum((1, 2, 3)) * 0], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_gradcam_peaks_where_the_logit_comes_from():
    images = torch.zeros(2, 3, 8, 8)
    images[:, 0, 2, 5] = 1
    heat = gradcam(OneSpot(), images, target=1)
    assert heat.flatten(1).argmax(1).tolist() == [2 * 8 + 5] * 2
    torch.testing.assert_close(heat, gradcam(OneSpot(), images))  # class 1 is the predicted one
    assert not gradcam(OneSpot(), images, target=torch.tensor([0, 2])).any()  # zeros, not NaN


def test_gradcam_is_gradient_times_feature():
    features, gradients = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    by_hand = torch.zeros(2, 3, 3)
    for channel in range(4):
        by_hand += gradients[:, channel].mean((1, 2))[:, None, None] * features[:, channel]
    torch.testing.assert_close(weigh(features, gradients), by_hand.clamp_min(0))


def test_gradcam_of_a_transformer_is_that_of_a_plain_backward_pass():
    torch.manual_seed(0)
    model: Any = create_model("vit_tiny_patch16_224", **TINY).eval()
    images = torch.randn(2, 3, 32, 32)
    kept: list[Tensor] = []
    hook = model.blocks[-1].norm1.register_forward_hook(lambda _m, _i, out: kept.append(out))
    logits = model(images)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, 3].sum(), kept[0])
    features, gradients = (t[:, 1:].mT.unflatten(-1, (4, 4)) for t in (kept[0].detach(), gradient))
    torch.testing.assert_close(gradcam(model, images, target=3), weigh(features, gradients))
    assert not model.blocks[-1].norm1._forward_hooks


# ------------------------------------------------------------------ explain


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    with tarfile.open(shared_data / "bccd" / "images.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))[:2]
        for number, name in enumerate(names):
            file = tar.extractfile(name)
            assert file is not None
            (folder / f"blood {number}.jpg").write_bytes(file.read())
    return sorted(folder.iterdir())


def run_of(name: str, **changes: Any) -> Run:
    torch.manual_seed(0)
    model: Any = create_model(name, **changes).eval()
    data = Data(source="", img_size=model.config.img_size, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    classes = ["plain", "$x_1$ and \\frac", "猫", "<b>bold</b>", "tab\there"]
    return Run(model, Recipe(model=name, data=data), classes, "random weights", None)


@pytest.fixture(scope="module")
def vit() -> Run:
    return run_of("vit_tiny_patch16_224", **TINY)


@pytest.fixture(scope="module")
def resnet() -> Run:
    return run_of("resnet18", img_size=64, num_classes=5)


METHODS = ["rollout", "attention", "relevance", "attention-gradient", "gradcam"]


@pytest.fixture(scope="module")
def swin() -> Run:
    small = {"patch_size": 2, "img_size": 32, "embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 2)}
    return run_of("swin_tiny_patch4_window7_224", **small, window_size=4, num_classes=5)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_explain_a_transformer(vit, photos, tmp_path, method):
    (one,) = explain(vit, photos[0], method=method, out=tmp_path)
    assert one.method == (method or "rollout")
    assert one.map.dtype == np.float32
    assert one.map.shape == one.image.shape[:2] == (32, 32)
    assert 0 <= one.map.min() <= one.map.max() <= 1
    assert one.predicted in vit.classes
    assert one.picture is not None
    with Image.open(one.picture) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert [file.name for file in tmp_path.iterdir()] == [f"blood 0_{one.method}.png"]


def test_explain_a_cnn(resnet, photos, tmp_path):
    found = explain(resnet, photos, out=tmp_path)
    assert [one.method for one in found] == ["gradcam", "gradcam"]
    assert {file.name for file in tmp_path.iterdir()} == {
        "blood 0_gradcam.png",
        "blood 1_gradcam.png",
        "contact_sheet.png",
    }
    with pytest.raises(UserError, match=r"attention is not available for resnet because .*; use gradcam"):
        explain(resnet, photos, method="attention")


def test_explain_a_model_of_windows(swin, photos, tmp_path):
    found = explain(swin, photos, method="attention-gradient", out=tmp_path)
    assert [file.name for file in sorted(tmp_path.iterdir())] == [
        "blood 0_attention-gradient.png",
        "blood 1_attention-gradient.png",
        "contact_sheet.png",
    ]
    assert all(one.map.max() == 1 for one in found)
    with pytest.raises(UserError, match=r"relevance is not available for swin because .*; use attention-gradient"):
        explain(swin, photos, method="relevance")


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_features_are_colours_that_mean_the_same_in_all_images(kind, photos, tmp_path, request):
    run = request.getfixturevalue(kind)
    both = explain(run, photos, method="features", out=tmp_path)
    twin = tmp_path / "twin.jpg"
    twin.write_bytes(photos[0].read_bytes())
    twice = explain(run, [photos[0], twin, photos[1]], method="features")
    for one in both:
        assert one.map.shape == one.image.shape
        assert one.map.dtype == np.float32
        assert 0 <= one.map.min() <= one.map.max() <= 1
        assert len(one.explained) == 3
        assert 0.99 >= one.explained[0] >= one.explained[1] >= one.explained[2] > 0
        assert one.picture is not None
        with Image.open(one.picture) as picture:
            assert min(picture.size) > 300
    assert np.array_equal(twice[0].map, twice[1].map)
    alone = [explain(run, photo, method="features")[0] for photo in photos]
    assert not np.allclose(alone[0].map, both[0].map)
    assert not np.allclose(both[0].map, both[1].map)


def test_attention_of_a_layer_from_a_patch(vit, photos, tmp_path):
    (one,) = explain(vit, photos[0], layer=-2, query=(3, 1), out=tmp_path)
    assert one.method == "attention of layer -2 from 3,1"
    assert one.box == (0.75, 0.25, 1.0, 0.5)
    assert one.heads is not None
    assert one.heads.shape == (2, 4, 4)
    other = explain(vit, photos[0], method="attention", layer=1, query=(3, 1), out=tmp_path)[0]
    assert np.array_equal(one.heads, other.heads)
    assert not np.array_equal(one.heads, explain(vit, photos[0], method="attention", layer=1)[0].heads)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "blood 0_attention_layer-2_from3-1.png",
        "blood 0_attention_layer1_from3-1.png",
    ]
    with pytest.raises(UserError, match=r"no query at 4,0: in blocks\.2\.attn the rows are 0 to 3"):
        explain(vit, photos[0], query=(4, 0))
    with pytest.raises(UserError, match="no block 3; the model has blocks 0 to 2"):
        explain(vit, photos[0], layer=3)


def test_attention_of_all_layers(vit, swin, photos, tmp_path):
    (one,) = explain(vit, photos[0], layer="all", out=tmp_path)
    assert one.method == "attention of all layers, the last one large"
    assert len(one.layers) == 3
    assert one.heads is not None
    assert np.array_equal(one.layers[-1], one.heads.mean(0))
    (windows,) = explain(swin, photos[0], method="attention", layer="all", out=tmp_path)
    assert [layer.shape for layer in windows.layers] == [(16, 16)] * 2 + [(8, 8)] * 2 + [(4, 4), (2, 2)]


def test_options_of_another_method_are_refused(vit, photos):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"method": "rollout", "layer": 1}, "rollout is of no single layer"),
        ({"method": "features", "query": (0, 0)}, "features is not asked by one patch"),
        ({"method": "features", "layer": "all"}, "layer is 'all'; features takes a number, negative from the top"),
        ({"method": "attention", "layer": "3"}, "layer is '3'; attention takes a number or 'all'"),
        ({"method": "attention", "query": (1, 2, 3)}, "give the row and the column"),
        ({"layer": 1, "target": 2}, "use gradcam, relevance or attention-gradient with a target"),
        ({"method": "features", "target": 2}, "features gives every class the same map"),
        ({"method": "relevence"}, "did you mean 'relevance'"),
    ]
    for options, complaint in cases:
        with pytest.raises(UserError, match=complaint) as caught:
            explain(vit, photos[0], **options)
        assert "\n" not in str(caught.value)


def test_options_on_the_command_line(photos, tmp_path):
    name, out = "vit_pico_patch2_8", ["--out", tmp_path, "--json"]
    for options, method in (
        (["--layer", "-2", "--query", "3,1"], "attention of layer -2 from 3,1"),
        (["--method", "attention", "--layer", "all"], "attention of all layers, the last one large"),
        (["--method", "features", "--layer", "0"], "features of layer 0"),
        (["--method", "relevance", "--target", "2"], "relevance for great white shark"),
    ):
        said = vitrail("explain", name, photos[0], *options, *out)
        assert (said.code, said.json()["explanations"][0]["method"]) == (0, method)
    for options, complaint in (
        (["--query", "3;1"], "--query is '3;1'; give the row and the column"),
        (["--query", "9,9"], "no query at 9,9: in blocks."),
        (["--method", "gradcam", "--layer", "1"], "gradcam is of no single layer"),
    ):
        said = vitrail("explain", name, photos[0], *options, *out)
        assert said.code == 1
        assert complaint in said.err


def test_relevance_for_another_class_is_another_map(vit, photos, tmp_path):
    maps = [explain(vit, photos[0], method="relevance", target=target, out=tmp_path)[0] for target in (1, 2)]
    assert [one.method for one in maps] == ["relevance for $x_1$ and \\frac", "relevance for 猫"]
    assert not np.allclose(maps[0].map, maps[1].map)
    assert len(list(tmp_path.iterdir())) == 2
    best = vit.classes.index(maps[0].predicted)
    alike = [explain(vit, photos[0], method="relevance", target=target)[0].map for target in (None, best)]
    assert np.array_equal(*alike)


def test_what_the_model_saw_is_the_middle_of_the_photograph(vit, photos):
    (one,) = explain(vit, photos[0])
    with Image.open(photos[0]) as photo:  # 640 x 480
        middle = photo.crop((110, 30, 530, 450)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(middle, float) - one.image).mean() < 4


def test_another_class_can_be_asked_for_by_name_or_number(vit, photos):
    by_name = explain(vit, photos[0], target="猫")[0]
    by_number = explain(vit, photos[0], target=2, method="gradcam")[0]
    assert by_name.method == "gradcam for 猫"
    assert np.array_equal(by_name.map, by_number.map)
    wrong: list[tuple[str | int, str]] = [
        ("katze", "no class 'katze'"),
        (5, "classes 0 to 4"),
        ("plian", "did you mean 'plain'"),
    ]
    for target, complaint in wrong:
        with pytest.raises(UserError, match=complaint):
            explain(vit, photos[0], target=target)
    with pytest.raises(UserError, match="rollout gives every class the same map"):
        explain(vit, photos[0], target=1, method="rollout")


def test_an_unknown_method_is_refused(vit, photos):
    with pytest.raises(UserError, match="did you mean 'gradcam'"):
        explain(vit, photos[0], method="grad-cam")  # type: ignore[arg-type]


def test_a_damaged_image_is_named_and_the_others_are_kept(vit, photos, tmp_path, caplog):
    damaged = tmp_path / "broken.jpg"
    damaged.write_bytes(photos[0].read_bytes()[:3000])
    found = explain(vit, [photos[0], damaged, photos[1]])
    assert [one.file for one in found] == [str(photos[0]), str(photos[1])]
    assert "1 of 3 images left out" in caplog.text
    assert "broken.jpg" in caplog.text
    with pytest.raises(UserError, match=r"broken\.jpg"):
        explain(vit, damaged)


def test_photographs_of_one_name_do_not_overwrite_each_other(vit, photos, tmp_path):
    twin = tmp_path / "twin" / photos[0].name
    twin.parent.mkdir()
    twin.write_bytes(photos[1].read_bytes())
    found = explain(vit, [photos[0], twin], out=tmp_path / "out")
    assert found[0].picture != found[1].picture
    again = explain(vit, [photos[0], twin], out=tmp_path / "out")
    assert [one.picture for one in again] == [one.picture for one in found]


def test_pictures_cannot_be_written_into_a_file(vit, photos, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("not a folder")
    with pytest.raises(UserError, match="cannot make the folder"):
        explain(vit, photos[0], out=taken)


# ------------------------------------------------------------------ drawing


def test_scaling_a_flat_map_gives_zeros():
    assert not draw.scale(np.full((3, 3), 0.7, np.float32)).any()
    assert draw.scale(np.array([[2.0, 4.0]], np.float32)).tolist() == [[0, 1]]


def test_an_enlarged_map_keeps_place_and_range():
    grid = np.zeros((4, 4), np.float32)
    grid[1, 3] = 1
    large = draw.enlarge(grid, (64, 64))
    row, column = np.unravel_index(large.argmax(), large.shape)
    assert (row // 16, column // 16) == (1, 3)
    assert 0 <= large.min() <= large.max() <= 1


def test_an_overlay_is_bright_where_the_map_is():
    picture = np.full((8, 8, 3), 128, np.uint8)
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1
    shown = draw.overlay(picture, heat).astype(int).sum(-1)
    assert shown[:, 4:].min() > shown[:, :4].max() + 100


@pytest.mark.parametrize("name", ["猫", "$\\alpha$", "a\nb\tc", "\udce9.jpg", "🙂", "n" * 500])
def test_any_name_can_be_drawn(name):
    picture, heat = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.float32)
    assert draw.explanation(picture, heat, name, name, [(heat, name)], (0, 0, 0.5, 0.5)).startswith(b"\x89PNG")
    assert draw.contact_sheet([draw.Tile(picture, name)], name).startswith(b"\x89PNG")


def test_what_no_font_has_is_written_as_its_code():
    assert draw.printable("a\tb \udce9") == "a\\tb \\udce9"
    assert draw.printable("naïve · 5 % ×") == "naïve · 5 % ×"


def test_patches_of_colours_are_squares():
    colours = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 12
    large = draw.mosaic(colours, (6, 4))
    assert large.shape == (6, 4, 3)
    assert (large[:3, 2:] == colours[0, 1]).all()
    assert (large[3:, :2] == colours[1, 0]).all()
    picture = np.full((6, 4, 3), 200, np.uint8)
    shown = draw.overlay(picture, large, strength=1).astype(float)
    assert np.abs(shown - large * 255).max() < 1
    assert draw.legible(picture, large, least=12)[1].shape == (18, 12, 3)


def test_a_frame_goes_around_its_box():
    picture = np.full((160, 160, 3), 100, np.uint8)
    marked = draw.framed(picture, (0.25, 0.5, 0.5, 0.75))
    assert (marked[40:80, 80:120] == picture[40:80, 80:120]).all()
    assert (marked[38:40, 80:120] == draw.MARK).all()
    assert (marked[36:38, 80:120] == 0).all()
    assert (marked[:36] == 100).all()
    assert (picture == 100).all()
    assert draw.framed(picture, None) is picture
    assert (draw.framed(picture, (0, 0, 0.25, 0.25))[:40, 40:42] == draw.MARK).all()


def test_a_small_picture_keeps_its_square_pixels():
    picture = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    large, heat = draw.legible(picture, np.zeros((2, 2), np.float32), least=10)
    assert large.shape == (10, 10, 3)
    assert heat.shape == (10, 10)
    assert (large[:5, 5:] == picture[0, 1]).all()


def test_thumbnails_are_small_pngs():
    content = draw.thumbnail(np.zeros((300, 600, 3), np.uint8), most=100)
    assert Image.open(io.BytesIO(content)).size == (100, 50)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalised_images_become_visible_again(channels):
    pixels = torch.randint(0, 256, (channels, 4, 4), dtype=torch.uint8)
    mean, std = [0.4] * channels, [0.2] * channels
    shown = visible((pixels / 255 - 0.4) / 0.2, mean, std)
    wanted = pixels[:3] if channels >= 3 else pixels[:1].expand(3, -1, -1)
    assert np.array_equal(shown, wanted.permute(1, 2, 0).numpy())
