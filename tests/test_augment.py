"""Transforms give the right shape for any image and depend on torch's random numbers alone; policies and mixing are
drawn as timm draws them."""

from __future__ import annotations

import pickle
import random
from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from vitrail.data import policies
from vitrail.data.augment import Transform, adapt_channels, eval_transform, train_transform, turn_and_shift
from vitrail.data.erasing import together
from vitrail.data.mix import cut_and_paste, draw_box, mix, soft_targets
from vitrail.data.policies import RandAugment
from vitrail.errors import UserError
from vitrail.recipe import Augment

OFF = Augment(crop="none", flip=0.0)
EVERYTHING = Augment(rotate=15, rand_augment=2, color_jitter=0.3, erasing=1.0)


def picture(channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


def evaluate(image: torch.Tensor, size: int, crop_pct: float = 0.875, mode: str = "bicubic") -> torch.Tensor:
    ones, zeros = [1 / 255] * image.shape[0], [0.0] * image.shape[0]
    return eval_transform(img_size=size, mean=zeros, std=ones, interpolation=mode, crop_pct=crop_pct)(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (5000, 1), (1, 5000), (37, 23)])
def test_every_augmentation_of_every_shape(crop: str, channels: int, shape: tuple[int, int]) -> None:
    augment = replace(EVERYTHING, crop=crop)
    transform = train_transform(
        augment, img_size=8, mean=[0.5] * channels, std=[0.5] * channels, interpolation="bicubic"
    )
    for seed in range(5):
        torch.manual_seed(seed)
        image = transform(picture(channels, *shape))
        assert image.shape == (channels, 8, 8)
        assert image.dtype == torch.float32
        assert image.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(4, 32), st.sampled_from(["nearest", "bilinear", "bicubic"]))
def test_eval_keeps_one_colour_and_the_shape(height: int, width: int, size: int, mode: str) -> None:
    image = torch.tensor([12, 34, 56], dtype=torch.uint8)[:, None, None].expand(3, height, width)
    out = evaluate(image, size, mode=mode)
    assert out.shape == (3, size, size)
    assert out.round().unique(dim=2).unique(dim=1).flatten().tolist() == [12, 34, 56]


def test_eval_is_resize_and_centre_crop() -> None:
    image = picture(3, 60, 90)
    expected = F.center_crop(F.resize(image, [36], v2.InterpolationMode.BICUBIC, antialias=True), [32, 32])
    assert torch.equal(evaluate(image, 32).round(), expected.float())
    assert torch.equal(evaluate(picture(3, 32, 32), 32).round(), picture(3, 32, 32).float()), "the right size: as it is"


def test_eval_of_a_strip_takes_its_centre_without_the_memory_of_all_of_it() -> None:
    strip = torch.zeros(3, 5000, 1, dtype=torch.uint8)
    strip[:, 2400:2600] = 200
    assert evaluate(strip, 224).eq(200).all()


def test_normalising_is_v2s() -> None:
    image, mean, std = picture(3, 16, 16), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ours = eval_transform(img_size=16, mean=mean, std=std, interpolation="bilinear", crop_pct=1.0)(image)
    torch.testing.assert_close(
        ours, F.normalize(F.to_dtype(image, torch.float32, scale=True), mean, std), atol=2e-6, rtol=0
    )


@settings(deadline=None, max_examples=25)
@given(st.floats(-180, 180), st.integers(-4, 4), st.integers(-4, 4))
def test_turning_is_v2s_affine(degrees: float, across: int, down: int) -> None:
    image = picture(2, 9, 9)
    v2s = F.affine(image, degrees, [float(across), float(down)], 1.0, [0.0, 0.0], v2.InterpolationMode.BILINEAR)
    ours = turn_and_shift(image, degrees, across, down, "bilinear")
    assert (ours.int() - v2s.int()).abs().max() <= 1


def test_padded_crop_shifts_by_whole_pixels_up_to_the_padding() -> None:
    transform = train_transform(
        replace(OFF, crop="padded", crop_padding=2), img_size=8, mean=[0.0], std=[1 / 255], interpolation="bilinear"
    )
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 4, 4] = 255
    torch.manual_seed(0)
    places = {tuple((transform(image)[0] == 255).nonzero()[0].tolist()) for _ in range(400)}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


def test_flip_and_erasing_happen_as_often_as_asked() -> None:
    image = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    transform = train_transform(
        replace(OFF, flip=0.25), img_size=8, mean=[0.0], std=[1 / 255], interpolation="bilinear"
    )
    torch.manual_seed(0)
    flipped = sum(bool(transform(image)[0, 0, 0].round() == 7) for _ in range(800)) / 800
    assert flipped == pytest.approx(0.25, abs=0.05)
    transform = train_transform(replace(OFF, erasing=0.5), img_size=32, mean=[0.0], std=[1.0], interpolation="bilinear")
    out = torch.stack([transform(torch.zeros(1, 32, 32, dtype=torch.uint8)) for _ in range(300)])
    erased = out[(out != 0).flatten(1).any(1)]
    assert len(erased) / 300 == pytest.approx(0.5, abs=0.1)
    assert erased[erased != 0].std() == pytest.approx(1, abs=0.05), "unit-normal noise, after normalising"
    share = (erased != 0).float().mean((1, 2, 3))
    assert 0.01 < share.min() < share.max() < 0.36


@pytest.mark.parametrize(("height", "width"), [(60, 90), (300, 20), (20, 300), (5, 5)])
def test_the_crop_and_the_patch_are_v2s(height: int, width: int) -> None:
    scale = {"mean": [0.5] * 3, "std": [0.25] * 3}
    for fill, value in (("noise", "random"), ("mean", 0)):
        augment = Augment(crop_scale=(0.08, 1.0), flip=0.5, erasing=0.5, erasing_fill=fill)  # type: ignore[arg-type]
        ours = train_transform(augment, img_size=32, interpolation="bicubic", **scale)  # type: ignore[arg-type]
        plain = train_transform(replace(augment, erasing=0.0), img_size=32, interpolation="bicubic", **scale)  # type: ignore[arg-type]
        crop = v2.RandomResizedCrop(32, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
        erase = v2.RandomErasing(0.5, (0.02, 1 / 3), (0.3, 3.3), value=value)
        image = picture(3, height, width)
        for seed in range(20):
            torch.manual_seed(seed)
            found = ours(image)
            torch.manual_seed(seed)
            cropped = crop(image)
            cropped = cropped.flip(-1) if torch.rand(()).item() < 0.5 else cropped
            expected = erase(plain.finish(cropped.permute(1, 2, 0)[None], together([None]))[0])
            assert torch.equal(found, expected)


def test_the_same_random_numbers_give_the_same_image_also_after_pickling() -> None:
    transform = train_transform(EVERYTHING, img_size=16, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic")
    results = []
    for each in (transform, transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(3)
        np.random.seed(len(results))
        results.append(each(picture(3, 40, 30)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_channels() -> None:
    assert adapt_channels(picture(1, 2, 2), 3).shape == (3, 2, 2)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert adapt_channels(red, 1).item() == 76
    with pytest.raises(UserError, match="in_chans"):
        adapt_channels(picture(4, 2, 2), 3)


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1.5},
        {"crop_scale": (0.5, 0.2)},
        {"rand_augment": 1, "rand_augment_magnitude": 21},
        {"rotate": -1.0},
        {"rand_augment_prob": 1.2},
        {"rand_augment_std": float("nan")},
        {"erasing_scale": (0.0, 0.2)},
    ],
)
def test_values_that_make_no_sense(change: dict) -> None:
    with pytest.raises(UserError, match=rf"^augment.{next(reversed(change))} is "):
        train_transform(replace(OFF, **change), img_size=8, mean=[0.5], std=[0.5], interpolation="bilinear")


def test_policies_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"^augment.rand_augment is 2 and augment.auto_augment svhn; set rand_augment"):
        train_transform(
            replace(OFF, rand_augment=2, auto_augment="svhn"),
            img_size=8, mean=[0.5], std=[0.5], interpolation="bilinear",
        )  # fmt: skip
    for change in ({"rand_augment": 1}, {"auto_augment": "imagenet"}, {"color_jitter": 0.1}):
        with pytest.raises(UserError, match=r"these have 4 channels; turn them off$"):
            train_transform(
                replace(OFF, **change),
                img_size=8, mean=[0.5] * 4, std=[0.5] * 4, interpolation="bilinear",
            )  # fmt: skip


# RandAugment, AutoAugment and erasing


def small(augment: Augment, channels: int) -> Transform:
    mean, std = [0.0] * channels, [1 / 255] * channels
    return train_transform(augment, img_size=16, mean=mean, std=std, interpolation="bilinear")


@pytest.mark.parametrize("magnitude", [0, 5, 10])
def test_without_noise_and_coin_it_is_torchvisions_rand_augment(magnitude: int) -> None:
    mode = v2.InterpolationMode.BILINEAR
    ours = RandAugment(3, magnitude, 0.0, 1.0, mode)
    theirs = v2.RandAugment(3, magnitude, num_magnitude_bins=11, interpolation=mode)
    changed = 0
    for seed in range(60):
        image, results = to_pil_image(picture(3, 16, 16)), []
        for each in (ours, theirs):
            torch.manual_seed(seed)
            results.append(each(image))
        assert results[0].tobytes() == results[1].tobytes()
        changed += results[0].tobytes() != image.tobytes()
    assert changed > 15, "strength 0 is no identity either: autocontrast, equalize and invert have none"


def strengths_of_ours(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], dict[str, list[float]]]:
    """Operations of each of `count` images, and the strengths 0..10 of some kinds, as our RandAugment draws them."""
    applied: list[tuple[str, float]] = []

    def note(_: v2.RandAugment, image: Image.Image, kind: str, strength: float, *__: object) -> Image.Image:
        applied.append((kind, strength))
        return image

    monkeypatch.setattr(policies._OneOperation, "_apply_image_or_video_transform", note)
    ours = RandAugment(2, 9, 0.5, 0.5, v2.InterpolationMode.BILINEAR)
    image, numbers, kinds = to_pil_image(picture(3, 16, 16)), [], defaultdict(list)
    full = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331 * 16, "Color": 0.9, "Contrast": 0.9}
    torch.manual_seed(0)
    for _ in range(count):
        applied.clear()
        ours(image)
        numbers.append(len(applied))
        for kind, strength in applied:
            if kind in full:
                kinds[kind[:5]].append(10 * strength / full[kind])
    return numbers, kinds


def strengths_of_timms(count: int) -> tuple[list[int], dict[str, list[float]]]:
    """The same of timm's rand-m9-mstd0.5-inc1, the released recipe's."""
    from timm.data.auto_augment import rand_augment_transform

    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    applied: list[tuple[str, float]] = []
    full = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "Color": 0.9, "Contrast": 0.9}

    def note(*arguments: float, name: str, **_: object) -> None:  # the image, and the strength where there is one
        applied.append((name, arguments[-1]))

    for op in theirs.ops:
        op.aug_fn = partial(note, name=op.name.replace("Increasing", ""))
    numbers, kinds = [], defaultdict(list)
    random.seed(0)
    np.random.seed(0)
    for _ in range(count):
        applied.clear()
        theirs(None)
        numbers.append(len(applied))
        for name, level in applied:
            if name in full:
                kinds[name[:5]].append(10 * (level - (name in ("Color", "Contrast"))) / full[name])
    return numbers, kinds


def test_noise_and_coin_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, ours = strengths_of_ours(5000, monkeypatch)
    expected, theirs = strengths_of_timms(5000)
    for operations in range(3):
        share = sum(n == operations for n in expected) / 5000
        assert sum(n == operations for n in numbers) / 5000 == pytest.approx(share, abs=0.03)
    assert ours.keys() == theirs.keys() == {"Rotat", "Shear", "Trans", "Color", "Contr"}
    for kind, strengths in ours.items():
        assert min(len(strengths), len(theirs[kind])) > 200
        mine, other = np.abs(strengths), np.abs(theirs[kind])
        assert mine.mean() == pytest.approx(other.mean(), abs=0.12)
        assert mine.std() == pytest.approx(other.std(), abs=0.08)
        assert mine.max() == pytest.approx(10)
        assert (np.array(strengths) > 0).mean() == pytest.approx(0.5, abs=0.12), "either sign"


def test_share_of_images_that_timms_policy_changes() -> None:
    """The coins leave a quarter alone, and few operations are without effect. Without noise: timm's strongest
    posterising is refused by Pillow."""
    from timm.data.auto_augment import rand_augment_transform

    ours = RandAugment(2, 9, 0.0, 0.5, v2.InterpolationMode.BILINEAR)
    theirs = rand_augment_transform("rand-m9-inc1", {})
    pillow = to_pil_image(picture(3, 16, 16))
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    mine = sum(ours(pillow).tobytes() != pillow.tobytes() for _ in range(1500)) / 1500
    other = sum(theirs(pillow).tobytes() != pillow.tobytes() for _ in range(1500)) / 1500
    assert mine == pytest.approx(other, abs=0.07)
    assert 0.6 < mine < 0.75


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
@pytest.mark.parametrize("channels", [1, 3])
def test_auto_augment_is_torchvisions_policy(policy: str, channels: int) -> None:
    ours = small(replace(OFF, auto_augment=policy), channels)  # type: ignore[arg-type]
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy(policy), interpolation=v2.InterpolationMode.BILINEAR)
    changed = 0
    for seed in range(30):
        image = picture(channels, 16, 16)
        torch.manual_seed(seed)
        out = ours(image)
        torch.manual_seed(seed)
        torch.testing.assert_close(out, F.pil_to_tensor(theirs(to_pil_image(image))).float())
        changed += not torch.equal(out.round().to(torch.uint8), image)
    assert changed > 15


def test_erased_rectangles_have_the_size_and_the_fill_asked_for() -> None:
    augment = replace(OFF, erasing=1.0, erasing_scale=(0.3, 0.4), erasing_fill="mean")
    transform = train_transform(augment, img_size=32, mean=[0.25], std=[0.5], interpolation="bilinear")
    torch.manual_seed(0)
    out = torch.stack([transform(torch.full((1, 32, 32), 255, dtype=torch.uint8)) for _ in range(200)])
    assert out.unique().tolist() == pytest.approx([0.0, 1.5]), "the mean is 0 after normalising"
    share = (out == 0).float().mean((1, 2, 3))
    assert 0.27 < share.min() < share.max() < 0.43
    assert share.mean() == pytest.approx(0.35, abs=0.02)


# MixUp and CutMix


def test_soft_targets_are_timms() -> None:
    from timm.data.mixup import mixup_target

    labels, lam = torch.tensor([0, 3, 2, 2]), 0.3
    ours = soft_targets(labels, 5, 0.1)
    torch.testing.assert_close(ours * lam + ours.flip(0) * (1 - lam), mixup_target(labels, 5, lam, 0.1))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_the_same_lambda_and_box_give_timms_batch(mixup: float, cutmix: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import mixup as timms

    import vitrail.data.mix as ours

    lam, box = 0.75, (3, 11, 0, 8)
    monkeypatch.setattr(ours, "_draw_lambda", lambda _: lam)
    monkeypatch.setattr(ours, "draw_box", lambda *_: (box, 1 - 64 / 256))
    monkeypatch.setattr(np.random, "beta", lambda *_: lam)
    monkeypatch.setattr(timms, "cutmix_bbox_and_lam", lambda *_, **__: (box, 1 - 64 / 256))
    images, labels = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 1, 1])
    before = images.clone()
    mixed, targets = mix(images, labels, num_classes=4, mixup=mixup, cutmix=cutmix, smoothing=0.1)
    assert torch.equal(images, before)
    reference = timms.Mixup(mixup, cutmix, label_smoothing=0.1, num_classes=4)
    theirs, expected = reference(images.clone(), labels)
    torch.testing.assert_close(mixed, theirs)
    torch.testing.assert_close(targets, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_lambda_of_a_box_is_what_it_leaves(height: int, width: int, lam: float, seed: int) -> None:
    torch.manual_seed(seed)
    box, corrected = draw_box(height, width, lam)
    pasted = cut_and_paste(torch.stack([torch.zeros(1, height, width), torch.ones(1, height, width)]), box)
    assert pasted[0].mean().item() == pytest.approx(1 - corrected, abs=1e-6)
    assert corrected >= lam - 1e-9, "the border only cuts the box down"


def test_both_alphas_draw_one_each_batch_half_the_time_and_lambda_is_beta() -> None:
    torch.manual_seed(0)
    images, labels = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)]), torch.tensor([0, 1])
    blended, lams = 0, []
    for _ in range(1500):
        mixed, targets = mix(images, labels, num_classes=2, mixup=0.8, cutmix=1.0, smoothing=0.0)
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        assert mixed[0].mean().item() == pytest.approx(targets[0, 1].item(), abs=1e-5)
        if mixed.unique().numel() == 2 and 0 < mixed[0].mean() < 1 and (mixed[0].min() > 0):
            blended += 1
            lams.append(targets[0, 0].item())
    assert blended / 1500 == pytest.approx(0.5, abs=0.05)
    assert np.mean(lams) == pytest.approx(0.5, abs=0.04)
    assert np.var(lams) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02), "the variance of Beta(0.8, 0.8)"


def test_nothing_to_mix_still_smooths_and_several_labels_are_mixed() -> None:
    images, hot = torch.randn(2, 1, 4, 4), torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    same, targets = mix(images, torch.tensor([0, 1]), num_classes=4, mixup=0, cutmix=0, smoothing=0.2)
    assert same is images
    torch.testing.assert_close(targets[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    _, targets = mix(images, hot, num_classes=3, mixup=0.8, cutmix=0, smoothing=0.2)
    torch.testing.assert_close(targets[:, 2], torch.full((2,), 0.9)), "yes, smoothed towards 1/2"


def test_several_labels_are_smoothed_as_timm_smooths_them() -> None:
    from timm.data.mixup import mixup_target

    hot, lam = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 0, 0]]), 0.3
    ours = soft_targets(hot, 3, 0.1)
    torch.testing.assert_close(ours * lam + ours.flip(0) * (1 - lam), mixup_target(hot, 3, lam, 0.1, multi_label=True))
    assert torch.equal(soft_targets(hot, 3, 0.0), hot)


@pytest.mark.parametrize(
    ("mixup", "cutmix", "prob"), [(0.8, 1.0, 1.0), (1.0, 1.0, 0.5), (0.2, 0.0, 1.0), (0.0, 1.0, 0.3)]
)
def test_shares_of_mixed_batches_lambda_and_boxes_are_timms(mixup: float, cutmix: float, prob: float) -> None:
    from timm.data.mixup import Mixup

    theirs = Mixup(mixup, cutmix, prob=prob, label_smoothing=0.0, num_classes=2)
    np.random.seed(0)
    torch.manual_seed(0)
    images, labels = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)]), torch.tensor([0, 1])
    options = {"num_classes": 2, "mixup": mixup, "cutmix": cutmix, "smoothing": 0.0, "prob": prob}

    def drawn(mixed: torch.Tensor, targets: torch.Tensor) -> tuple[str, float]:
        kind = "none" if torch.equal(mixed, images) else "cutmix" if mixed[0].unique().numel() == 2 else "mixup"
        assert mixed[0].mean().item() == pytest.approx(targets[0, 1].item(), abs=1e-5)
        return kind, targets[0, 0].item()

    count = 2500
    ours = [drawn(*mix(images, labels, **options)) for _ in range(count)]  # type: ignore[arg-type]
    reference = [drawn(*theirs(images.clone(), labels)) for _ in range(count)]
    for kind in ("none", "mixup", "cutmix"):
        mine, other = (np.array([lam for each, lam in draws if each == kind]) for draws in (ours, reference))
        assert len(mine) / count == pytest.approx(len(other) / count, abs=0.045)
        if len(other) > 200:
            assert mine.mean() == pytest.approx(other.mean(), abs=0.05)
            assert ks_2samp(mine, other).statistic < 0.08, "the distributions of lambda differ"
