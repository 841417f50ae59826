"""The one attention: watched equals unwatched, for every kind of bias, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitrail.layers import attention
from vitrail.layers.attention import Attention, attend, attention_weights, probing, record


def qkv(n: int, m: int, lead: tuple[int, ...] = (2, 3)) -> list[torch.Tensor]:
    torch.manual_seed(n * 31 + m)
    return [torch.randn(*lead, tokens, 8, dtype=torch.float64, requires_grad=True) for tokens in (n, m, m)]


BIASES = {
    "none": lambda *_: None,
    "float": lambda n, m: torch.randn(3, n, m, dtype=torch.float64, requires_grad=True),
    "bool": lambda n, m: torch.rand(2, 1, n, m) > 0.4,
    "broadcast": lambda n, m: torch.randn(1, 1, n, m, dtype=torch.float64),
}


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 9), m=st.integers(2, 9), scale=st.one_of(st.none(), st.floats(0.1, 2)))
@pytest.mark.parametrize("kind", BIASES)
def test_watched_equals_unwatched(kind: str, n: int, m: int, scale: float | None) -> None:
    site = nn.Identity().eval()
    tensors = qkv(n, m)
    bias = BIASES[kind](n, m)
    if kind == "bool":
        bias[..., 0] = True  # no row may be empty
    leaves = [*tensors, bias] if bias is not None and bias.requires_grad else tensors
    results = []
    for watch in (False, True):
        model = nn.ModuleList([site])
        with record(model if watch else nn.Identity()) as maps:
            out = attend(*tensors, site=site, bias=bias, scale=scale) if watch else plain(tensors, site, bias, scale)
        assert ("0" in maps) == watch
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for unwatched, watched in zip(*results, strict=True):
        torch.testing.assert_close(watched, unwatched, rtol=1e-10, atol=1e-12)


def plain(tensors, site, bias, scale):
    """An unwatched call, wherever the caller stands."""
    probes, attention._probes[:] = list(attention._probes), []
    try:
        return attend(*tensors, site=site, bias=bias, scale=scale)
    finally:
        attention._probes[:] = probes


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("learned", [False, True])
def test_what_learns_unfused_equals_the_fused_kernel(learned: bool, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(4, 3, 49, 32, dtype=dtype, requires_grad=True) for _ in range(3)]
    bias = torch.randn(1, 3, 49, 49, requires_grad=learned)
    leaves = [*tensors, bias] if learned else tensors
    assert attention._learns_faster_unfused(*tensors[:2], bias) == (learned or dtype == torch.bfloat16)
    fused = F.scaled_dot_product_attention(*tensors, attn_mask=bias.to(dtype))
    results = [
        [out, *torch.autograd.grad(out.float().square().sum(), leaves)]
        for out in (attend(*tensors, site=nn.Identity(), bias=bias), fused)
    ]
    for ours, theirs in zip(*results, strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


def test_the_fused_kernel_is_left_only_where_a_cpu_learns() -> None:
    q = torch.randn(1, 2, 8, 4, dtype=torch.bfloat16, requires_grad=True)
    many = torch.randn(1, 2, attention.FEW + 1, 4, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(1, 2, 8, 8, requires_grad=True)
    assert attention._learns_faster_unfused(q, q, None)
    assert not attention._learns_faster_unfused(many, many, None)
    assert not attention._learns_faster_unfused(q.float(), q.float(), None)
    assert not attention._learns_faster_unfused(*[q.to("meta")] * 2, bias)
    with torch.no_grad():
        assert not attention._learns_faster_unfused(q, q, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention._learns_faster_unfused(q.float(), q.float(), None)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("watch", [False, True])
def test_a_bias_of_the_parts_of_a_picture_counts_for_each_picture(watch: bool, learned: bool) -> None:
    site = nn.Identity().eval()
    q, k, v = qkv(5, 5, lead=(6, 3))
    bias = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=learned)
    with record(nn.ModuleList([site]) if watch else nn.Identity()) as maps:
        out = attend(q, k, v, site=site, bias=bias) if watch else plain((q, k, v), site, bias, None)
    expected = attention_weights(q, k, bias=bias.repeat(3, 1, 1, 1))
    torch.testing.assert_close(out, expected @ v)
    if watch:
        torch.testing.assert_close(maps["0"], expected)


def test_a_probe_can_change_the_outcome() -> None:
    layer = Attention(16, 4).eval()
    x = torch.randn(2, 5, 16)
    seen = []

    def silence_head_2(site: nn.Module, weights: torch.Tensor) -> torch.Tensor:
        seen.append(site)
        keep = torch.ones(4).index_fill(0, torch.tensor([2]), 0.0)
        return weights * keep[:, None, None]

    with torch.no_grad(), probing(silence_head_2):
        ablated = layer(x)
        q, k, v = layer.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        heads = attention_weights(q, k) @ v
    heads[:, 2] = 0
    assert seen == [layer]
    torch.testing.assert_close(ablated, layer.proj(heads.transpose(1, 2).flatten(2)))
    assert not torch.allclose(ablated, layer(x))


def test_maps_carry_gradients() -> None:
    layer = Attention(16, 4)
    model = nn.Sequential(layer)
    with record(model) as maps:
        loss = model(torch.randn(1, 5, 16)).square().sum()
    (gradient,) = torch.autograd.grad(loss, maps["0"])
    assert gradient.shape == (1, 4, 5, 5)
    assert gradient.abs().sum() > 0


def test_only_the_model_asked_for_is_recorded_and_the_list_is_emptied() -> None:
    one, other = nn.Sequential(Attention(8, 2)), nn.Sequential(Attention(8, 2))
    x = torch.randn(1, 3, 8)
    with record(one) as outer:
        other(x)
        with record(other) as inner:
            other(x)
            one(x)
    assert list(outer) == ["0"]
    assert list(inner) == ["0"]
    assert outer["0"] is not inner["0"]
    with pytest.raises(RuntimeError), record(one):
        one(torch.randn(1, 3, 7))
    assert attention._probes == []


def test_half_precision_maps_are_float32_and_rows_sum_to_1() -> None:
    model = nn.Sequential(Attention(16, 4)).to(torch.bfloat16)
    with torch.no_grad(), record(model) as maps:
        out = model(torch.randn(1, 50, 16, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert maps["0"].dtype == torch.float32
    torch.testing.assert_close(maps["0"].sum(-1), torch.ones(1, 4, 50))


def test_dropout_acts_in_training_only() -> None:
    site = nn.Identity()
    q, k, v = (tensor.detach() for tensor in qkv(4, 6))
    for watch in (False, True):
        with record(nn.ModuleList([site]) if watch else nn.Identity()):
            site.train()
            assert not torch.equal(attend(q, k, v, site=site, dropout=0.5), attend(q, k, v, site=site, dropout=0.5))
            site.eval()
            torch.testing.assert_close(attend(q, k, v, site=site, dropout=0.5), attention_weights(q, k) @ v)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="not divisible"):
        Attention(10, 3)
