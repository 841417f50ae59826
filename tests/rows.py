"""One row an architecture that the tests run through: what it must count, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Parity = Literal["regular", "slow", "toy"]


@dataclass(frozen=True)
class Row:
    """`params` is exact, for 1000 classes and 3 channels, from the reference."""

    name: str
    params: int
    maps: int = 0
    """Attention maps of one pass at toy size."""
    tiny: dict[str, Any] = field(default_factory=dict)
    """Config changes that make it a toy, `side` its images and `strides` those of the maps of its `pyramid`."""
    side: int = 32
    strides: tuple[int, ...] = (8,)
    shallow: dict[str, Any] = field(default_factory=dict)
    """Config changes under which the first row of a family is compared at other sizes and in training."""
    sizes: tuple[tuple[int, int], ...] = ((192, 192), (256, 256), (320, 224))
    """Images that the full-size model takes as it is; of these three, what is missing is refused."""
    reference: str = "timm"
    """In words, what it is checked against."""
    parity: Parity = "regular"
    """Where it is compared at its native size; "toy": the reference is too slow for that, and compares toys."""
    seen: float | None = None
    """Largest relative difference measured once against the authors' code, which the tests cannot install."""


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}


def _vit(name: str, params: int, pool: int = 0, parity: Parity = "regular") -> Row:
    return Row(name, params, maps=2 + pool, tiny=TINY, shallow={"depth": 2}, parity=parity)


def _mixer(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"patch_size": 8, "depth": 2, "embed_dim": 16, "img_size": 32}
    return Row(name, params, tiny=tiny, shallow={"depth": 2}, sizes=(), parity=parity)


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
    _vit("vit_large_patch32_224", 306_535_400, parity="slow"),
    _vit("vit_large_patch32_384", 306_632_680, parity="slow"),
    _vit("vit_large_patch16_224", 304_326_632, parity="slow"),
    _vit("vit_large_patch16_384", 304_715_752, parity="slow"),
    _vit("vit_large_patch14_224", 304_203_752, parity="slow"),
    _vit("vit_huge_patch14_224", 632_045_800, parity="slow"),
    _vit("vit_giant_patch14_224", 1_012_611_432, parity="slow"),
    _vit("vit_gigantic_patch14_224", 1_844_440_680, parity="slow"),
    _vit("vit_base_patch16_gap_224", 86_566_120),
    _vit("vit_huge_patch14_gap_224", 632_043_240, parity="slow"),
    _vit("vit_huge_patch16_gap_448", 632_949_480, parity="slow"),
    _vit("vit_giant_patch16_gap_224", 1_012_777_576, parity="slow"),
    _vit("vit_base_patch16_siglip_224", 93_653_224, pool=1),
    _vit("vit_base_patch16_siglip_256", 93_699_304, pool=1),
    _vit("vit_base_patch16_siglip_384", 93_945_064, pool=1),
    _vit("vit_base_patch16_siglip_512", 94_289_128, pool=1),
    _vit("vit_large_patch16_siglip_256", 316_981_224, pool=1, parity="slow"),
    _vit("vit_large_patch16_siglip_384", 317_308_904, pool=1, parity="slow"),
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
    _vit("deit3_large_patch16_224", 304_374_760, parity="slow"),
    _vit("deit3_large_patch16_384", 304_763_880, parity="slow"),
    _vit("deit3_huge_patch14_224", 632_126_440, parity="slow"),
    _vit("scaling_vit_xsmall_patch16_224", 6_032_616, pool=1, parity="regular"),
    _vit("scaling_vit_xsmall_patch28_224", 6_404_328, pool=1, parity="regular"),
    _vit("scaling_vit_tiny_patch16_224", 6_161_704, pool=1, parity="regular"),
    _vit("scaling_vit_small_patch32_224", 24_652_264, pool=1, parity="regular"),
    _vit("scaling_vit_small_patch16_224", 23_823_976, pool=1, parity="regular"),
    _vit("scaling_vit_base_patch32_224", 95_309_800, pool=1, parity="slow"),
    _vit("scaling_vit_base_patch28_224", 94_768_360, pool=1, parity="slow"),
    _vit("scaling_vit_base_patch16_224", 93_653_224, pool=1, parity="slow"),
    _vit("scaling_vit_large_patch16_224", 316_919_784, pool=1, parity="slow"),
    _vit("scaling_vit_giant_patch14_224", 1_037_857_384, pool=1, parity="toy"),
    _vit("scaling_vit_gigantic_patch14_224", 1_882_797_416, pool=1, parity="toy"),
    Row("vit_pico_patch8_64", 2_916_328, maps=2, tiny=TINY, reference="timm's class"),
    Row("vit_pico_patch4_32", 2_888_680, maps=2, tiny=TINY, reference="timm's class"),
    Row("vit_pico_patch2_8", 201_000, maps=2, tiny=TINY, reference="timm's class"),
    # ---- vit_hybrid
    # ---- simple_vit
    # ---- swin
    # ---- swinv2
    # ---- focal
    # ---- tnt
    # ---- cpvt
    # ---- cvt
    # ---- convit
    # ---- coatnet
    # ---- mobilevit
    # ---- mvit
    # ---- mvitv2
    # ---- sl_vit
    # ---- sl_swin
    # ---- cait
    # ---- patchconvnet
    # ---- nonlocal_resnet
    # ---- sagan_resnet
    # ---- aa_resnet
    # ---- sasa_resnet
    # ---- lr_net
    # ---- axial_resnet
    # ---- botnet
    # ---- lambda_resnet
    # ---- byob_attention
    _mixer("mixer_s32_224", 19_104_624),
    _mixer("mixer_s16_224", 18_528_264),
    _mixer("mixer_b32_224", 60_293_428, parity="slow"),
    _mixer("mixer_b16_224", 59_880_472, parity="slow"),
    _mixer("mixer_l32_224", 206_939_264, parity="slow"),
    _mixer("mixer_l16_224", 208_196_168, parity="slow"),
    _mixer("mixer_h14_224", 432_350_952, parity="slow"),
    # ---- resmlp
    # ---- gmlp
    # ---- s2mlp
    # ---- cyclemlp
    # ---- convmixer
    # ---- igpt
]
