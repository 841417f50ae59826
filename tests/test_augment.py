"""Transforms give the right shape for any image and depend on torch's random numbers alone; mixing is timm's."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitrail.data.augment import adapt_channels, eval_transform, train_transform, turn_and_shift
from vitrail.data.mix import cut_and_paste, draw_box, mix, soft_targets
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
    [{"flip": 1.5}, {"crop_scale": (0.5, 0.2)}, {"rand_augment": 1, "rand_augment_magnitude": 11}, {"rotate": -1.0}],
)
def test_values_that_make_no_sense(change: dict) -> None:
    with pytest.raises(UserError, match="augment"):
        train_transform(replace(OFF, **change), img_size=8, mean=[0.5], std=[0.5], interpolation="bilinear")


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
    torch.testing.assert_close(targets[:, 2], torch.ones(2))
