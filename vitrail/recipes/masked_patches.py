"""Masked patch prediction: the self-supervision of "An image is worth 16x16 words". Dosovitskiy et al., ICLR 2021,
arXiv 2010.11929, appendix B.1.2.

The paper trains a million steps on JFT and finds that 100,000 are enough, and ImageNet as good: those are 320 epochs of
ImageNet-1k with 4,096 images a step, 10,000 steps of warm-up are 32. It names no weight decay, so there is none.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule
from vitrail.recipes import vit


def masked_patches() -> Recipe:
    """ViT-B/16 learns to tell the mean colour of patches it does not see; no labels are used.

    Command   vitrail train imagenet_folder --recipe masked_patches
    Expected  a loss below ln 512 = 6.24, where it starts, and more patches right than by the commonest colour.
    """
    return Recipe(
        model="vit_base_patch16_224",
        task="masked_patches",
        data=Data(batch_size=4096, workers=8, in_chans=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        augment=Augment(crop_scale=(0.05, 1.0)),
        optim=Optim(lr=2e-4, lr_batch=4096, weight_decay=0.0),
        schedule=Schedule(epochs=320, warmup_epochs=32.0),
    )


def finetune() -> Recipe:
    """Then all of it is fine-tuned with labels, as `vit/finetune` does.

    Command   vitrail train ./photos --recipe masked_patches/finetune --initial-checkpoint runs/mpp/model.safetensors
    Expected  more top-1 than the same from random weights, less than from official ones (appendix B.1.2; not re-run).
    """
    data = replace(vit.finetune().data, in_chans=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return replace(vit.finetune(), pretrained=False, data=data)
