"""transformers' Trainer on a folder of class folders, as its own image classification example does it: a peer.

    python benchmarks/transformers_train.py FOLDER OUT --epochs 6 --img-size 128 --seed 0 [--bf16]

A ViT-Ti/16 from random weights; random resized crop and flip; AdamW, cosine after one epoch of warm-up; scored and
saved after every epoch. Prints the last accuracy as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(ImageFolder):
    """Pairs as the Trainer wants them."""

    def __getitem__(self, index: int) -> Any:
        pixels, label = super().__getitem__(index)
        return {"pixel_values": pixels, "labels": label}


def transforms(side: int, training: bool) -> v2.Compose:
    """The example's: random resized crop and flip, or resize and centre crop."""
    bicubic = v2.InterpolationMode.BICUBIC
    if training:
        shape = [v2.RandomResizedCrop(side, interpolation=bicubic), v2.RandomHorizontalFlip()]
    else:
        shape = [v2.Resize(int(side / 0.875), interpolation=bicubic), v2.CenterCrop(side)]
    return v2.Compose([*shape, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def accuracy(evaluated: Any) -> dict[str, float]:
    """The share of images whose likeliest class is theirs."""
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def main() -> None:
    """Read the options, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    set_seed(options.seed)
    train = Images(str(options.folder / "train"), transforms(options.img_size, True))
    val = Images(str(options.folder / "val"), transforms(options.img_size, False))
    shape: Any = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    config = ViTConfig(**shape, image_size=options.img_size, patch_size=16, num_labels=len(train.classes))
    trainer = Trainer(
        ViTForImageClassification(config),
        TrainingArguments(
            str(options.out),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.lr,
            weight_decay=0.05,
            lr_scheduler_type="cosine",
            warmup_steps=len(train) // options.batch_size,
            max_grad_norm=0.0,
            dataloader_num_workers=options.workers,
            dataloader_persistent_workers=options.workers > 0,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            seed=options.seed,
        ),
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=accuracy,
    )
    trainer.train()
    print(
        json.dumps(
            {"accuracy": [row for row in trainer.state.log_history if "eval_accuracy" in row][-1]["eval_accuracy"]}
        )
    )


if __name__ == "__main__":
    main()
