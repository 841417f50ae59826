"""Scaling vision transformers. Zhai et al., CVPR 2022, arXiv 2106.04560, section 3 and the authors' release.

The data set, JFT-3B, is not public. A million steps of 16,384 images are 5.5 epochs of its 3 billion (5 here, where
epochs are whole), 10,000 steps are 0.055 and the cooldown of 50,000 is 0.27: with fewer images set all four anew.
Under rsqrt a run's length need not be known: any checkpoint before the cooldown can begin a longer run. The head decays
a hundred times as much as the body: a little worse on the data it is trained on, better with few images of others.
`--model` takes the smaller models.
"""

from __future__ import annotations

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def scaling_vit() -> Recipe:
    """ViT-G/14, 1.8 billion weights, by Adafactor; it needs `--sharded` and many GPUs.

    Command   vitrail train jft_shards/{00000..99999}.tar --recipe scaling_vit --sharded --precision bf16
    Expected  90.45 % top-1 on ImageNet-1k after fine-tuning, 84.86 % with 10 images a class (the paper's).
    """
    return Recipe(
        model="scaling_vit_gigantic_patch14_224",
        data=Data(batch_size=16384, workers=8, in_chans=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        augment=Augment(crop_scale=(0.05, 1.0)),
        optim=Optim(name="adafactor", lr=8e-4, lr_batch=16384, weight_decay=0.03, head_weight_decay=3.0, clip_grad=1.0),
        schedule=Schedule(name="rsqrt", epochs=5, warmup_epochs=0.055, timescale_epochs=0.055, cooldown_epochs=0.27),
        loss="bce",
        head_bias=-10.0,
    )
