"""One row an architecture that the tests run through: what it must count, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """`params` is exact, for 1000 classes and 3 channels, from the reference; `tiny` shrinks the Config for fast tests.

    `full` says where the native-size comparison runs: in the regular suite up to Base, else behind the slow marker.
    """

    name: str
    params: int
    maps: int
    tiny: dict[str, Any] = field(default_factory=dict)
    reference: str = "timm"
    full: bool = True


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}


def _vit(name: str, params: int, depth: int = 12, pool: int = 0, full: bool = True) -> Row:
    return Row(name, params, maps=depth + pool, tiny=TINY, full=full)


ROWS = [
    _vit("vit_tiny_patch16_224", 5_717_416),
    _vit("vit_tiny_patch16_384", 5_790_376),
    _vit("vit_small_patch32_224", 22_878_952),
    _vit("vit_small_patch32_384", 22_915_432),
    _vit("vit_small_patch16_224", 22_050_664),
    _vit("vit_small_patch16_384", 22_196_584),
    _vit("vit_small_patch8_224", 22_055_272),
    _vit("vit_base_patch32_224", 88_224_232),
    _vit("vit_base_patch32_384", 88_297_192),
    _vit("vit_base_patch16_224", 86_567_656),
    _vit("vit_base_patch16_384", 86_859_496),
    _vit("vit_base_patch8_224", 86_576_872),
    _vit("vit_large_patch32_224", 306_535_400, 24, full=False),
    _vit("vit_large_patch32_384", 306_632_680, 24, full=False),
    _vit("vit_large_patch16_224", 304_326_632, 24, full=False),
    _vit("vit_large_patch16_384", 304_715_752, 24, full=False),
    _vit("vit_large_patch14_224", 304_203_752, 24, full=False),
    _vit("vit_huge_patch14_224", 632_045_800, 32, full=False),
    _vit("vit_giant_patch14_224", 1_012_611_432, 40, full=False),
    _vit("vit_gigantic_patch14_224", 1_844_440_680, 48, full=False),
    _vit("vit_base_patch16_gap_224", 86_566_120),
    _vit("vit_huge_patch14_gap_224", 632_043_240, 32, full=False),
    _vit("vit_huge_patch16_gap_448", 632_949_480, 32, full=False),
    _vit("vit_giant_patch16_gap_224", 1_012_777_576, 40, full=False),
    _vit("vit_base_patch16_siglip_224", 93_653_224, pool=1),
    _vit("vit_base_patch16_siglip_256", 93_699_304, pool=1),
    _vit("vit_base_patch16_siglip_384", 93_945_064, pool=1),
    _vit("vit_base_patch16_siglip_512", 94_289_128, pool=1),
    _vit("vit_large_patch16_siglip_256", 316_981_224, 24, pool=1, full=False),
    _vit("vit_large_patch16_siglip_384", 317_308_904, 24, pool=1, full=False),
    _vit("vit_base_patch16_siglip_gap_224", 86_566_120),
    _vit("vit_base_patch16_siglip_gap_256", 86_612_200),
    _vit("vit_base_patch16_siglip_gap_384", 86_857_960),
    _vit("vit_base_patch16_siglip_gap_512", 87_202_024),
    _vit("deit_tiny_patch16_224", 5_717_416),
    _vit("deit_small_patch16_224", 22_050_664),
    _vit("deit_base_patch16_224", 86_567_656),
    _vit("deit_base_patch16_384", 86_859_496),
    _vit("deit_tiny_distilled_patch16_224", 5_910_800),
    _vit("deit_small_distilled_patch16_224", 22_436_432),
    _vit("deit_base_distilled_patch16_224", 87_338_192),
    _vit("deit_base_distilled_patch16_384", 87_630_032),
    _vit("deit3_small_patch16_224", 22_059_496),
    _vit("deit3_small_patch16_384", 22_205_416),
    _vit("deit3_medium_patch16_224", 38_849_512),
    _vit("deit3_base_patch16_224", 86_585_320),
    _vit("deit3_base_patch16_384", 86_877_160),
    _vit("deit3_large_patch16_224", 304_374_760, 24, full=False),
    _vit("deit3_large_patch16_384", 304_763_880, 24, full=False),
    _vit("deit3_huge_patch14_224", 632_126_440, 32, full=False),
]
