"""Arrays -> PNG bytes: a map beside and over its picture, heads side by side, contact sheets.

matplotlib through its objects only (Figure, FigureCanvasAgg): nothing global changes, notebooks and threads are safe.
Class names are data: no mathtext, and a character that no font here has is written as its code.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]

COLOUR_MAP = mpl.colormaps["inferno"]  # perceptually uniform, and dark where the model does not look
EAST_ASIAN = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Microsoft YaHei")
INK, FAINT = "#1b1b1f", "#6b6b76"
MARK = np.array([0, 229, 255], np.uint8)  # no colour of the map

Box = tuple[float, float, float, float]  # top, left, bottom, right, as shares of a picture's sides


class Tile(NamedTuple):
    """One picture of a contact sheet: (H, W, 3) uint8, what stands under it, and its frame's colour (None: none)."""

    picture: Pixels
    caption: str
    frame: str | None = None


def scale(values: Map) -> Map:
    """To [0, 1] by minimum and maximum, float32; a map without any difference becomes 0."""
    low, high = float(values.min()), float(values.max())
    spread = high - low
    if not np.isfinite(spread) or spread <= 1e-12:
        return np.zeros(values.shape, np.float32)
    return ((values - low) / spread).astype(np.float32)


def enlarge(values: Map, size: tuple[int, int]) -> Map:
    """A map over patches (gh, gw) -> over pixels (H, W) of `size`, bicubic, never beyond the map's own range."""
    grid = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    large = torch.nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False)
    return large[0, 0].clamp(grid.min(), grid.max()).numpy()


def overlay(picture: Pixels, heat: Map, strength: float = 0.62) -> Pixels:
    """`heat` (H, W) in [0, 1] over `picture` (H, W, 3) uint8: the picture in grey, coloured and lit by the map.

    A map (H, W, 3) gives its own colours.
    """
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    colour = (heat if heat.ndim == 3 else COLOUR_MAP(heat)[..., :3]) * 255
    mixed = (1 - strength) * grey[..., None] + strength * colour
    return np.clip(mixed, 0, 255).astype(np.uint8)


def mosaic(colours: Map, size: tuple[int, int]) -> Map:
    """Colours of patches (gh, gw, 3) -> of pixels (H, W, 3) of `size`, each patch a square of one colour."""
    rows, columns = (np.arange(to) * of // to for of, to in zip(colours.shape[:2], size, strict=True))
    return colours[rows][:, columns]


def framed(picture: Pixels, box: Box | None) -> Pixels:
    """`picture` (H, W, 3) with a bright frame, dark outside, around `box`; None: as it is."""
    if box is None:
        return picture
    high, wide = picture.shape[:2]
    top, left, bottom, right = (round(share * side) for share, side in zip(box, (high, wide) * 2, strict=True))
    thick = max(1, min(high // 80, wide // 80, (bottom - top) // 3, (right - left) // 3))
    marked = picture.copy()
    for grow, colour in ((2 * thick, 0), (thick, MARK)):
        marked[max(top - grow, 0) : bottom + grow, max(left - grow, 0) : right + grow] = colour
    marked[top:bottom, left:right] = picture[top:bottom, left:right]
    return marked


def legible(picture: Pixels, heat: Map, least: int = 160) -> tuple[Pixels, Map]:
    """Both at `least` pixels a side or more: a small picture keeps its square pixels, its map stays smooth."""
    factor = -(-least // min(picture.shape[:2]))
    if factor <= 1:
        return picture, heat
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    return large, (mosaic if heat.ndim == 3 else enlarge)(heat, (large.shape[0], large.shape[1]))


def thumbnail(picture: Pixels, most: int = 208) -> bytes:
    """PNG of (H, W, 3) uint8, made smaller where a side has more than `most` pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")  # optimize=True takes twice as long, for a fiftieth of the bytes
    return file.getvalue()


def explanation(
    picture: Pixels,
    heat: Map,
    title: str,
    note: str,
    tiles: Sequence[tuple[Map, str]] = (),
    box: Box | None = None,
) -> bytes:
    """PNG: picture, map, overlay and colour bar in a row; below, each of `tiles` (a map (gh, gw) in [0, 1], its
    caption) over the picture. `heat` (H, W) in [0, 1] or (H, W, 3) in colours of its own; `box` is framed."""
    picture, heat = legible(picture, heat)
    columns = 6
    rows = -(-len(tiles) // columns)
    aspect = picture.shape[0] / picture.shape[1]
    figure = Figure(figsize=(10.4, 3.1 * aspect + 1.05 + rows * (1.85 * aspect)), dpi=130, facecolor="white")
    height = figure.get_figheight()
    _write(figure, title, 0.02, 1 - 0.30 / height, 14, INK, weight="bold")
    _write(figure, note, 0.02, 1 - 0.58 / height, 9.5, FAINT)
    top = 1 - 0.95 / height
    middle = top - 3.0 * aspect / height
    grid = GridSpec(1, 4, figure, 0.02, middle, 0.94, top, wspace=0.06, width_ratios=(1, 1, 1, 0.05))
    _panel(figure.add_subplot(grid[0]), framed(picture, box), "what the model saw")
    mapped = _panel(figure.add_subplot(grid[1]), heat, "map" if heat.ndim == 2 else "features as colours")
    _panel(figure.add_subplot(grid[2]), framed(overlay(picture, heat), box), "overlay")
    if heat.ndim == 2:
        bar = figure.colorbar(mapped, cax=figure.add_subplot(grid[3]))
        bar.set_ticks([0, 0.5, 1], labels=["min", "", "max"], fontsize=9, color=FAINT)
        bar.outline.set_visible(False)
    if tiles:
        below = GridSpec(
            rows, columns, figure, 0.02, 0.06 / height, 0.94, middle - 0.35 / height, wspace=0.06, hspace=0.2
        )
        for index, (tile, caption) in enumerate(tiles):
            axes = figure.add_subplot(below[index // columns, index % columns])
            lit = overlay(picture, enlarge(tile, (picture.shape[0], picture.shape[1])))
            _panel(axes, framed(lit, box), caption, 8.5)
    return png(figure)


def contact_sheet(tiles: Sequence[Tile], title: str, columns: int = 4) -> bytes:
    """PNG: `tiles` in rows of at most `columns`, each with its caption of up to three lines."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width, high = max(2.6 * columns, 6.4) + 0.2, 3.12 * rows + 0.5
    figure = Figure(figsize=(width, high), dpi=110, facecolor="white")
    _write(figure, title, 0.1 / width, 1 - 0.28 / high, 12, INK, weight="bold")
    box = GridSpec(
        rows, columns, figure, 0.1 / width, 0.55 / high, (0.1 + 2.6 * columns) / width, 1 - 0.5 / high,
        wspace=0.06, hspace=0.24,
    )  # fmt: skip
    for index, tile in enumerate(tiles):
        axes = figure.add_subplot(box[index // columns, index % columns])
        _panel(axes, tile.picture, "")
        axes.text(0, -0.04, lines(tile.caption), transform=axes.transAxes, va="top", fontsize=8.5, color=INK,
                  family=families(), parse_math=False)  # fmt: skip
        if tile.frame:
            axes.set_axis_on()
            axes.tick_params(length=0, labelleft=False, labelbottom=False)
            for spine in axes.spines.values():
                spine.set(color=tile.frame, linewidth=3)
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def lines(text: str, width: int = 34, most: int = 3) -> str:
    """`text` as at most `most` printable lines of about `width` characters; what is cut shows as an ellipsis."""
    wrapped = [part for line in text.split("\n") for part in textwrap.wrap(printable(line), width) or [""]]
    return "\n".join(wrapped[:most]) + (" …" if len(wrapped) > most else "")


def printable(text: str) -> str:
    """`text` with every character that the fonts here cannot draw written as its code, such as \\u732b."""
    known = _characters()
    return "".join(c if c.isprintable() and ord(c) in known else c.encode("unicode_escape").decode() for c in text)


@functools.cache
def families() -> list[str]:
    """matplotlib's own font, then East Asian ones that this machine has."""
    present = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in EAST_ASIAN if name in present)]


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset().union(*(get_font(findfont(family)).get_charmap() for family in families()))


def _write(figure: Figure, text: str, x: float, y: float, size: float, colour: str, weight: str = "normal") -> None:
    room = figure.get_figwidth() * (105 if weight == "bold" else 120)  # points, in characters of such fonts
    size = max(0.75 * size, min(size, room / max(len(text), 1)))
    limit = int(room / size)
    short = textwrap.shorten(printable(text), limit, placeholder=" …") if len(text) > limit else printable(text)
    figure.text(
        x, y, short, fontsize=size, color=colour, weight=weight, family=families(), va="center", parse_math=False
    )


def _panel(axes: Axes, picture: Pixels | Map, caption: str, size: float = 9.5) -> mpl.image.AxesImage:
    axes.set_axis_off()
    if caption:
        axes.set_title(
            printable(caption), fontsize=size, color=FAINT, pad=4, family=families(), loc="left", parse_math=False
        )
    return axes.imshow(picture, cmap=COLOUR_MAP, vmin=0, vmax=1)
