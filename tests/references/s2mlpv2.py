"""S2-MLPv2 from the paper's equations, in float64, cell by cell."""

from __future__ import annotations

from torch import Tensor, nn

from references import Reference
from references.s2mlp import SOURCES, Cells, Parameters, as_cells, gelu, linear, mlp, norm, patches, shifted


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config

    def logits(parameters: Parameters, images: Tensor) -> Tensor:
        p = {name: value.double() for name, value in parameters.items()}
        cells = as_cells(images.double())
        for stage, (size, depth) in enumerate(zip((config.patch_size, 2), config.depths, strict=True)):
            cells = patches(p, f"stages.{stage}.patch_embed.proj", cells, size)
            for i in range(depth):
                cells = block(p, f"stages.{stage}.blocks.{i}", cells)
        return linear(p, "head", sum(cells.values()) / len(cells)).to(images.dtype)

    return logits


def block(p: Parameters, name: str, cells: Cells) -> Cells:
    """Both residual branches."""
    wide = {at: linear(p, f"{name}.attn.fc1", norm(p, f"{name}.norm1", x)) for at, x in cells.items()}
    branches = [{at: x.chunk(3, dim=1)[k] for at, x in wide.items()} for k in range(3)]
    branches[0] = shifted(branches[0], SOURCES)
    branches[1] = shifted(branches[1], SOURCES[2:] + SOURCES[:2])
    total = sum(x for branch in branches for x in branch.values())
    logits = linear(p, f"{name}.attn.split_attention.fc2", gelu(linear(p, f"{name}.attn.split_attention.fc1", total)))
    shares = [part.exp() for part in (logits - logits.max()).chunk(3, dim=1)]
    shares = [share / sum(shares) for share in shares]
    for at in cells:
        mixed = sum(branch[at] * share for branch, share in zip(branches, shares, strict=True))
        x = cells[at] + linear(p, f"{name}.attn.fc2", mixed)
        cells = {**cells, at: x + mlp(p, f"{name}.mlp", norm(p, f"{name}.norm2", x))}
    return cells
