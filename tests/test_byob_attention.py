"""The operators of timm's attention ResNets one by one, and the kinds that the tests over all families do not reach."""

from __future__ import annotations

import pytest
import timm
import torch
from rows import ROWS
from test_models import difference, randomise, tiny
from timm.layers.halo_attn import HaloAttn

from vitrail import create_model
from vitrail.errors import UserError
from vitrail.models.byob_operators import HaloAttention

KINDS = ["eca_botnext26ts_256", "lambda_resnet26t", "lambda_resnet26rpt_256", "lamhalobotnet50ts_256"]


def test_halo_attention_equals_timms_on_maps_that_are_not_square() -> None:
    torch.manual_seed(0)
    attention = HaloAttention(16, 1, (16, 24)).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    other = HaloAttn(16).double()
    other.load_state_dict(attention.state_dict(), strict=True)
    x = torch.randn(2, 16, 16, 24, dtype=torch.double)
    torch.testing.assert_close(attention(x), other(x))


def test_halo_attention_says_which_sizes_it_takes() -> None:
    with pytest.raises(UserError, match="multiple of 128"):
        create_model("halo2botnet50ts_256", img_size=224)


@pytest.mark.parametrize("size", [(192, 192), (320, 224)])
def test_lambdas_of_windows_take_other_sizes_as_timm(size: tuple[int, int]) -> None:
    model = randomise(create_model("lambda_resnet26t")).eval()
    other = timm.create_model("lambda_resnet26t").eval()
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert difference(model(images), other(images)) < 1e-4


@pytest.mark.parametrize("name", ["botnet26t_256", "lambda_resnet26rpt_256"])
def test_another_size_at_construction_equals_timms(name: str) -> None:
    model = randomise(create_model(name, img_size=128)).eval()
    other = timm.create_model(name, img_size=128).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert difference(model(images), other(images)) < 1e-4


@pytest.mark.parametrize("name", KINDS)
def test_every_operator_compiles_in_one_graph_and_exports(name: str) -> None:
    torch._dynamo.reset()
    model = tiny(next(row for row in ROWS if row.name == name)).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), expected)
    program = torch.export.export(model, (images,))
    torch.testing.assert_close(program.module()(images), model(images))
