"""One row an architecture that the tests run through: what it must count, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    silent: tuple[str, ...] = ()
    """Parameters of the toy that no output depends on, in the paper's own network too."""
    seen: float | None = None
    """Largest relative difference measured once against the authors' code, which the tests cannot install."""


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32}


def _vit(name: str, params: int, pool: int = 0, parity: Parity = "regular") -> Row:
    return Row(name, params, maps=2 + pool, tiny=TINY, shallow={"depth": 2}, parity=parity)


def _mixer(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"patch_size": 8, "depth": 2, "embed_dim": 16, "img_size": 32}
    return Row(name, params, tiny=tiny, shallow={"depth": 2}, sizes=(), parity=parity)


def _tnt(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"embed_dim": 24, "num_heads_outer": 2, "inner_dim": 8, "depth": 2, "patch_size": 8, "img_size": 32}
    return Row(name, params, maps=4, tiny=tiny, shallow={"depth": 2}, parity=parity)


def _hybrid(name: str, params: int, root_only: bool = False, parity: Parity = "regular") -> Row:
    tiny = {**TINY, "patch_size": 2 if root_only else 1, "layers": () if root_only else (1, 1)}
    return Row(name, params, maps=2, tiny=tiny, shallow={"depth": 2}, parity=parity)


def _botnet(
    name: str,
    params: int,
    strides: tuple[int, ...] = (4, 8, 16, 16),
    parity: Literal["regular", "slow"] = "regular",
) -> Row:
    tiny = {"depths": (1, 1, 1, 2), "base_width": 8, "img_size": 64}
    shallow = {"depths": (1, 1, 1, 2)}
    return Row(
        name,
        params,
        maps=2,
        tiny=tiny,
        side=64,
        strides=strides,
        shallow=shallow,
        reference="torchvision's ResNet with timm's BottleneckAttn",
        parity=parity,
    )


def _swin(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"patch_size": 2, "img_size": 32, "embed_dim": 8, "num_heads": (2, 2, 2, 4), "window_size": 3}
    shallow = {"depths": (2, 2, 2, 2)}
    return Row(name, params, maps=8, tiny=tiny | shallow, strides=(2, 4, 8, 16), shallow=shallow, parity=parity)


def _convit(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"embed_dim": 24, "num_heads": 4, "depth": 3, "local_up_to_layer": 2, "patch_size": 8, "img_size": 32}
    shallow = {"depth": 3, "local_up_to_layer": 2}
    return Row(name, params, maps=3, tiny=tiny, shallow=shallow, parity=parity)


def _nonlocal(name: str, params: int, maps: int = 2, parity: Parity = "toy") -> Row:
    one = {"depths": (1, 1, 1, 1), "nonlocal_after": ((), (0,), (0,), ())}
    return Row(
        name,
        params,
        maps=maps,
        tiny={**one, "base_width": 8, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow={**one, "base_width": 16},
        reference="the paper's equations, query by query",
        parity=parity,
    )


def _axial(name: str, params: int, parity: Literal["regular", "slow"] = "regular") -> Row:
    return Row(
        name,
        params,
        maps=8,
        tiny={"depths": (1, 1, 1, 1), "width_factor": 0.125, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow={"depths": (1, 1, 1, 1)},
        sizes=(),
        reference="the equations query by query",
        parity=parity,
        seen=0.0,
    )


def _byob(
    name: str,
    params: int,
    operator: str,
    maps: int = 0,
    sizes: tuple[tuple[int, int], ...] = ((256, 256),),
    **more: int,
) -> Row:
    last = "bot" if operator == "halo" else operator
    tiny = {
        "blocks": (("conv",), ("conv", operator), ("conv",), (last,)),
        "channels": (16, 32, 48, 64),
        "widths": (8, 16, 16, 32),
        "img_size": 64,
        **more,
    }
    return Row(name, params, maps, tiny, side=64, strides=(4, 8, 16, 32), sizes=sizes)


def _lambda(name: str, params: int, seen: float, parity: Literal["regular", "slow", "toy"] = "regular") -> Row:
    return Row(
        name,
        params,
        tiny={"depths": (1, 1, 1, 2), "base_width": 8, "rel_size": 3 if parity == "toy" else 7, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow={"depths": (1, 1, 1, 2)},
        reference="each position's lambda summed by hand" if parity == "toy" else "torchvision with timm's LambdaLayer",
        parity=parity,
        seen=seen,
    )


def _mobilevit(name: str, params: int) -> Row:
    tiny = {"channels": (8, 8, 8, 8, 8), "transformer_dims": (8, 8, 8), "transformer_depths": (1, 1, 1), "img_size": 64}
    return Row(name, params, maps=3, tiny=tiny, side=64, strides=(4, 8, 16, 32))


def _mvit(
    name: str, params: int, last: int = 2, reference: str = "torchvision's video class", parity: Parity = "regular"
) -> Row:
    heads = 3 if "huge" in name else 2 if "large" in name else 1
    tiny = {"embed_dim": heads * 12, "depths": (1, 1, 1, last), "img_size": 32}
    shallow = {"depths": (1, 2, 1, 1)}
    row = Row(name, params, 3 + last, tiny, 32, (4, 8, 16, 32), shallow, reference=reference, parity=parity)
    if not name.endswith("_cls"):
        return row
    unread = [f"stages.3.blocks.{last - 1}.attn.{part}" for part in ("rel_pos_h", "rel_pos_w", "pool_q.weight")]
    return replace(row, silent=tuple(unread))  # the last block is read by the class token alone


def _focal(name: str, params: int, seen: float, parity: Parity = "regular") -> Row:
    tiny = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 2, "expand_size": 1}
    tiny |= {"focal_windows": (5, 3, 3, 1), "img_size": 64}
    shallow = {"depths": (1, 1, 1, 1)}
    return Row(
        name,
        params,
        maps=4,
        tiny=tiny,
        side=64,
        strides=(4, 8, 16, 32),
        shallow=shallow,
        reference="windows one by one, in double precision",
        parity=parity,
        seen=seen,
    )


def _sagan(name: str, params: int, parity: Parity = "toy") -> Row:
    toy = {"depths": (1, 1, 1, 1), "base_width": 8}
    return Row(
        name,
        params,
        maps=1,
        tiny={**toy, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow=toy,
        reference="the paper's equations, query by query",
        parity=parity,
    )


def _coatnet(name: str, params: int, reference: str = "timm", parity: Parity = "regular") -> Row:
    tiny = {"embed_dim": (8, 32, 32, 64), "depths": (1, 2, 2, 1), "stem_width": 8, "img_size": 64}
    shallow = {"depths": (1, 2, 2, 1)}
    return Row(name, params, 3, tiny, 64, (4, 8, 16, 32), shallow, sizes=(), reference=reference, parity=parity)


def _aa(name: str, params: int, share: float = 0.25, parity: Parity = "toy") -> Row:
    toy = {"depths": (1, 1, 1, 1), "base_width": 8, "num_heads": 2, "kappa": share, "upsilon": share}
    return Row(
        name,
        params,
        maps=3,
        tiny={**toy, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow=toy,
        reference="the paper's equations, query by query, offsets looked up",
        parity=parity,
    )


def _sl_vit(name: str, params: int) -> Row:
    about = "the paper's equations, patch by patch and query by query"
    return Row(name, params, maps=2, tiny=TINY, shallow={"depth": 2}, reference=about, seen=7.0e-7)


def _sasa(name: str, params: int, maps: int = 4) -> Row:
    toy = {"depths": (1, 1, 1, 1), "base_width": 8, "num_heads": 2, "kernel_size": 5}
    return Row(
        name,
        params,
        maps=maps,
        tiny={**toy, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow=toy,
        reference="the paper's equations, query by query and key by key",
        parity="toy",
    )


def _lr_net(name: str, params: int) -> Row:
    toy = {"depths": (1, 1, 1, 1), "stem_width": 12, "base_width": 12, "out_width": 32, "kernel_size": 3}
    return Row(
        name,
        params,
        maps=5,
        tiny={**toy, "img_size": 64},
        side=64,
        strides=(4, 8, 16, 32),
        shallow=toy,
        reference="the authors' kernel, written out position by position",
        parity="toy",
    )


def _cvt(name: str, params: int, parity: Parity = "regular") -> Row:
    tiny = {"embed_dim": (8, 16, 32), "num_heads": (1, 2, 4), "depths": (1, 1, 2), "img_size": 32}
    shallow = {"depths": (1, 2, 3)}  # the fewest that transformers builds
    row = Row(name, params, 4, tiny, 32, (4, 8, 16), shallow, reference="transformers", parity=parity)
    unread = [f"stage2.blocks.1.attn.conv_proj_q.{part}" for part in ("conv.weight", "bn.weight", "bn.bias")]
    return replace(row, silent=tuple(unread))  # the last block is read by the class token alone


def _sl_swin(name: str, params: int) -> Row:
    tiny = {"embed_dim": 8, "depths": (2, 2, 1), "num_heads": (2, 2, 4), "window_size": 3}
    tiny |= {"patch_size": 2, "img_size": 32}
    about = "the paper's equations, window by window"
    shallow = {"depths": (2, 2, 1)}
    return Row(name, params, 5, tiny, strides=(2, 4, 8), shallow=shallow, reference=about, seen=4.4e-7)


def _resnet_cifar(name: str, params: int) -> Row:
    about = "the paper's equations, in float64"
    sizes = ((192, 192), (256, 256), (320, 224))
    return Row(name, params, tiny={"depth": 1}, strides=(1, 2, 4), shallow={"depth": 1}, sizes=sizes, reference=about)


ROWS = [
    _vit("vit_tiny_patch16_224", 5_717_416),
    _vit("vit_tiny_patch16_384", 5_790_376),
    _vit("vit_small_patch32_224", 22_878_952),
    _vit("vit_small_patch32_384", 22_915_432),
    _vit("vit_small_patch16_224", 22_050_664),
    _vit("vit_small_patch16_384", 22_196_584),
    _vit("vit_small_patch8_224", 22_055_272),
    _vit("vit_base_patch32_224", 88_224_232, parity="slow"),
    _vit("vit_base_patch32_384", 88_297_192, parity="slow"),
    _vit("vit_base_patch16_224", 86_567_656),
    _vit("vit_base_patch16_384", 86_859_496, parity="slow"),
    _vit("vit_base_patch8_224", 86_576_872, parity="slow"),
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
    _vit("vit_base_patch16_siglip_256", 93_699_304, pool=1, parity="slow"),
    _vit("vit_base_patch16_siglip_384", 93_945_064, pool=1, parity="slow"),
    _vit("vit_base_patch16_siglip_512", 94_289_128, pool=1, parity="slow"),
    _vit("vit_large_patch16_siglip_256", 316_981_224, pool=1, parity="slow"),
    _vit("vit_large_patch16_siglip_384", 317_308_904, pool=1, parity="slow"),
    _vit("vit_base_patch16_siglip_gap_224", 86_566_120, parity="slow"),
    _vit("vit_base_patch16_siglip_gap_256", 86_612_200, parity="slow"),
    _vit("vit_base_patch16_siglip_gap_384", 86_857_960, parity="slow"),
    _vit("vit_base_patch16_siglip_gap_512", 87_202_024, parity="slow"),
    _vit("deit_tiny_patch16_224", 5_717_416),
    _vit("deit_small_patch16_224", 22_050_664),
    _vit("deit_base_patch16_224", 86_567_656, parity="slow"),
    _vit("deit_base_patch16_384", 86_859_496, parity="slow"),
    _vit("deit_tiny_distilled_patch16_224", 5_910_800),
    _vit("deit_small_distilled_patch16_224", 22_436_432),
    _vit("deit_base_distilled_patch16_224", 87_338_192, parity="slow"),
    _vit("deit_base_distilled_patch16_384", 87_630_032, parity="slow"),
    Row("deit_pico_patch4_32", 2_888_680, maps=2, tiny=TINY, reference="timm's class"),
    Row("deit_pico_distilled_patch4_32", 3_082_064, maps=2, tiny=TINY, reference="timm's class"),
    Row("deit_nano_patch8_32", 416_584, maps=2, tiny=TINY, reference="timm's class"),
    Row("deit_nano_distilled_patch8_32", 513_776, maps=2, tiny=TINY, reference="timm's class"),
    _vit("deit3_small_patch16_224", 22_059_496),
    _vit("deit3_small_patch16_384", 22_205_416),
    _vit("deit3_medium_patch16_224", 38_849_512),
    _vit("deit3_base_patch16_224", 86_585_320, parity="slow"),
    _vit("deit3_base_patch16_384", 86_877_160, parity="slow"),
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
    Row("vit_nano_patch8_32", 416_584, maps=2, tiny=TINY, reference="timm's class"),
    Row("vit_nano_patch8_gap_32", 416_392, maps=2, tiny=TINY, reference="timm's class"),
    Row("vit_nano_patch8_map_32", 491_080, maps=3, tiny=TINY, reference="timm's class"),
    Row("vit_nano_patch4_32", 556_936, maps=2, tiny=TINY, reference="timm's class"),
    _hybrid("vit_small_r26_s32_224", 36_431_912),
    _hybrid("vit_small_r26_s32_384", 36_468_392),
    _hybrid("vit_tiny_r_s16_p8_224", 6_337_704, root_only=True),
    _hybrid("vit_tiny_r_s16_p8_384", 6_355_944, root_only=True),
    _hybrid("vit_nano_r_s8_p4_32", 504_840, root_only=True),
    _hybrid("vit_base_r26_s32_224", 101_383_976, parity="slow"),
    _hybrid("vit_base_r50_s16_224", 98_659_112, parity="slow"),
    _hybrid("vit_base_r50_s16_384", 98_950_952, parity="slow"),
    _hybrid("vit_large_r50_s32_224", 328_994_856, parity="slow"),
    _hybrid("vit_large_r50_s32_384", 329_092_136, parity="slow"),
    *(
        Row(name, params, maps=2, tiny=TINY, shallow={"depth": 2}, reference="timm, its own table", parity=parity)
        for name, params, parity in (
            ("simple_vit_tiny_patch16_224", 5_679_400, "regular"),
            ("simple_vit_small_patch32_224", 22_859_368, "regular"),
            ("simple_vit_small_patch16_224", 21_974_632, "regular"),
            ("simple_vit_base_patch32_224", 88_185_064, "slow"),
            ("simple_vit_base_patch16_224", 86_415_592, "slow"),
            ("simple_vit_large_patch16_224", 304_123_880, "slow"),
            ("simple_vit_small_patch16_mlp_head_224", 22_122_472, "regular"),
            ("simple_vit_nano_patch8_32", 414_856, "regular"),
        )
    ),
    _swin("swin_tiny_patch4_window7_224", 28_288_354),
    _swin("swin_small_patch4_window7_224", 49_606_258, "slow"),
    _swin("swin_base_patch4_window7_224", 87_768_224, "slow"),
    _swin("swin_base_patch4_window12_384", 87_903_584, "slow"),
    _swin("swin_large_patch4_window7_224", 196_532_476, "slow"),
    _swin("swin_large_patch4_window12_384", 196_735_516, "slow"),
    _swin("swin_nano_patch4_window4_32", 399_562),
    _swin("swinv2_tiny_window8_256", 28_347_154),
    _swin("swinv2_tiny_window16_256", 28_347_154),
    _swin("swinv2_small_window8_256", 49_728_418, "slow"),
    _swin("swinv2_small_window16_256", 49_728_418, "slow"),
    _swin("swinv2_base_window8_256", 87_918_816, "slow"),
    _swin("swinv2_base_window16_256", 87_918_816, "slow"),
    _swin("swinv2_base_window12_192", 87_918_816, "slow"),
    _swin("swinv2_base_window12to16_192to256", 87_918_816, "slow"),
    _swin("swinv2_base_window12to24_192to384", 87_918_816, "slow"),
    _swin("swinv2_large_window12_192", 196_739_932, "slow"),
    _swin("swinv2_large_window12to16_192to256", 196_739_932, "slow"),
    _swin("swinv2_large_window12to24_192to384", 196_739_932, "slow"),
    _focal("focal_tiny_224", 28_880_380, 4.9e-7),
    _focal("focal_small_224", 51_141_940, 4.6e-7, parity="slow"),
    _focal("focal_base_224", 89_815_400, 3.2e-7, parity="slow"),
    _focal("focal_tiny_useconv_224", 30_825_244, 4.3e-7),
    _focal("focal_small_useconv_224", 53_086_804, 8.1e-7, parity="slow"),
    _focal("focal_base_useconv_224", 93_268_712, 5.1e-7, parity="slow"),
    _tnt("tnt_ti_patch16_224", 6_076_408),
    _tnt("tnt_s_patch16_224", 23_768_584),
    _tnt("tnt_b_patch16_224", 65_428_680, parity="slow"),
    _tnt("tnt_s_legacy_patch16_224", 23_755_336),
    *(
        Row(name, params, maps=2, tiny=TINY, shallow={"depth": 2}, reference="timm's ViT and PosConv", parity=parity)
        for name, params, parity in (
            ("cpvt_tiny_patch16_224", 5_681_512, "regular"),
            ("cpvt_small_patch16_224", 21_978_856, "regular"),
            ("cpvt_base_patch16_224", 86_424_040, "slow"),
            ("cpvt_tiny_patch16_gap_224", 5_681_320, "regular"),
            ("cpvt_small_patch16_gap_224", 21_978_472, "regular"),
            ("cpvt_base_patch16_gap_224", 86_423_272, "slow"),
            ("cpvt_nano_patch8_32", 415_912, "regular"),
        )
    ),
    *(
        Row(
            name,
            params,
            maps=3,
            tiny={**TINY, "depth": 3, "num_pegs": 2},
            shallow={"depth": 3, "num_pegs": 2},
            reference="timm's ViT and PosConv",
            parity=parity,
        )
        for name, params, parity in (
            ("cpvt_tiny_patch16_peg5_224", 5_689_192, "regular"),
            ("cpvt_small_patch16_peg5_224", 21_994_216, "regular"),
            ("cpvt_base_patch16_peg5_224", 86_454_760, "slow"),
            ("cpvt_tiny_patch16_peg5_gap_224", 5_689_000, "regular"),
            ("cpvt_small_patch16_peg5_gap_224", 21_993_832, "regular"),
            ("cpvt_base_patch16_peg5_gap_224", 86_453_992, "slow"),
        )
    ),
    _cvt("cvt_13_224", 19_997_480),
    _cvt("cvt_13_384", 19_997_480, "slow"),
    _cvt("cvt_21_224", 31_622_696, "slow"),
    _cvt("cvt_21_384", 31_622_696, "slow"),
    _cvt("cvt_w24_384", 277_196_392, "slow"),
    _cvt("cvt_nano_32", 952_360),
    _convit("convit_tiny", 5_710_512),
    _convit("convit_small", 27_777_322),
    _convit("convit_base", 86_540_040, parity="slow"),
    _convit("convit_tiny_plus", 9_972_912),
    _convit("convit_small_plus", 48_979_882, parity="slow"),
    _convit("convit_base_plus", 153_134_856, parity="slow"),
    _convit("convit_nano_patch8_32", 563_605),
    _coatnet("coatnet_0_224", 25_036_820),
    _coatnet("coatnet_1_224", 42_225_776, parity="slow"),
    _coatnet("coatnet_2_224", 74_684_744, parity="slow"),
    _coatnet("coatnet_3_224", 166_966_264, parity="slow"),
    _coatnet("coatnet_4_224", 275_425_288, parity="slow"),
    _coatnet("coatnet_5_224", 687_472_008, parity="slow"),
    _coatnet("coatnet_0_paper_224", 24_446_228, "the paper's equations, query by query", "toy"),
    _coatnet("coatnet_1_paper_224", 41_635_184, "the paper's equations, query by query", "toy"),
    _coatnet("coatnet_2_paper_224", 73_635_144, "the paper's equations, query by query", "toy"),
    _coatnet("coatnet_3_paper_224", 164_605_432, "the paper's equations, query by query", "toy"),
    _coatnet("coatnet_4_paper_224", 273_064_456, "the paper's equations, query by query", "toy"),
    _coatnet("coatnet_0_rw_224", 27_435_562),
    _coatnet("coatnet_rmlp_0_rw_224", 27_446_074),
    _coatnet("coatnet_1_rw_224", 41_721_502, parity="slow"),
    _coatnet("coatnet_rmlp_1_rw_224", 41_691_982, parity="slow"),
    _coatnet("coatnet_rmlp_1_rw2_224", 41_724_622, parity="slow"),
    _coatnet("coatnet_2_rw_224", 73_868_400, parity="slow"),
    _coatnet("coatnet_rmlp_2_rw_224", 73_881_264, parity="slow"),
    _coatnet("coatnet_rmlp_2_rw_384", 73_881_264, parity="slow"),
    _coatnet("coatnet_3_rw_224", 165_173_428, parity="slow"),
    _coatnet("coatnet_rmlp_3_rw_224", 165_152_788, parity="slow"),
    _mobilevit("mobilevit_xxs", 1_272_024),
    _mobilevit("mobilevit_xs", 2_317_848),
    _mobilevit("mobilevit_s", 5_578_632),
    _mvit("mvit_base_16_224", 36_982_600),
    _mvit("mvit_base_24_224", 53_516_392, parity="slow"),
    _mvit("mvit_base_24_wide_320", 72_961_832, parity="slow"),
    _mvit("mvitv2_tiny", 24_173_320, 1, "timm"),
    _mvit("mvitv2_small", 34_870_216, 1, "timm", "slow"),
    _mvit("mvitv2_base", 51_472_744, 1, "timm", "slow"),
    _mvit("mvitv2_large", 217_992_952, 1, "timm", "slow"),
    _mvit("mvitv2_small_cls", 34_870_312),
    _mvit("mvitv2_base_cls", 51_472_840, parity="slow"),
    _mvit("mvitv2_large_cls", 213_635_512, parity="slow"),
    _mvit("mvitv2_huge_cls", 666_879_912, parity="slow"),
    _sl_vit("sl_vit_patch8_64", 3_060_628),
    _sl_vit("sl_vit_patch4_32", 2_920_948),
    _sl_vit("spt_vit_patch8_64", 3_060_520),
    _sl_vit("spt_vit_patch4_32", 2_920_840),
    _sl_vit("lsa_vit_patch8_64", 2_911_252),
    _sl_vit("lsa_vit_patch4_32", 2_883_604),
    _sl_vit("sl_vit_nano_patch8_32", 491_092),
    _sl_swin("sl_swin_tiny_patch4_window4_64", 8_960_956),
    _sl_swin("sl_swin_tiny_patch2_window4_32", 8_943_316),
    _sl_swin("swin_pico_patch4_window4_64", 7_457_794),
    _sl_swin("swin_pico_patch2_window4_32", 7_454_338),
    *(
        Row(
            name,
            params,
            maps=4,
            tiny={**TINY, "embed_dim": 16, "num_heads": 2, "init_values": 0.1},
            shallow={"depth": 2},
            parity=parity,
        )
        for name, params, parity in (
            ("cait_xxs24_224", 11_956_264, "regular"),
            ("cait_xxs36_224", 17_299_720, "regular"),
            ("cait_xs24_384", 26_670_088, "slow"),
            ("cait_s24_224", 46_916_200, "slow"),
            ("cait_s24_384", 47_062_120, "slow"),
            ("cait_s36_384", 68_366_632, "slow"),
            ("cait_m36_384", 271_221_352, "slow"),
            ("cait_m48_448", 356_460_520, "slow"),
        )
    ),
    *(
        Row(
            name,
            params,
            maps=1,
            tiny={"embed_dim": 16, "depth": 2, "init_values": 0.1, "img_size": 64},
            side=64,
            strides=(16,),
            shallow={"depth": 2},
            reference="written out by hand",
            parity="toy",
            seen=seen,
        )
        for name, params, seen in (
            ("patchconvnet_s60_224", 25_231_096, 4e-7),
            ("patchconvnet_s120_224", 47_723_896, 6e-7),
            ("patchconvnet_b60_224", 99_388_936, 5e-7),
            ("patchconvnet_b120_224", 188_611_336, None),
            ("patchconvnet_l60_224", 176_009_576, None),
            ("patchconvnet_l120_224", 334_294_376, None),
            ("patchconvnet_s60_multi_224", 25_614_712, 3e-6),
        )
    ),
    _nonlocal("nonlocal_resnet50_1", 27_658_792, parity="regular"),
    _nonlocal("nonlocal_resnet50_5", 32_915_496),
    _nonlocal("nonlocal_resnet50_5_gaussian", 29_241_384),
    _nonlocal("nonlocal_resnet50_5_dot", 32_915_496, maps=0),
    _nonlocal("nonlocal_resnet50_5_concat", 32_919_592, maps=0),
    _nonlocal("nonlocal_resnet50_10", 40_273_960),
    _nonlocal("nonlocal_resnet101_5", 51_907_624),
    _sagan("sagan_resnet50", 25_884_713, parity="regular"),
    _sagan("sagan_resnet50_paper", 25_688_105),
    _sagan("sagan_resnet50_plain", 25_885_353),
    _aa("aa_resnet50", 25_813_872, parity="regular"),
    _aa("aa_resnet34", 20_749_552),
    _aa("aa_resnet101", 45_391_208),
    _aa("aa_resnet152", 61_622_496),
    _aa("aa_resnet50_kappa25", 24_308_208),
    _aa("aa_resnet50_kappa50", 22_347_160, 0.5),
    _aa("aa_resnet50_kappa75", 20_739_976, 0.75),
    _aa("aa_resnet50_kappa100", 19_388_040, 1.0),
    _sasa("sasa_resnet26", 10_331_264),
    _sasa("sasa_resnet38", 14_173_384),
    _sasa("sasa_resnet50", 18_015_504),
    _sasa("sasa_resnet26_full", 10_323_200, maps=5),
    _sasa("sasa_resnet38_full", 14_165_320, maps=5),
    _sasa("sasa_resnet50_full", 18_007_440, maps=5),
    _lr_net("lr_net26", 14_621_108),
    _lr_net("lr_net50", 23_397_064),
    _lr_net("lr_net101", 40_830_530),
    _axial("axial_resnet26_s", 5_944_936),
    _axial("axial_resnet50_s", 11_586_216),
    _axial("axial_resnet50_m", 25_179_400, parity="slow"),
    _axial("axial_resnet50_l", 43_973_480, parity="slow"),
    _botnet("botnet50_224", 20_852_008, strides=(4, 8, 16, 32)),
    _botnet("botnet_s1_50_224", 20_859_176),
    _botnet("botnet_s1_59_224", 30_500_696, parity="slow"),
    _botnet("botnet_s1_110_224", 51_739_544, parity="slow"),
    _botnet("botnet_s1_128_256", 69_131_672, parity="slow"),
    _botnet("botnet_s1_77_320", 47_917_400, parity="slow"),
    _botnet("botnet_s1_128_384", 69_180_824, parity="slow"),
    _lambda("lambda_resnet26", 10_125_800, 2.9e-7),
    _lambda("lambda_resnet38", 12_000_296, 3.0e-7),
    _lambda("lambda_resnet50", 14_995_848, 3.4e-7, parity="slow"),
    _lambda("lambda_resnet50_u4_r7", 16_040_616, 2.7e-7, parity="toy"),
    _byob("botnet26t_256", 12_488_672, "bot", maps=2),
    _byob("botnet50ts_256", 22_742_688, "bot", maps=2),
    _byob("sebotnet33ts_256", 13_701_984, "bot", maps=2, num_features=24),
    _byob("eca_botnext26ts_256", 10_593_301, "bot16", maps=2, group_size=8),
    _byob("lambda_resnet26t", 10_958_272, "lambda9", sizes=((192, 192), (256, 256), (320, 224))),
    _byob("lambda_resnet26rpt_256", 10_988_688, "lambda"),
    _byob("lambda_resnet50ts", 21_536_832, "lambda9", sizes=((192, 192), (256, 256), (320, 224))),
    _byob("lamhalobotnet50ts_256", 22_569_824, "halo", maps=2),
    _byob("halo2botnet50ts_256", 22_635_360, "halo", maps=2),
    _mixer("mixer_s32_224", 19_104_624),
    _mixer("mixer_s16_224", 18_528_264),
    _mixer("mixer_b32_224", 60_293_428, parity="slow"),
    _mixer("mixer_b16_224", 59_880_472, parity="slow"),
    _mixer("mixer_l32_224", 206_939_264, parity="slow"),
    _mixer("mixer_l16_224", 208_196_168, parity="slow"),
    _mixer("mixer_h14_224", 432_350_952, parity="slow"),
    replace(_mixer("mixer_pico4_32", 2_984_584), reference="timm's class"),
    replace(_mixer("mixer_nano8_32", 420_488), reference="timm's class"),
    _mixer("resmlp_12_224", 15_350_872),
    _mixer("resmlp_24_224", 30_020_680),
    _mixer("resmlp_36_224", 44_690_488, parity="slow"),
    _mixer("resmlp_big_24_224", 129_138_280, parity="slow"),
    _mixer("gmlp_ti16_224", 5_867_328),
    _mixer("gmlp_s16_224", 19_422_656),
    _mixer("gmlp_b16_224", 73_075_392, parity="slow"),
    _mixer("resmlp_nano8_32", 415_944),
    _mixer("gmlp_nano8_32", 382_248),
    _resnet_cifar("resnet20", 334_072),
    _resnet_cifar("resnet32", 528_504),
    _resnet_cifar("resnet44", 722_936),
    _resnet_cifar("resnet56", 917_368),
    _resnet_cifar("resnet110", 1_792_312),
    *[
        Row(
            name,
            params,
            tiny={"patch_size": 8, "depth": 2, "embed_dim": 16, "img_size": 32},
            shallow={"depth": 2},
            reference="the paper's equations",
            parity="toy",
        )
        for name, params in (("s2mlp_wide_patch16_224", 72_241_384), ("s2mlp_deep_patch16_224", 53_917_288))
    ],
    *[
        Row(
            name,
            params,
            tiny={"embed_dims": (8, 16), "depths": (1, 2), "patch_size": 4, "img_size": 32},
            strides=(4, 8),
            shallow={"depths": (1, 1)},
            sizes=(),
            reference="the paper's equations",
            parity="toy",
        )
        for name, params in (("s2mlpv2_small_patch7_224", 25_112_680), ("s2mlpv2_medium_patch7_224", 55_268_840))
    ],
    *[
        Row(
            name,
            params,
            tiny={"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "img_size": 32},
            strides=(4, 8, 16, 32),
            shallow={"depths": (1, 1, 1, 1)},
            reference="torchvision's deformable convolution",
            parity=parity,
            seen=5e-7,
        )
        for name, params, parity in (
            ("cyclemlp_b1_224", 15_155_400, "regular"),
            ("cyclemlp_b2_224", 26_802_504, "regular"),
            ("cyclemlp_b3_224", 38_385_720, "slow"),
            ("cyclemlp_b4_224", 51_796_552, "slow"),
            ("cyclemlp_b5_224", 75_747_280, "slow"),
        )
    ],
    *[
        Row(
            name,
            params,
            tiny={"embed_dim": 16, "depth": 2, "kernel_size": 3, "patch_size": 8, "img_size": 32},
            shallow={"depth": 2},
            parity=parity,
        )
        for name, params, parity in (
            ("convmixer_1536_20", 51_625_960, "slow"),
            ("convmixer_768_32", 21_110_248, "slow"),
            ("convmixer_1024_20_ks9_p14", 24_383_464, "regular"),
            ("convmixer_128_4_ks3_p4", 208_744, "regular"),
        )
    ],
    *(
        Row(
            name,
            params,
            maps=2,
            tiny={
                "embed_dim": 16,
                "depth": 2,
                "num_heads": 2,
                "probe_layer": 2,
                "img_size": 8,
                "generative": False,  # its layer gets no gradient from the logits of classes
            },
            side=8,
            strides=(1,),
            shallow={"depth": 2, "probe_layer": 2},
            sizes=(),
            reference="transformers",
            parity=parity,
        )
        for name, params, parity in (
            ("igpt_small_32", 77_195_240, "slow"),
            ("igpt_medium_32", 456_514_536, "toy"),
            ("igpt_large_32", 1_364_451_304, "toy"),
        )
    ),
]
