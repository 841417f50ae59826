"""The parameter counts of the small-data ViT's release, which is for 10, 100 and 200 classes."""

from __future__ import annotations

import pytest
import torch

from vitrail import create_model
from vitrail.comparison.cost import parameters


@pytest.mark.parametrize(
    ("size", "classes", "plain", "lsa", "spt", "both"),
    [
        ("patch4_32", 10, 2_692_426, 2_692_534, 2_729_770, 2_729_878),
        ("patch4_32", 100, 2_709_796, 2_709_904, 2_747_140, 2_747_248),
        ("patch8_64", 200, 2_756_744, 2_756_852, 2_906_120, 2_906_228),
    ],
)
def test_counts_are_the_releases(size: str, classes: int, plain: int, lsa: int, spt: int, both: int) -> None:
    with torch.device("meta"):
        counts = [
            parameters(create_model(f"{name}_vit_{size}", num_classes=classes, **ideas))
            for name, ideas in [("sl", {"spt": False, "lsa": False}), ("lsa", {}), ("spt", {}), ("sl", {})]
        ]
    assert counts == [plain, lsa, spt, both]
