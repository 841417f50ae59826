"""iGPT: colours, the two objectives and the features of every layer, beside transformers."""

from __future__ import annotations

import math

import pytest
import torch
from references.igpt import Probed, nearest
from test_models import difference, randomise
from torch import Tensor, nn

from vitrail import create_model, record
from vitrail.errors import UserError

TOY = {"embed_dim": 16, "depth": 3, "num_heads": 2, "probe_layer": 1, "img_size": 6, "num_classes": 5}


def toy(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return randomise(create_model("igpt_small_32", **{**TOY, **changes})).eval()


def theirs(model: nn.Module) -> Probed:
    """transformers' model with our weights; the mask taken away where ours has none."""
    other = Probed(model).eval()
    other.load_state_dict(model.state_dict())
    for block in other.transformer.h:
        block.attn.bias |= not model.config.causal
    return other


def pictures(count: int = 2, side: int = 6) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("sizes", [{}, {"embed_dim": 512, "num_heads": 8, "img_size": 32}], ids=["toy", "wide"])
def test_predicted_colours_equal_transformers(sizes: dict[str, int]) -> None:
    model = toy(**sizes)
    images = pictures(side=model.config.img_size)
    other = theirs(model)
    with torch.no_grad():
        expected = super(Probed, other).forward(other.started(images)).logits
        colours = model.quantise(images)
        found = model.colour_logits(colours)
        loss = model.generative_loss(images)
    assert expected.std() > 0.1
    assert difference(found, expected) < 1e-4
    chosen = expected.log_softmax(2).gather(2, colours[:, :, None])
    torch.testing.assert_close(loss, -chosen.mean(), rtol=1e-4, atol=1e-4)


def test_features_of_every_layer_equal_transformers() -> None:
    model, images = toy(), pictures()
    other = theirs(model)
    with torch.no_grad():
        states = other.transformer(other.started(images), output_hidden_states=True).hidden_states
        expected = [block.ln_1(state) for block, state in zip(other.transformer.h, states, strict=False)]
        for layer, features in enumerate([*expected, states[-1]]):
            assert difference(model.features(images, layer), features) < 1e-5
        assert torch.equal(model.forward_features(images), model.features(images, 1))
        assert difference(model(images), other(images)) < 1e-5


def test_a_prediction_sees_the_pixels_before_it_alone() -> None:
    model, colours = toy(), torch.randint(0, 512, (1, 36))
    changed = colours.clone()
    changed[:, 20] = (colours[:, 20] + 1) % 512
    with torch.no_grad():
        before, after = model.colour_logits(colours), model.colour_logits(changed)
    assert torch.equal(before[:, :21], after[:, :21])
    assert (before[:, 21:] != after[:, 21:]).any(2).all()


def test_causal_maps_lie_where_pixels_are_predicted_and_read() -> None:
    model = toy(probe_layer=3)
    with torch.no_grad(), record(model) as maps:
        model(pictures())
    weights, places = maps["transformer.h.0.attn"], maps.places["transformer.h.0.attn"]
    assert torch.equal(weights, weights.tril())
    assert places.queries[0].tolist() == list(range(36))
    assert places.keys[0, 0].tolist() == list(range(-1, 35))  # the start token lies nowhere


def test_bert_objective_equals_transformers_without_its_mask() -> None:
    model = toy(causal=False)
    colours = torch.randint(0, 512, (2, 36))
    hidden = torch.rand(2, 36) < 0.3
    other = theirs(model)
    with torch.no_grad():
        embedded = other.transformer.wte(colours) * ~hidden[:, :, None]
        expected = super(Probed, other).forward(inputs_embeds=embedded).logits
        found = model.colour_logits(colours, hidden)
        loss = model.bert_loss(colours, hidden)
    assert difference(found, expected) < 1e-4
    chosen = -expected.log_softmax(2).gather(2, colours[:, :, None])[:, :, 0]
    means = [chosen[k][hidden[k]].mean() for k in range(2)]
    torch.testing.assert_close(loss, sum(means) / 2, rtol=1e-4, atol=1e-4)


def test_bert_objective_ignores_what_is_not_hidden_and_does_not_see_what_is() -> None:
    model = toy(causal=False)
    colours, hidden = torch.randint(0, 512, (2, 36)), torch.rand(2, 36) < 0.3
    kept: list[Tensor] = []
    handle = model.lm_head.register_full_backward_hook(lambda _module, _inputs, outputs: kept.append(outputs[0]))
    model.bert_loss(colours, hidden).backward()
    handle.remove()
    assert torch.equal(kept[0].abs().sum(2) > 0, hidden)
    other = torch.where(hidden, (colours + 7) % 512, colours)
    with torch.no_grad():
        assert torch.equal(model.colour_logits(colours, hidden), model.colour_logits(other, hidden))
    assert model.bert_loss(colours, torch.zeros_like(hidden)) == 0  # nothing hidden, nothing to predict


def test_bert_hides_the_papers_share() -> None:
    model = create_model("igpt_small_32", **{**TOY, "img_size": 32, "causal": False})
    shares: list[Tensor] = []
    model.bert_loss = lambda colours, hidden: shares.append(hidden.float().mean()) or colours.sum()
    model.generative_loss(pictures(8, 32))
    assert shares[0].item() == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize("causal", [True, False], ids=["autoregressive", "bert"])
def test_learns_to_predict_colours(causal: bool) -> None:
    torch.manual_seed(0)
    model = create_model("igpt_small_32", **{**TOY, "causal": causal}).train()
    images = pictures(4).round()  # 3 levels a channel: 27 colours
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model.generative_loss(images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(512), abs=1e-3)  # all colours alike
    assert losses[-1] < math.log(27)


def test_pixels_go_to_the_nearest_colour() -> None:
    model, images = toy(), pictures()
    assert model.clusters.shape == (512, 3)
    assert torch.equal(model.clusters.unique(), torch.linspace(-1, 1, 8))
    assert torch.equal(model.quantise(images), nearest(images, model.clusters))
    model.clusters.copy_(torch.rand(512, 3) * 2 - 1)
    assert torch.equal(model.quantise(images), nearest(images, model.clusters))
    exact = model.clusters[:36].T.reshape(1, 3, 6, 6)
    assert torch.equal(model.quantise(exact)[0], torch.arange(36))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.quantise(exact)[0], torch.arange(36))


@pytest.mark.parametrize(("channels", "count"), [(1, 512), (2, 22**2), (4, 4**4)])
def test_other_channels_have_as_fine_a_grid_as_512_colours_allow(channels: int, count: int) -> None:
    clusters = toy(in_chans=channels).clusters
    assert clusters.shape == (count, channels)
    assert len(clusters.unique(dim=0)) == count


def test_colours_are_saved_with_the_weights() -> None:
    model, other = toy(), toy()
    model.clusters.copy_(torch.rand(512, 3))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.clusters, model.clusters)


def test_loads_the_hubs_file_but_for_colours_and_head() -> None:
    from vitrail.weights.layouts import to_timm_keys

    model = toy(num_classes=0)
    hub = {**theirs(toy()).state_dict(), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    hub = {key: value for key, value in hub.items() if not key.startswith(("clusters", "head"))}
    assert model.state_dict().keys() - to_timm_keys(hub, model).keys() == {"clusters"}
    assert not to_timm_keys(hub, model).keys() - model.state_dict().keys()
    probe = toy(num_classes=0, generative=False)
    assert not to_timm_keys(hub, probe).keys() - probe.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"probe_layer": 4}, "must be 1 to 3"),
        ({"probe_layer": 0}, "must be 1 to 3"),
        ({"num_heads": 3}, "not divisible by num_heads 3"),
    ],
)
def test_mistakes_at_construction(changes: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        toy(**changes)


def test_mistakes_in_use() -> None:
    model = toy(generative=False)
    with pytest.raises(UserError, match="6x6 pixels, not 8x8"):
        model(pictures(side=8))
    with pytest.raises(UserError, match="generative=True"):
        model.generative_loss(pictures())
