"""The top of the Hessian's spectrum: closed forms, whole Hessians, and every architecture by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from rows import Row
from test_landscape import Weights, batches, quadratic, state_bytes
from test_models import KINDS, randomise, tiny
from torch import Tensor, nn
from torch.func import functional_call

from vitrail.errors import UserError
from vitrail.interpretability.curvature import block_eigenvalues, dominant, flat, hessian_product, top_eigenvalue
from vitrail.interpretability.stream import trunk


def found_of(matrix: Tensor) -> tuple[float, float]:
    """Value and magnitude for a quadratic with this Hessian."""

    def loss(weights: Tensor, _labels: Tensor) -> Tensor:
        return weights[0] @ matrix @ weights[0] / 2

    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Parameter(torch.ones(len(matrix), dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            return self.vector.expand(len(images), -1)

    found = top_eigenvalue(Vector(), loss, batches(), tolerance=1e-8, iterations=100)
    assert found.converged
    assert found.residual < 1e-3
    return found.value, found.magnitude


@pytest.mark.parametrize(
    ("spectrum", "value", "magnitude"),
    [
        ((10.0, 1.0), 10, 10),
        ((3.0, -10.0, 1.0), 3, -10),
        ((-2.0, -10.0), -2, -10),
        ((5.0, -5.0, 1.0), 5, None),
        ((0.0, 0.0), 0, 0),
        ((4.0,), 4, 4),
    ],
)
def test_spectra(spectrum: tuple[float, ...], value: float, magnitude: float | None) -> None:
    turn = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=torch.Generator().manual_seed(2)))[0]
    for basis in (torch.eye(len(spectrum)), turn):
        basis = basis.double()
        basis = torch.linalg.qr(basis)[0]
        found = found_of(basis @ torch.diag(torch.tensor(spectrum).double()) @ basis.T)
        assert found[0] == pytest.approx(value, abs=1e-6)
        assert found[1] == pytest.approx(magnitude, abs=1e-6) if magnitude is not None else abs(found[1]) <= 5 + 1e-6


def test_a_linear_loss_has_no_curvature() -> None:
    found = top_eigenvalue(Weights(), lambda weights, _: weights.mean(), batches())
    assert (found.value, found.magnitude, found.residual, found.converged) == (0, 0, 0, True)


def test_a_search_cut_short_says_so_and_stays_below() -> None:
    matrix = torch.diag(torch.linspace(1, 10, 50, dtype=torch.float64))
    start = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for iterations in (1, 3, 10, 300):
        found = dominant(lambda v: matrix @ v, start, iterations, 1e-8)
        assert found.value <= 10
        assert (torch.linalg.eigvalsh(matrix) - found.value).abs().min() <= found.residual + 1e-12
        assert found.converged == (iterations == 300)
        values.append(found.value)
    assert values == sorted(values)
    assert values[-1] == pytest.approx(10)


def test_softmax_regression_by_its_formula() -> None:
    """mean_i (diag(p_i) - p_i p_i^T) kron (x_i x_i^T), over batches of unequal size."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False)).double()
    given = [(images[:, :, :2, :2].double(), labels % 4) for images, labels in batches(sizes=(5, 2))]
    x = torch.cat([images for images, _ in given]).flatten(1)
    p = (x @ model[1].weight.detach().T).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    hessian = torch.einsum("nab,nc,nd->acbd", inner, x, x).reshape(48, 48) / len(x)
    found = top_eigenvalue(model, F.cross_entropy, given, tolerance=1e-7, iterations=300)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6)
    product, size, like = hessian_product(model, F.cross_entropy, given)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like)
    torch.testing.assert_close(product(vector), hessian @ vector)


def whole_hessian(model: nn.Module, given: list[tuple[Tensor, Tensor]]) -> Tensor:
    """By torch.autograd.functional, forward passes through spelt-out attention of PyTorch's own."""
    parameters = dict(model.named_parameters())
    sizes = [parameter.numel() for parameter in parameters.values()]

    def loss(vector: Tensor) -> Tensor:
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        state = {name: part.view_as(parameter) for (name, parameter), part in parts}
        values = [F.cross_entropy(functional_call(model, state, (x,)), y) * len(x) for x, y in given]
        return torch.stack(values).sum() / sum(len(x) for x, _ in given)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat(parameters.values()).detach(), vectorize=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_transformer_by_its_whole_hessian(seed: int) -> None:
    """Largest and most negative value of a ViT of 430 parameters, and the product with a vector."""
    model = tiny("vit_tiny_patch16_224", embed_dim=4, depth=1, num_heads=2, mlp_ratio=1, patch_size=4, img_size=8)
    model = model.double().eval()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    given = [(images.double(), labels) for images, labels in batches(8)]
    hessian = whole_hessian(model, given)
    torch.testing.assert_close(hessian, hessian.T)
    spectrum = torch.linalg.eigvalsh(hessian)
    found = top_eigenvalue(model, F.cross_entropy, given, tolerance=1e-7, iterations=500)
    assert found.value == pytest.approx(spectrum[-1].item(), rel=1e-4)
    assert found.magnitude == pytest.approx(max(spectrum.tolist(), key=abs), rel=1e-4)
    product, size, like = hessian_product(model, F.cross_entropy, given)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like)
    torch.testing.assert_close(product(vector), hessian @ vector)


def test_parts_are_blocks_of_the_diagonal() -> None:
    model = tiny("vit_tiny_patch16_224", embed_dim=4, depth=2, num_heads=2, mlp_ratio=1, patch_size=4, img_size=8)
    model = randomise(model).double().eval()
    given = [(images.double(), labels) for images, labels in batches(8)]
    hessian, names = whole_hessian(model, given), dict(model.named_parameters())
    owner = [name for name, parameter in names.items() for _ in range(parameter.numel())]
    for block in trunk(model):
        rows = torch.tensor([name.startswith(f"{block}.") for name in owner])
        chosen = [name for name in names if name.startswith(f"{block}.")]
        product, size, like = hessian_product(model, F.cross_entropy, given, chosen)
        vector = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like)
        torch.testing.assert_close(product(vector), hessian[rows][:, rows] @ vector)
    blocks = block_eigenvalues(model, F.cross_entropy, given, tolerance=1e-2, iterations=15)
    assert list(blocks) == trunk(model)
    largest = torch.linalg.eigvalsh(hessian)[-1].item()
    assert all(0 < found.value <= largest for found in blocks.values()), "a part is never sharper than the whole"
    assert len({found.value for found in blocks.values()}) == len(blocks)


def by_differences(model: nn.Module, given: list[tuple[Tensor, Tensor]], vector: Tensor) -> Tensor:
    """H v as (g(w + e v) - g(w - e v)) / 2 e, through the fused attention that has no second derivative."""
    parameters, step = dict(model.named_parameters()), 1e-6
    parts = vector.split([parameter.numel() for parameter in parameters.values()])
    gradients = []
    for sign in (1, -1):
        state = {
            name: (parameter + sign * step * part.view_as(parameter)).detach().requires_grad_()
            for (name, parameter), part in zip(parameters.items(), parts, strict=True)
        }
        loss = F.cross_entropy(functional_call(model, state, (given[0][0],)), given[0][1])
        gradients.append(flat(torch.autograd.grad(loss, list(state.values()), materialize_grads=True)))
    return (gradients[0] - gradients[1]) / (2 * step)


@pytest.mark.parametrize("row", KINDS, ids=lambda row: row.name)
def test_every_architecture(row: Row) -> None:
    """Symmetric, and what finite differences of the gradient say; the model stays as it is."""
    # a toy SwinV2 pads its windows of 3; see below
    model = randomise(tiny(row, **({"window_size": 4} if row.name.startswith("swinv2") else {}))).double().eval()
    given = [(images.double(), labels) for images, labels in batches(row.side, (2,))]
    before = state_bytes(model)
    product, size, like = hessian_product(model, F.cross_entropy, given)
    u, v = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).to(like) / math.sqrt(size)
    by_u, by_v = product(u), product(v)
    scale = (by_u.norm() * v.norm()).item()
    assert (u @ by_v - v @ by_u).abs().item() < 1e-9 * scale
    assert (by_differences(model, given, v) - by_v).norm() < 1e-5 * by_v.norm()
    assert by_v.norm() > 0
    assert state_bytes(model) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_two_iterations_in_float32_leave_no_trace() -> None:
    model = randomise(tiny("deit_tiny_distilled_patch16_224")).train()
    before = state_bytes(model)
    one, two = (top_eigenvalue(model, F.cross_entropy, batches(), iterations=2) for _ in range(2))
    assert one == two
    assert one.iterations == 4
    assert one.images == 5
    assert not one.converged
    assert model.training
    assert state_bytes(model) == before


def test_mistakes() -> None:
    model = Weights()
    with pytest.raises(UserError, match="there is no parameter nose"):
        top_eigenvalue(model, quadratic, batches(), parameters=["matrix", "nose"])
    with pytest.raises(UserError, match="no parameter name in the list"):
        top_eigenvalue(model, quadratic, batches(), parameters=[])
    with pytest.raises(UserError, match="no images"):
        top_eigenvalue(model, quadratic, [])
    padded = randomise(tiny("swinv2_tiny_window8_256", depths=(1, 1, 1, 1)))
    with pytest.raises(UserError, match=r"not finite.*padding"):
        top_eigenvalue(padded, F.cross_entropy, batches(sizes=(1,)), iterations=1)
    assert top_eigenvalue(model, quadratic, batches(), parameters=["matrix"]).value == pytest.approx(12, rel=1e-2)
