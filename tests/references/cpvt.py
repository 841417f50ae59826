"""timm's VisionTransformer without positions, with the PosConv of timm's Twins after its first blocks."""

from __future__ import annotations

from timm.models.twins import PosConv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, cat, nn

from references import Reference, loaded, sizes


class Conditional(VisionTransformer):
    """timm's ViT with `pos_block`."""

    pos_block: nn.ModuleList

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        grid = x.shape[1:3]
        x = self._pos_embed(x)
        prefix = self.num_prefix_tokens
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < len(self.pos_block):
                x = cat([x[:, :prefix], self.pos_block[index](x[:, prefix:], grid)], dim=1)
        return self.forward_head(self.norm(x))


def build(model: nn.Module, _name: str, _size: tuple[int, int]) -> Reference:
    """Every size as ours."""
    config = model.config
    other = Conditional(
        **sizes(model),
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        class_token=config.global_pool == "token",
        global_pool=config.global_pool,
        fc_norm=False,
        pos_embed="none",
        dynamic_img_size=True,
    )
    other.pos_block = nn.ModuleList([PosConv(config.embed_dim, config.embed_dim) for _ in range(config.num_pegs)])
    return loaded(other, model)
