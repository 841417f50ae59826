"""Batches of real photographs have the statistics of torchvision's pipeline: colours, sharpness, where crops lie."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import v2

from vitrail.data.augment import train_transform
from vitrail.data.folders import FileSplit
from vitrail.data.loader import Loader
from vitrail.data.read import open_picture
from vitrail.recipe import Augment

SIDE, COPIES = 64, 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 photographs as JPEGs of 640 x 480, which crops of 64 are decoded from at every scale."""
    folder, found = tmp_path_factory.mktemp("photographs"), []
    with tarfile.open(shared_data / "photos.tar") as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
        for k, member in enumerate(members[:: len(members) // 24][:24]):
            file = tar.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((640, 480), Image.Resampling.BICUBIC)
            found.append(folder / f"{k}.jpg")
            image.save(found[-1], quality=90)
    return found


def ours(photographs: list[Path], augment: Augment) -> Tensor:
    """(N, 3, S, S): every photograph COPIES times."""
    split = FileSplit(photographs[0].parent, [path.name for path in photographs], [0] * len(photographs))
    transform = train_transform(augment, img_size=SIDE, mean=MEAN, std=STD, interpolation="bicubic")
    each = Loader(split, transform, batch_size=48, seed=3, shuffle=True, workers=0, num_classes=1)
    return torch.cat([batch.images for epoch in range(COPIES) for batch in each.epoch(epoch)])


def torchvisions(photographs: list[Path], *policy: v2.Transform) -> Tensor:
    """The same of the pipeline that torchvision documents, on Pillow images."""
    steps = [
        v2.RandomResizedCrop(SIDE, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        *policy,
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    transform = v2.Compose(steps)
    opened = [Image.open(path).convert("RGB") for path in photographs]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return torch.stack([transform(image) for _ in range(COPIES) for image in opened])


CROP = Augment(crop_scale=(0.08, 1.0), flip=0.5)
SEVERAL = Augment(
    crop_scale=(0.08, 1.0), flip=0.5, rand_augment=2, rand_augment_magnitude=9, rand_augment_std=0.0,
    rand_augment_prob=1.0,
)  # fmt: skip
POLICY = partial(v2.RandAugment, 2, 9, num_magnitude_bins=11, interpolation=v2.InterpolationMode.BILINEAR)


@pytest.mark.parametrize("policy", [False, True])
def test_colours_are_torchvisions(photographs: list[Path], policy: bool) -> None:
    """Of 144 images each: mean to 0.12 deviations (twice its standard error), deviation to 8 %, nine quantiles to 0.2;
    with RandAugment, whose operations are drawn too, 1.5 times as much."""
    found = ours(photographs, SEVERAL if policy else CROP)
    expected = torchvisions(photographs, POLICY()) if policy else torchvisions(photographs)
    assert found.shape == expected.shape
    more = 1.5 if policy else 1.0
    mine, theirs = (images.transpose(0, 1).flatten(1) for images in (found, expected))
    assert (mine.mean(1) - theirs.mean(1)).abs().max() < 0.12 * more
    assert (mine.std(1) / theirs.std(1) - 1).abs().max() < 0.08 * more
    places = torch.linspace(0.1, 0.9, 9)
    for one, other in zip(mine, theirs, strict=True):
        assert (one[::7].quantile(places) - other[::7].quantile(places)).abs().max() < 0.2 * more


def test_a_crop_of_a_scaled_jpeg_is_torchvisions_crop(photographs: list[Path]) -> None:
    """The same crop, image by image: within 4 grey levels on average and 10 at most (its borders are rounded to pixels
    of the scale, half a pixel of the result at most), as sharp to 6 %, and nearer than when moved by a pixel."""
    found, expected = [], []
    transform = train_transform(
        Augment(crop_scale=(0.08, 1.0), flip=0.0), img_size=SIDE, mean=MEAN, std=STD, interpolation="bicubic"
    )
    theirs = v2.RandomResizedCrop(SIDE, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    scales = set()
    for seed, path in enumerate(photographs * 2):
        picture = open_picture(path.read_bytes(), path.name)
        torch.manual_seed(seed)
        found.append(transform.draw(picture)[0].permute(2, 0, 1).float())
        torch.manual_seed(seed)
        expected.append(v2.functional.pil_to_tensor(theirs(Image.open(path))).float())
        scales.add(picture.scale)  # type: ignore[attr-defined]
    assert scales >= {2, 4}
    mine, other = torch.stack(found), torch.stack(expected)
    apart = (mine - other).abs().mean((1, 2, 3))
    assert apart.mean() < 4
    assert apart.max() < 10
    steps = [images.diff(dim=3).abs().mean() + images.diff(dim=2).abs().mean() for images in (mine, other)]
    assert steps[0] / steps[1] == pytest.approx(1, abs=0.06)
    for shift in ((0, 1), (1, 0)):
        moved = (mine - other.roll(shift, (2, 3))).abs().mean((1, 2, 3))
        assert (apart < moved).all()


def test_crops_lie_where_torchvisions_lie() -> None:
    """Area, aspect and centre of 4000 crops each: Kolmogorov-Smirnov below 0.04."""
    seen: list[tuple[int, int, int, int]] = []

    class Noting:
        height, width = 375, 500

        def region(self, box: tuple[int, int, int, int], _least: int) -> Tensor:
            seen.append(box)
            return torch.zeros(3, 8, 8, dtype=torch.uint8)

    transform = train_transform(CROP, img_size=8, mean=MEAN, std=STD, interpolation="bicubic")
    crop = v2.RandomResizedCrop(8, (0.08, 1.0))
    torch.manual_seed(0)
    other = []
    for _ in range(4000):
        transform.draw(Noting())  # type: ignore[arg-type]
        box = crop.make_params([torch.empty(()).expand(3, 375, 500)])
        other.append((box["top"], box["left"], box["height"], box["width"]))
    mine, theirs = torch.tensor(seen).double(), torch.tensor(other).double()
    for ours, expected in zip(_geometry(mine), _geometry(theirs), strict=True):
        assert ks_2samp(ours, expected).statistic < 0.04


def _geometry(boxes: Tensor) -> list[Tensor]:
    """Area, aspect and centre of boxes (N, 4)."""
    top, left, height, width = boxes.unbind(1)
    return [height * width, width / height, top + height / 2, left + width / 2]
