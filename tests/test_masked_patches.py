"""Masked patch prediction: what is corrupted and by how much, which colours are asked for, where gradients go."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from toy_data import loader, recipe, seeded, source, three, whole

from vitrail.errors import UserError
from vitrail.models import create_model
from vitrail.recipe import Recipe
from vitrail.run import build, load, save_weights, start
from vitrail.training.evaluate import evaluate
from vitrail.training.predict import predict
from vitrail.training.tasks.masked_patches import (
    FILE,
    MaskedModel,
    MaskedPatches,
    colour_class,
    corrupt,
    patchify,
    save_task,
)

PATCHES = 16  # of an 8 x 8 image in vit_pico_patch2_8


def task(**changes: object) -> tuple[MaskedPatches, MaskedModel, Recipe]:
    chosen = recipe(task="masked_patches", **changes)
    made = MaskedPatches(chosen, three())
    return made, made.module(build(chosen, 3)), chosen


# ------------------------------------------------------------------ what is corrupted


def test_half_of_196_patches_are_78_masked_10_swapped_10_kept():
    masked, taken, chosen = corrupt(list(range(600)), 196, 98, seed=0)
    own = torch.arange(196)
    swapped = taken != own
    assert masked.sum(1).eq(78).all()
    assert swapped.sum(1).eq(10).all()
    assert not (masked & swapped).any()
    corrupted = torch.zeros(600, 196, dtype=torch.bool).scatter(1, chosen, True)
    assert corrupted.sum(1).eq(98).all(), "98 different ones"
    assert (corrupted & ~masked & ~swapped).sum(1).eq(10).all()
    assert not ((masked | swapped) & ~corrupted).any()
    shares = [float(kind.double().mean()) for kind in (masked, swapped, corrupted & ~masked & ~swapped)]
    assert shares == pytest.approx([0.40, 0.05, 0.05], abs=0.003)  # of 117,600 tokens
    assert corrupted.double().mean(0).sub(0.5).abs().max() < 0.1, "every place as often as another"
    others = (taken - own)[swapped] % 196
    assert torch.bincount(others, minlength=196)[1:].double().std() < 8, "any other patch is as likely"


@given(st.integers(2, 60), st.floats(0.05, 1.0), st.integers(0, 2**62))
def test_the_counts_are_exact(patches, share, seed):
    chosen = max(round(share * patches), 1)
    masked, taken, places = corrupt([3, 8], patches, chosen, seed)
    tenth = round(0.1 * chosen)
    assert masked.sum(1).tolist() == [chosen - 2 * tenth] * 2
    assert (taken != torch.arange(patches)).sum(1).tolist() == [tenth] * 2
    assert [len(set(row)) for row in places.tolist()] == [chosen] * 2


def test_an_image_is_corrupted_the_same_in_any_batch():
    together, alone = corrupt([4, 9, 7], 50, 20, seed=5), corrupt([9], 50, 20, seed=5)
    assert all(torch.equal(a[1], b[0]) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together.masked[0], together.masked[1])
    assert not torch.equal(corrupt([9], 50, 20, seed=6).masked[0], alone.masked[0])


def test_training_draws_anew_in_every_step():
    made, _, chosen = task()
    batch = whole(three(), chosen)
    torch.manual_seed(1)
    first, again = made.prepare(batch)[1], made.prepare(batch)[1]
    torch.manual_seed(1)
    assert torch.equal(made.prepare(batch)[1], first)
    assert not torch.equal(first, again)


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize(("channel", "label"), [(0, 7 * 64), (1, 7 * 8), (2, 7)])
def test_pure_colours_count_red_most(channel, label):
    assert colour_class(torch.eye(3)[channel]).item() == label


@given(st.lists(st.floats(-0.25, 1.25, width=32), min_size=3, max_size=3))
def test_colours_are_binned_as_lucidrains_does_in_our_order(colour):
    """vit-pytorch's mpp.py bins with bucketize, right edges included, and lets the last channel count most."""
    bins = torch.arange(1 / 8, 1, 1 / 8)
    values = torch.tensor(colour)
    levels = torch.bucketize(values, bins, right=True)
    assert colour_class(values).item() == sum(int(q) * 8**k for k, q in enumerate(levels.flip(0)))


def test_patches_are_in_reading_order():
    images = torch.rand(2, 3, 8, 12, generator=seeded(0))
    expected = F.unfold(images, (4, 3), stride=(4, 3))  # (B, C pixels, P)
    ours = patchify(images, (2, 4)).permute(0, 1, 3, 2).flatten(2).transpose(1, 2)
    assert torch.equal(ours, expected)


def test_colours_are_those_before_normalisation():
    made, _, chosen = task(masked__share=1.0)
    data = three()
    *_, places, labels = made.prepare(whole(data, chosen))
    for row in range(3):
        pixels = data.splits["val"].read(row).float() / 255
        means = F.avg_pool2d(pixels, 2).flatten(1).T  # (P, 3)
        assert (colour_class(means)[places[row]] == labels[row]).double().mean() > 0.98  # 1/2^24 from an edge


@pytest.mark.parametrize(("target", "outputs"), [("mean", 3), ("pixels", 12)])
def test_numbers_as_targets(target, outputs):
    made, module, chosen = task(masked__share=1.0, masked__target=target)
    *inputs, targets = made.prepare(whole(three(), chosen))
    assert targets.shape == module(*inputs).shape == (12, PATCHES, outputs)
    pixels = three().splits["val"].read(0).float() / 255
    first = inputs[-1][0].tolist().index(0)  # where the first patch is asked for
    cell = pixels[:, :2, :2].permute(1, 2, 0).flatten()
    expected = cell if target == "pixels" else cell.view(4, 3).mean(0)
    assert targets[0, first] == pytest.approx(expected, abs=1e-5)


def test_equal_logits_cost_ln_512():
    made, module, chosen = task()
    torch.nn.init.zeros_(module.head.weight)
    loss = made.loss(module, *made.prepare(whole(three(), chosen)))
    assert loss.item() == pytest.approx(math.log(512), abs=1e-5)


def test_parts_of_a_batch_add_up():
    made, module, chosen = task()
    parts = made.prepare(whole(three(), chosen))
    cut = sum(
        made.loss(module, *(part[rows] for part in parts)) * n / 12 for rows, n in ((slice(5), 5), (slice(5, 12), 7))
    )
    assert cut.item() == pytest.approx(made.loss(module, *parts).item(), abs=1e-5)


# ------------------------------------------------------------------ the model

FAMILIES = [
    ("vit_pico_patch2_8", {}),
    ("vit_base_patch16_gap_224", {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 4}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 2}),
    ("deit3_small_patch16_224", {"img_size": 32, "depth": 2}),
    ("simple_vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
    ("scaling_vit_tiny_patch16_224", {"img_size": 32, "depth": 2}),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}),
]


@pytest.mark.parametrize(("name", "sizes"), FAMILIES)
def test_without_corruption_it_is_the_plain_vit(name, sizes):
    model = create_model(name, num_classes=3, **sizes).eval()
    side = model.config.img_size
    module = MaskedModel(model, 5).eval()
    images = torch.randn(2, 3, side, side, generator=seeded(0))
    patches = math.prod(model.patch_embed.grid(side, side))
    own = torch.arange(patches).repeat(2, 1)
    with torch.no_grad():
        said = module(images, torch.zeros(2, patches, dtype=torch.bool), own, own)
        expected = module.head(model.forward_features(images)[:, model.num_prefix_tokens :])
    assert torch.allclose(said, expected, atol=1e-5)
    assert {key.removeprefix("model.") for key in module.state_dict() if key.startswith("model.")} == set(
        model.state_dict()
    )


def test_gradients_reach_the_mask_and_no_patch_that_it_hides():
    made, module, chosen = task()
    *inputs, targets = made.prepare(whole(three(), chosen))
    kept = []

    def keep(_module, _images, projected):
        projected.retain_grad()
        kept.append(projected)

    module.model.patch_embed.register_forward_hook(keep)
    made.loss(module, *inputs, targets).backward()
    masked, taken = inputs[1], inputs[2]
    reach = kept[0].grad.abs().sum(-1) > 0
    assert module.mask_token.grad.abs().sum() > 0
    shown = F.one_hot(taken, PATCHES).bool().logical_and(~masked[:, :, None]).any(1)  # at some place
    assert not reach[~shown].any()
    assert reach[shown].all()


def test_masked_places_are_told_apart_by_their_positions():
    _, module, chosen = task()
    batch = whole(three(), chosen)
    own = torch.arange(PATCHES).repeat(len(batch.images), 1)
    said = module(batch.images, torch.ones_like(own, dtype=torch.bool), own, own)
    assert (said[:, 0] - said[:, 1]).abs().max() > 1e-4
    assert torch.allclose(said[0], said[1], atol=1e-6), "and images, all masked, are not"


def test_it_compiles_as_one_graph():
    made, module, chosen = task()
    *inputs, _ = made.prepare(whole(three(), chosen))
    expected = module(*inputs)
    assert torch.allclose(torch.compile(module, backend="eager", fullgraph=True)(*inputs), expected, atol=1e-6)


def test_the_mask_does_not_decay_nor_do_positions():
    _, module, _ = task()
    assert {"mask_token", "model.pos_embed", "model.cls_token"} <= module.no_weight_decay()


def test_heads_start_the_same_for_the_same_seed():
    one, two, other = (task(seed=seed)[1].head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18", "cpvt_tiny_patch16_224"])
def test_other_families_are_refused(name):
    made = MaskedPatches(recipe(model=name), three())
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(UserError, match=f"^masked_patches needs a plain ViT, .* and {name} is none$"):
        made.module(model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"masked__share": 0.01}, "0.01 of 16 patches leaves none to predict"),
        ({"data__mean": (0.5,) * 5, "data__std": (0.5,) * 5, "data__in_chans": 5}, "use --masked.target mean"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        task(**changes)


# ------------------------------------------------------------------ scores


def two_colours() -> object:
    """Each image is black left of a border of its own, and white on the right."""
    data = source([0, 1] * 16, ["a", "b"])
    for split in data.splits.values():
        split.images = np.zeros((32, 8, 8, 3), np.uint8)
        for i, image in enumerate(split.images):
            image[:, 2 * (i % 3 + 1) :] = 255
    return data


def test_scores_do_not_depend_on_the_batches():
    made, module, chosen = task()
    scores = [made.score(module.train(), loader(three(), chosen, size), torch.device("cpu")) for size in (12, 5)]
    for key, value in scores[0].items():
        assert scores[1][key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert module.training
    assert (scores[0]["n"], scores[0]["patches"]) == (12, 12 * 8)


def test_the_baseline_is_the_commonest_colour_and_is_beaten():
    chosen = recipe(task="masked_patches")
    data = two_colours()
    made = MaskedPatches(chosen, data)
    module = made.module(build(chosen, 2))
    held_out, cpu = loader(data, chosen, 32), torch.device("cpu")
    labels = made._parts(whole(data, chosen).images, torch.arange(32), 0)[-1]
    before = made.score(module, held_out, cpu)
    assert before["baseline"] == pytest.approx(labels.flatten().bincount().max().item() / labels.numel())
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    batch = whole(data, chosen)
    torch.manual_seed(0)
    for _ in range(60):
        made.loss(module, *made.prepare(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = made.score(module, held_out, cpu)
    assert after["patch_accuracy"] > 0.9 > after["baseline"] + 0.1
    assert after["loss"] < 0.5 < before["loss"]


@pytest.mark.parametrize("target", ["mean", "pixels"])
def test_r2_is_scikit_learns(target):
    made, module, chosen = task(masked__target=target)
    score = made.score(module, loader(three(), chosen), torch.device("cpu"))
    *inputs, targets = made._parts(whole(three(), chosen).images, torch.arange(12), 0)
    with torch.no_grad():
        said = module.eval()(*inputs)
    expected = r2_score(targets.flatten(0, 1), said.flatten(0, 1), multioutput="variance_weighted")
    assert score["patch_r2"] == pytest.approx(expected, abs=1e-5)
    assert score["loss"] == pytest.approx(F.mse_loss(said, targets).item(), rel=1e-5)


# ------------------------------------------------------------------ what a run keeps


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, MaskedPatches, MaskedModel, Recipe]:
    """The folder of a run on digits, and what it holds."""
    chosen = recipe(
        task="masked_patches",
        data__source="digits",
        data__in_chans=1,
        data__mean=(0.5,),
        data__std=(0.5,),
        data__limit=20,
    )
    made = MaskedPatches(chosen, three())
    module = made.module(build(chosen, 10))
    start(tmp_path / "run", chosen, [str(k) for k in range(10)])
    save_weights(tmp_path / "run", module.model.state_dict())
    save_task(tmp_path / "run", module.state_dict())
    return tmp_path / "run", made, module, chosen


def test_a_run_is_scored_by_its_task(kept):
    folder, made, module, chosen = kept
    result = evaluate(folder)
    assert (result["metric"], result["n"], result["split"]) == ("patch_accuracy", 20, "test")
    from vitrail.run import open_data

    digits = open_data(chosen)
    digits.splits["val"] = digits.splits["test"]
    score = made.score(module, loader(digits, chosen), torch.device("cpu"))
    assert {key: result[key] for key in score} == {
        key: pytest.approx(value) if isinstance(value, float) else value for key, value in score.items()
    }


def test_a_run_without_its_head_cannot_be_scored(kept):
    folder, *_ = kept
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:40])
    with pytest.raises(UserError, match=f"{FILE} does not fit"):
        evaluate(folder)
    (folder / FILE).unlink()
    with pytest.raises(UserError, match=f"has no {FILE}"):
        evaluate(folder)


def test_it_names_no_classes(kept):
    with pytest.raises(UserError, match="has learned to predict masked patches, not classes; fine-tune it"):
        predict(kept[0], kept[0])


def test_fine_tuning_starts_from_its_weights(kept):
    folder, _, module, _ = kept
    chosen = recipe(
        initial_checkpoint=str(folder / "model.safetensors"), data__in_chans=1, data__mean=(0.5,), data__std=(0.5,)
    )
    tuned, before = build(chosen, 3).state_dict(), module.model.state_dict()
    assert all(torch.equal(tuned[key], before[key]) for key in before if not key.startswith("head"))
    assert torch.equal(load(folder).model.state_dict()["pos_embed"], before["pos_embed"])
