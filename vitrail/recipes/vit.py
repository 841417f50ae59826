"""An image is worth 16x16 words. Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, Table 3 and section 4.1.

Steps are turned into epochs on the paper's data set: 10,000 steps of 4,096 images are 32 epochs of ImageNet-1k and 2.9
of ImageNet-21k. Differences: the pre-training head is one layer (the paper's has a hidden one, which Scaling ViT
drops without loss), AdamW's decay stands for Adam's, and positions are resized bicubically.
"""

from __future__ import annotations

from dataclasses import replace

from vitrail.recipe import Augment, Data, Optim, Recipe, Schedule


def vit() -> Recipe:
    """ViT-B/16 on ImageNet-1k from scratch, at 224.

    Command   vitrail train imagenet_folder --recipe vit
    Expected  77.91 % top-1 after `vit/finetune` at 384 (Table 5 of the paper; not re-run here).
    """
    return Recipe(
        model="vit_base_patch16_224",
        data=Data(batch_size=4096, workers=8, in_chans=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        augment=Augment(crop_scale=(0.05, 1.0)),
        optim=Optim(lr=3e-3, lr_batch=4096, weight_decay=0.3, clip_grad=1.0),
        schedule=Schedule(epochs=300, warmup_epochs=32.0),
        dropout=0.1,
    )


def imagenet_21k() -> Recipe:
    """ViT-B/16 on ImageNet-21k: less decay, a linear schedule, no clipping.

    Command   vitrail train imagenet21k_folder --recipe vit/imagenet_21k
    Expected  83.97 % top-1 on ImageNet-1k after `vit/finetune` at 384 (Table 5 of the paper; not re-run here).
    """
    return replace(
        vit(),
        optim=Optim(lr=1e-3, lr_batch=4096, weight_decay=0.03),
        schedule=Schedule(name="linear", epochs=90, warmup_epochs=2.9),
    )


def finetune() -> Recipe:
    """A pretrained ViT-B/16 with a new head that starts at zero, at 384, by SGD: 20,000 steps on ImageNet-1k.

    The paper tries learning rates of 0.003, 0.01, 0.03 and 0.06 on held-out images. All logits are 0 at first, so the
    first loss is ln K. 500 steps of warm-up are those of the authors' release. The official weights are AugReg's; a run
    of one's own takes their place with `--initial-checkpoint runs/vit/model.safetensors`.

    Command   vitrail train ./photos --recipe vit/finetune
    Expected  83.97 % top-1 on ImageNet-1k from ImageNet-21k with the paper's weights (Table 5; not re-run here).
    """
    return Recipe(
        model="vit_base_patch16_224",
        pretrained=True,
        data=Data(batch_size=512, workers=8, img_size=384, crop_pct=0.857),
        augment=Augment(crop_scale=(0.05, 1.0)),
        optim=Optim(name="momentum", lr=0.03, lr_batch=512, weight_decay=0.0, clip_grad=1.0),
        schedule=Schedule(epochs=8, warmup_epochs=0.2),
        head_bias=0.0,
    )
