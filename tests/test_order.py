"""Which images make which batch: the released sampler's copies, equal classes, and pairs that stay together."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.order import Order, Plan, share_of_batch
from vitrail.errors import UserError


def order(labels: list, *, seed: int = 3, repeats: int = 1, balanced: bool = False, shuffle: bool = True) -> Order:
    return Order(labels, seed=seed, shuffle=shuffle, repeats=repeats, balanced=balanced)


def drawn(which: Order, epoch: int = 0) -> tuple[list[int], list[int]]:
    index, copy = which.of(epoch)
    return index.tolist(), copy.tolist()


def released_sampler(shuffled: list[int], repeats: int, rank: int, world: int) -> list[int]:
    """DeiT's samplers.py (facebookresearch/deit 7e160fe): each index `repeats` times, dealt in turn, cut to 1/world of
    a multiple of 256."""
    indices = [i for i in shuffled for _ in range(repeats)]
    samples = math.ceil(len(shuffled) * repeats / world)
    indices += indices[: samples * world - len(indices)]
    return indices[rank : samples * world : world][: len(shuffled) // 256 * 256 // world]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("repeats", [2, 3])
def test_copies_are_the_released_samplers(world: int, repeats: int) -> None:
    shuffled, _ = drawn(order([0] * 1024))
    theirs = [i for rank in range(world) for i in released_sampler(shuffled, repeats, rank, world)]
    ours, copies = drawn(order([0] * 1024, repeats=repeats))
    assert Counter(ours) == Counter(theirs)
    assert ours == [i for i in shuffled for _ in range(repeats)][:1024]
    assert copies == [k % repeats for k in range(1024)]


@pytest.mark.parametrize(("images", "repeats"), [(1000, 3), (12, 5), (7, 7), (5, 9)])
def test_copies_come_as_often_as_timms(images: int, repeats: int) -> None:
    from timm.data.distributed_sampler import RepeatAugSampler

    theirs = RepeatAugSampler(range(images), num_replicas=1, rank=0, num_repeats=repeats, selected_round=0)
    ours, _ = drawn(order([0] * images, repeats=repeats))
    assert Counter(Counter(ours).values()) == Counter(Counter(int(i) for i in theirs).values())
    assert len(ours) == images


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=80), st.integers(1, 4), st.integers(0, 4))
def test_balanced_draws_every_class_and_within_it_every_image_equally_often(
    labels: list[int], repeats: int, epoch: int
) -> None:
    index, copies = drawn(order(labels, balanced=True), epoch)
    assert len(index) == len(labels)
    for beginning in range(1, len(index) + 1):
        counts = Counter(labels[i] for i in index[:beginning])
        assert max(counts.values()) - min(counts[k] for k in set(labels)) <= 1
    times = Counter(index)
    for k in set(labels):
        each = [times[i] for i in range(len(labels)) if labels[i] == k]
        assert max(each) - min(each) <= 1
    assert len(set(zip(index, copies, strict=True))) == len(index), "an image that comes again has another number"
    assert all(copies[k] == Counter(index[:k])[i] for k, i in enumerate(index))
    again, numbers = drawn(order(labels, balanced=True, repeats=repeats), epoch)
    assert again == [i for i in index for _ in range(repeats)][: len(labels)], "balanced first, then repeated"
    assert len(set(zip(again, numbers, strict=True))) == len(labels)


def test_balanced_is_a_pure_function_of_seed_and_epoch_and_random_in_both() -> None:
    labels = [0] * 900 + [5] * 90 + [7] * 10
    one = order(labels, balanced=True)
    assert drawn(one, 2) == drawn(order(labels, balanced=True), 2)
    assert drawn(one, 2) != drawn(one, 3)
    assert drawn(one, 2) != drawn(order(labels, balanced=True, seed=4), 2)
    seen = {i for epoch in range(12) for i in drawn(one, epoch)[0]}
    assert len(seen) > 980, "over the epochs all images of a large class are drawn"
    firsts = Counter(labels[drawn(one, epoch)[0][0]] for epoch in range(300))
    assert min(firsts.values()) > 70, "the turns of a round are shuffled"


def test_a_plain_epoch_is_as_it_was() -> None:
    """The permutation that every run so far was made with."""
    index, copy = order([0] * 10, seed=7).of(3)
    assert index.tolist() == [1, 5, 7, 8, 2, 6, 3, 9, 4, 0]
    assert not copy.any()
    assert drawn(order([0] * 4, shuffle=False))[0] == [0, 1, 2, 3]


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match=r"^data.balanced needs one label an image"):
        order([[0, 1], [1]], balanced=True)
    with pytest.raises(UserError, match=r"^data.repeats is 0"):
        order([0, 1], repeats=0)
    for wrong in ({"repeats": 2}, {"balanced": True}):
        with pytest.raises(UserError, match="shuffled"):
            order([0, 1], shuffle=False, **wrong)


# Shares of a batch


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 40), st.integers(1, 7))
def test_pairs_stay_together_and_a_share_flipped_is_the_batch_flipped(images: int, world: int) -> None:
    shares = [share_of_batch(images, rank, world) for rank in range(world)]
    assert sorted(place for share in shares for place in share) == list(range(images))
    for rank, share in enumerate(shares):
        assert share == sorted(share)
        assert share[::-1] == [images - 1 - place for place in share]
        assert all(min(place, images - 1 - place) % world == rank for place in share)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 3, "at most a pair and the middle one"


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_all_processes_together_read_what_one_would(world: int, drop_last: bool) -> None:
    labels = list(np.random.default_rng(0).integers(0, 4, 53))
    which = order([int(k) for k in labels], repeats=3, balanced=True)
    alone = Plan(which, 10, drop_last=drop_last, rank=0, world=1)
    plans = [Plan(which, 10, drop_last=drop_last, rank=rank, world=world) for rank in range(world)]
    for plan in (alone, *plans):
        plan.epoch, plan.start = 2, 1
    whole, shares = list(alone), [list(plan) for plan in plans]
    assert len(whole) == len(alone) - 1
    assert {len(share) for share in shares} == {len(whole)}
    for k, batch in enumerate(whole):
        assert sorted(key for share in shares for key in share[k]) == sorted(batch)
        assert len(batch) == len(set(batch))


@pytest.mark.parametrize("options", [{}, {"repeats": 3}, {"balanced": True, "repeats": 3}])
def test_an_epoch_of_a_million_images_begins_at_once(options: dict) -> None:
    which = order([i % 1000 for i in range(1_000_000)], **options)
    began = time.process_time()
    batch = next(iter(Plan(which, 1024, drop_last=True, rank=0, world=1)))
    assert time.process_time() - began < 3
    assert len(batch) == 1024
