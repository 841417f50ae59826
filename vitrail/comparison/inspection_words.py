"""What stands beside the pictures of an inspection: how to read each, and what the papers found of trained models.

A finding is of the paper's models and data: large ones on many images, mostly. Small models on few images may differ.
"""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """The words of a section."""

    title: str
    reading: str
    papers: str


ABOUT = {
    "distance": About(
        "Attention distance and entropy",
        "A dot is a head: how far from a place, in pixels of the input, the places lie that it attends to, and over "
        "how many it spreads (1: over all alike). Dots far below the dotted line of uniform attention look nearby; a "
        "small distance with a large share of entropy is a head that averages its neighbourhood.",
        "Dosovitskiy et al. (2021): ViTs trained on very many images have local and global heads side by side in their "
        "lowest blocks and only global ones at the top. Raghu et al. (2021): trained on ImageNet alone, large ViTs "
        "have no local heads at the bottom, and are less accurate.",
    ),
    "positions": About(
        "Positions",
        "A tile belongs to the patch at its own row and column and shows how alike that patch's position embedding is "
        "to those of all patches; a trained table is brightest at its own place and fades with distance. Of models "
        "with a bias for each offset: what the offset from the middle adds to attention, a tile a head.",
        "Dosovitskiy et al. (2021): nearer patches come to have more similar embeddings, patches of one row or column "
        "too, though the table knows nothing of the plane at first. How clear the pattern is depends on epochs, rate "
        "and weight decay.",
    ),
    "filters": About(
        "What the first layer looks for",
        "The filters that meet the image, and the components most of them are made of; colours are relative to each "
        "tile. The curve says how few components hold how much of all filters: on the dotted line, as random ones do, "
        "none counts more than another.",
        "Dosovitskiy et al. (2021): the components of a trained ViT look like a basis for the fine structure within a "
        "patch: plain colours, gradients, and checks of rising frequency.",
    ),
    "features": About(
        "Features as colours",
        "Below each image the three strongest components of its last features, as red, green and blue, with one "
        "meaning in all images: places of one colour are alike to the model. Read the share of the variance first; "
        "colours that follow the place instead of the picture show positions.",
        "Oquab et al. (2024): in DINOv2 the same parts of different objects get the same colours, without any labels. "
        "Supervised models show rougher maps.",
    ),
    "receptive": About(
        "Effective receptive fields",
        "How much each pixel moves the features at the centre of a block's grid (logarithmic: black is a thousandth of "
        "the tile's largest value, or less), and by depth the side of the centred square that holds half of it. The "
        "bright spot in the middle is what the skip path carries.",
        "Luo et al. (2016): what a convolutional network really uses is much smaller than what it could see, and "
        "shaped like a Gaussian. Raghu et al. (2021): in a ResNet it grows gradually with depth; in a ViT the lowest "
        "blocks see further already, and about the middle the field becomes global.",
    ),
    "cka": About(
        "Which blocks are alike",
        "1 where two blocks see the same images as alike, up to rotation and scale, about 0 where they have nothing in "
        "common; the first block is below and left. Squares along the diagonal are stages, one bright sheet is a "
        "representation that hardly changes.",
        "Raghu et al. (2021): ViTs are alike from their lowest to their highest blocks, ResNets fall into stages. "
        "Between them, the lower half of a ResNet resembles the lowest quarter of a ViT, and the last third of the ViT "
        "resembles nothing in the ResNet.",
    ),
    "probes": About(
        "What each block knows of the classes",
        "A linear classifier fitted in closed form to a few images of each class, on what every block hands on, scored "
        "on held-out images. The dotted line is what naming the commonest class would reach.",
        "Raghu et al. (2021): accuracy rises with depth throughout; large ViTs trained on very many images have far "
        "better middle blocks than those trained on ImageNet, and than ResNets.",
    ),
    "residual": About(
        "What is carried and what is written",
        "At each addition the norm of what the skip brings over that of what the branch adds: high where a token is "
        "carried on, low where it is rewritten. The stream of a pre-norm network grows with depth, which raises later "
        "ratios by itself; the cosine says how much the direction turns.",
        "Raghu et al. (2021): in the first half of a ViT the class token is carried and the patches are written, in "
        "the second half the other way round. A ResNet's ratios are much lower: its branches dominate.",
    ),
    "localisation": About(
        "Whether tokens keep their place",
        "Over many images, how alike a token of the last block is to the pixels of every place: one bright cell at the "
        "token's own row and column means that it still stands for its patch. Values against raw pixels are low, so "
        "each map has its own scale.",
        "Raghu et al. (2021): tokens of a ViT with a class token keep their place up to the last block, those at the "
        "edge resemble the whole edge; where tokens are averaged at the end, and in the last stage of a ResNet, maps "
        "are broad.",
    ),
    "landscape": About(
        "The loss around the weights",
        "The loss on a plane of two random directions through the model (+), each as long as the weights; one colour "
        "scale for all. The top eigenvalue of the Hessian is how fast the loss rises in the steepest direction; it "
        "compares only between models on the same images and loss.",
        "Chen et al. (2022): ViTs and Mixers trained without sharpness-aware minimisation or strong augmentation end "
        "in much sharper minima than ResNets. Park and Kim (2022): attention flattens the loss, but on few images its "
        "curvature is negative in many directions.",
    ),
    "maps": About(
        "What it looks at",
        "Each method's map over the image. Rollout and attention are the same for every class, relevance and Grad-CAM "
        "speak for the predicted one; a peak of 1 is a map that says nothing.",
        "Abnar and Zuidema (2020): products of attention over blocks follow what reaches the output better than the "
        "attention of one block. Chefer et al. (2021): weighed by gradients, attention tells classes apart.",
    ),
}
