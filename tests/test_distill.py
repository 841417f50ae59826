"""Distillation: the loss is DeiT's, the teacher sees what the student sees, and is asked once where that is enough."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from timm.task import TokenDistillationTask
from toy_data import STILL, loader, recipe, seeded, source, three, whole

from vitrail.data.augment import train_transform
from vitrail.data.loader import Loader
from vitrail.data.sources import Source
from vitrail.errors import UserError
from vitrail.models import create_model
from vitrail.recipe import Augment, Recipe
from vitrail.run import build, save_weights, start
from vitrail.training.tasks.classify import Classify
from vitrail.training.tasks.distill import FILE, Distilled, nothing_random

CPU = torch.device("cpu")
B, K = 12, 3


def run_folder(folder: Path, classes: list[str] | None = None, seed: int = 5, **changes: object) -> Path:
    """A trained teacher, as far as anyone can tell."""
    chosen = recipe(seed=seed, **changes)
    start(folder, chosen, classes or ["a", "b", "c"])
    model = build(chosen, len(classes or "abc"))
    for parameter in model.get_classifier().parameters():
        torch.nn.init.normal_(parameter, generator=seeded(seed))  # so that classes and images differ
    save_weights(folder, model.state_dict())
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("teacher") / "run")


def distilled(teacher: Path, folder: Path, data: Source | None = None, **changes: object) -> Distilled:
    chosen = recipe(distill__teacher=str(teacher), **changes)
    return Distilled(chosen, data or three(), CPU, folder)


class Fixed(torch.nn.Module):
    """A student that says what it is told to."""

    def __init__(self, said):
        super().__init__()
        self.said = said
        self.num_classes, self.in_chans = K, 3
        self.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

    def set_distilled_training(self, enable=True):
        self.enabled = enable

    def forward(self, _images):
        return self.said


SAID, TAUGHT, TEACHER = (2 * torch.randn(B, K, generator=seeded(n)) for n in (0, 1, 2))
TARGETS = torch.randn(B, K, generator=seeded(3)).softmax(1)
IMAGES = torch.zeros(B, 3, 8, 8)


def deit(kind: str, alpha: float, tau: float) -> float:
    """DistillationLoss of facebookresearch/deit, losses.py."""
    base = -(TARGETS * SAID.log_softmax(-1)).sum(-1).mean()
    if kind == "soft":
        said, wanted = F.log_softmax(TAUGHT / tau, dim=1), F.log_softmax(TEACHER / tau, dim=1)
        term = F.kl_div(said, wanted, reduction="sum", log_target=True) * (tau * tau) / TAUGHT.numel()
        term = term * K  # it divides by all numbers, B K; the paper and this library by the images, B
    else:
        term = F.cross_entropy(TAUGHT, TEACHER.argmax(dim=1))
    return float(base * (1 - alpha) + term * alpha)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 1.0), (0.1, 3.0), (1.0, 2.0)])
def test_the_loss_is_deits(teacher, tmp_path, kind, alpha, tau):
    task = distilled(teacher, tmp_path, distill__kind=kind, distill__alpha=alpha, distill__tau=tau)
    loss = task.loss(Fixed((SAID, TAUGHT)), IMAGES, TARGETS, TEACHER)
    assert loss.item() == pytest.approx(deit(kind, alpha, tau), rel=1e-5)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_is_timms(teacher, tmp_path, kind):
    task = distilled(teacher, tmp_path, distill__kind=kind, distill__alpha=0.3, distill__tau=2.0)
    theirs = TokenDistillationTask(
        Fixed((SAID, TAUGHT)),
        Fixed(TEACHER),
        criterion=SoftTargetCrossEntropy(),
        distill_type=kind,
        task_loss_weight=0.7,
        temperature=2.0,
        device=CPU,
        verbose=False,
    )
    ours = task.loss(Fixed((SAID, TAUGHT)), IMAGES, TARGETS, TEACHER)
    assert ours.item() == pytest.approx(theirs(IMAGES, TARGETS)["loss"].item(), rel=1e-5)


def test_one_head_takes_both_terms(teacher, tmp_path):
    task = distilled(teacher, tmp_path, distill__alpha=0.25)
    loss = task.loss(Fixed(SAID), IMAGES, TARGETS, TEACHER).item()
    assert loss == pytest.approx(task.loss(Fixed((SAID, SAID)), IMAGES, TARGETS, TEACHER).item())


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(teacher, tmp_path):
    task = distilled(teacher, tmp_path, distill__kind="soft", distill__alpha=1.0, distill__tau=3.0)
    assert task.loss(Fixed(TEACHER), IMAGES, TARGETS, TEACHER).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_parts_of_a_batch_add_up(teacher, tmp_path, kind):
    task = distilled(teacher, tmp_path, distill__kind=kind, class_weights="a=3", label_smoothing=0.1)
    model = build(task.recipe, 3)
    parts = task.prepare(whole(three(), task.recipe))
    cut = sum(
        task.loss(model, *(part[rows] for part in parts)) * n / B for rows, n in ((slice(5), 5), (slice(5, B), 7))
    )
    assert cut.item() == pytest.approx(task.loss(model, *parts).item(), abs=1e-5)


# ------------------------------------------------------------------ the distillation token


def student() -> torch.nn.Module:
    return create_model(
        "deit_tiny_distilled_patch16_224", img_size=8, patch_size=2, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )


@pytest.mark.parametrize(("alpha", "taught", "idle"), [(1.0, "head_dist", "head"), (0.0, "head", "head_dist")])
def test_each_head_has_its_term(teacher, tmp_path, alpha, taught, idle):
    task = distilled(teacher, tmp_path, distill__alpha=alpha)
    model = task.module(student().train())
    task.loss(model, *task.prepare(whole(three(), task.recipe))).backward()
    assert model.get_submodule(taught).weight.grad.abs().sum() > 0
    assert model.get_submodule(idle).weight.grad.abs().sum() == 0


def test_it_is_scored_by_the_mean_of_its_heads(teacher, tmp_path):
    task = distilled(teacher, tmp_path)
    model = task.module(student().train())
    score = task.score(model, loader(three(), task.recipe), CPU)
    images, labels = whole(three(), task.recipe).images, torch.tensor(three().splits["val"].labels)
    with torch.no_grad():
        said, taught = model(images)
        assert score["loss"] == pytest.approx(F.cross_entropy((said + taught) / 2, labels).item(), rel=1e-5)


def test_without_a_teacher_the_token_learns_labels_too(caplog):
    task = Classify(recipe(), three())
    with caplog.at_level(logging.WARNING, "vitrail"):
        model = task.module(student().train())
    assert "the distillation token of this model learns the labels too" in caplog.text
    loss = task.loss(model, *task.prepare(whole(three(), recipe())))
    loss.backward()
    assert torch.allclose(model.head.bias.grad, model.head_dist.bias.grad)


# ------------------------------------------------------------------ what the teacher sees


def seen(task: Distilled, batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The images that the teacher's model was given, and what was prepared."""
    given = []
    task.teacher.model.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    parts = task.prepare(batch)
    return given[0], parts


def test_the_teacher_sees_the_mixed_images_in_its_own_normalisation(tmp_path):
    own = run_folder(tmp_path / "t", data__mean=(0.1, 0.2, 0.3), data__std=(0.5, 0.6, 0.7))
    task = distilled(own, tmp_path, augment=replace(STILL, mixup=0.8, cutmix=1.0))
    torch.manual_seed(0)
    batch = whole(three(), task.recipe)
    images, (mixed, targets, logits) = seen(task, batch)
    assert not torch.equal(mixed, batch.images)
    data, theirs = task.recipe.data, ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = mixed * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    back = images * torch.tensor(theirs[1]).view(3, 1, 1) + torch.tensor(theirs[0]).view(3, 1, 1)
    assert torch.allclose(pixels, back, atol=1e-5)
    assert torch.allclose(logits, task.teacher.model(images), atol=1e-6)
    assert ((targets > 0).sum(1) > 1).any()


def test_the_teacher_sees_its_own_size(tmp_path):
    own = run_folder(tmp_path / "t", data__img_size=12)
    task = distilled(own, tmp_path, augment=replace(STILL, mixup=0.8))
    images, (mixed, *_) = seen(task, whole(three(), task.recipe))
    expected = F.interpolate(mixed, size=(12, 12), mode="bicubic", antialias=True)
    assert torch.allclose(images, expected, atol=1e-5)


def test_classes_may_stand_in_another_order(teacher, tmp_path):
    turned = source([0, 1, 2] * 4, ["c", "a", "b"])
    ours, same = distilled(teacher, tmp_path / "1", turned), distilled(teacher, tmp_path / "2")
    batch = whole(three(), same.recipe)
    assert torch.equal(ours.teacher(batch.images), same.teacher(batch.images)[:, [2, 0, 1]])


def test_the_teacher_is_not_trained(teacher, tmp_path):
    task = distilled(teacher, tmp_path)
    assert not task.teacher.model.training
    assert not any(parameter.requires_grad for parameter in task.teacher.model.parameters())
    assert not task.prepare(whole(three(), task.recipe))[2].requires_grad


@pytest.mark.parametrize(
    ("changes", "classes", "said"),
    [
        ({}, ["a", "b"], "toy has 3 classes and the teacher 2"),
        ({}, ["a", "b", "sea"], "the class 'c' of toy is not one of the teacher's"),
        ({"task": "multilabel"}, None, "was trained for multilabel; it must give one class an image"),
        ({"task": "masked_patches"}, None, "was trained for masked_patches; it must give one class an image"),
        (
            {"data__in_chans": 1, "data__mean": (0.5,), "data__std": (0.5,)},
            None,
            "sees images of 1 channels and the student of 3; set --data.in-chans 1",
        ),
    ],
)
def test_a_teacher_of_other_things_is_refused(tmp_path, changes, classes, said):
    with pytest.raises(UserError, match=said):
        distilled(run_folder(tmp_path / "t", classes, **changes), tmp_path)


def test_several_labels_have_no_teacher(teacher, tmp_path):
    with pytest.raises(UserError, match="the task is multilabel; leave"):
        distilled(teacher, tmp_path, task="multilabel")


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="'runs/x' is neither a run folder nor a model"):
        distilled(Path("runs/x"), tmp_path)


# ------------------------------------------------------------------ what the teacher said once


def test_kept_answers_are_the_teachers_and_it_is_not_asked_again(teacher, tmp_path, monkeypatch):
    task = distilled(teacher, tmp_path)
    batch = whole(three(), task.recipe)
    fresh = task.teacher(batch.images)
    order = torch.tensor([7, 2, 2, 11])
    some = replace(batch, images=batch.images[order], labels=batch.labels[order], index=order)
    assert torch.allclose(task.prepare(some)[2], fresh[order], atol=1e-5)
    monkeypatch.setattr(task.teacher.model, "forward", None)
    assert torch.allclose(task.prepare(batch)[2], fresh, atol=1e-5)

    again = distilled(teacher, tmp_path)  # a resumed run
    monkeypatch.setattr(again.teacher.model, "forward", None)
    assert torch.equal(again.prepare(some)[2], task.prepare(some)[2])


def test_answers_of_another_teacher_are_not_believed(teacher, tmp_path):
    batch = whole(three(), recipe())
    distilled(teacher, tmp_path).prepare(batch)
    other = distilled(run_folder(tmp_path / "t", seed=6), tmp_path)
    assert torch.allclose(other.prepare(batch)[2], other.teacher(batch.images), atol=1e-5)
    darker = distilled(teacher, tmp_path, data__mean=(0.1,) * 3)
    seen_now = whole(three(), darker.recipe)
    assert torch.allclose(darker.prepare(seen_now)[2], darker.teacher(seen_now.images), atol=1e-5)


def test_half_a_file_is_written_anew(teacher, tmp_path):
    batch = whole(three(), recipe())
    first = distilled(teacher, tmp_path).prepare(batch)[2]
    whole_file = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole_file[:50])
    assert torch.equal(distilled(teacher, tmp_path).prepare(batch)[2], first)
    assert (tmp_path / FILE).read_bytes() == whole_file


def test_an_image_that_was_damaged_then_is_asked_for_now(teacher, tmp_path, monkeypatch):
    task = distilled(teacher, tmp_path)
    split = task.source.splits["train"]
    read = split.read

    def broken(i: int) -> torch.Tensor:
        if i == 3:
            raise OSError
        return read(i)

    with monkeypatch.context() as patched:
        patched.setattr(split, "read", broken)
        task.prepare(whole(three(), task.recipe))
    assert task.known[3].isnan().all()
    assert task.known[4].isfinite().all()
    batch = whole(three(), task.recipe)
    assert torch.allclose(task.prepare(batch)[2], task.teacher(batch.images), atol=1e-5)


def test_random_images_are_asked_for_every_time(teacher, tmp_path):
    task = distilled(teacher, tmp_path, augment=replace(STILL, flip=0.5))
    task.prepare(whole(three(), task.recipe))
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("changes", "still"),
    [
        ({}, True),
        ({"mixup": 0.8, "mix_prob": 0.0}, True),
        ({"crop": "padded"}, False),
        ({"crop": "resized"}, False),
        ({"flip": 0.5}, False),
        ({"rotate": 5.0}, False),
        ({"rand_augment": 2}, False),
        ({"auto_augment": "cifar10"}, False),
        ({"color_jitter": 0.1}, False),
        ({"erasing": 0.25}, False),
        ({"mixup": 0.8}, False),
        ({"cutmix": 1.0}, False),
    ],
)
def test_what_makes_images_random(changes, still):
    assert nothing_random(replace(STILL, **changes)) == still


def test_without_augmentation_training_shows_what_scoring_shows():
    chosen: Recipe = recipe()
    data = source([0, 1, 2], ["a", "b", "c"], side=11)
    shown = train_transform(
        Augment(crop="none", flip=0.0), img_size=8, mean=chosen.data.mean, std=chosen.data.std, interpolation="bicubic"
    )
    training = Loader(data.splits["train"], shown, batch_size=3, seed=1, shuffle=False, workers=0, num_classes=3)
    assert torch.equal(next(training.epoch(4)).images, whole(data, chosen).images)
