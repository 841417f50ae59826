"""Tokens, positions, blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from torch import nn

from vitrail.errors import UserError
from vitrail.layers.blocks import DropPath, LayerScale, drop_path_rates
from vitrail.layers.position import resize_position
from vitrail.layers.tokens import PatchEmbed


def test_patches_are_in_reading_order() -> None:
    embed = PatchEmbed(2, 1, 4)
    with torch.no_grad():
        embed.proj.weight.copy_(torch.eye(4).view(4, 1, 2, 2))  # each channel copies one pixel of the patch
        embed.proj.bias.zero_()
        tokens = embed(torch.arange(16.0).view(1, 1, 4, 4))
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_sides_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="30x32 is not divisible by the patch size 8; the nearest sizes are 24 and 32"):
        PatchEmbed(8, 3, 4).grid(30, 32)


@settings(deadline=None, max_examples=25)
@given(old=st.integers(1, 12), height=st.integers(1, 20), width=st.integers(1, 20), prefix=st.integers(0, 2))
def test_position_resizing_is_timms(old: int, height: int, width: int, prefix: int) -> None:
    table = torch.randn(1, prefix + old * old, 6, generator=torch.Generator().manual_seed(old))
    resized = resize_position(table, (height, width), prefix)
    # timm leaves a table of the right length alone; told the old grid, it looks at the shape as well
    expected = resample_abs_pos_embed(table, [height, width], [old, old], num_prefix_tokens=prefix)
    torch.testing.assert_close(resized, expected)
    assert torch.equal(resized[:, :prefix], table[:, :prefix])


def test_drop_path_keeps_the_expectation_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.3).train()(torch.ones(20000, 3, 2))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert torch.equal(dropped[:, 0, 0], dropped[:, 2, 1])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(DropPath(0.3).eval()(torch.ones(4)), torch.ones(4))


def test_drop_path_rates_rise_linearly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.0]


def test_layer_scale_is_a_factor_a_channel() -> None:
    scale = LayerScale(3, init=0.5)
    nn.init.constant_(scale.gamma, 2.0)
    assert torch.equal(scale(torch.ones(2, 3)), torch.full((2, 3), 2.0))
