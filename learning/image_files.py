"""Images on disk: one folder per class, and the layouts that arrays of images come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from pathlib import Path

Array = npt.NDArray[Any]
Shape = tuple[int, int, int]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".tif", ".tiff"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def records_first(images: Array, shape: Shape) -> Array | None:
    """Return images as ``(n, channels, height, width)``, or None if they have another shape.

    Accepted beside it: ``(n, height, width)`` for one channel, and channels last.
    """
    channels, height, width = shape
    if images.ndim == 4 and images.shape[1:] == shape:
        return images
    if images.ndim == 4 and images.shape[1:] == (height, width, channels):
        return np.moveaxis(images, -1, 1)
    if images.ndim == 3 and channels == 1 and images.shape[1:] == (height, width):
        return images[:, None]
    return None


def read_folder(root: Path, shape: Shape) -> tuple[Array, Array, dict[str, tuple[int, ...]]]:
    """Read every image below ``root/<class>/``, in sorted order.

    Returns:
        Pixels (uint8, records first), labels (the folders' names), and the numbers (from 1, in
        sorted order) of files that are broken or of another size, by kind of violation.
    """
    files = [
        (folder.name, path)
        for folder in sorted(entry for entry in root.iterdir() if entry.is_dir())
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    pixels = np.zeros((len(files), *shape), dtype=np.uint8)
    broken: dict[str, list[int]] = {}
    for row, (_, path) in enumerate(files):
        violation = _read_into(pixels[row], path)
        if violation:
            broken.setdefault(violation, []).append(row + 1)
    labels = np.array([label for label, _ in files], dtype=str)
    return pixels, labels, {kind: tuple(rows) for kind, rows in broken.items()}


def _read_into(target: Array, path: Path) -> str:
    """Fill ``target`` (channels first) with an image; return what is wrong with it, or nothing."""
    channels, height, width = target.shape
    mode = _MODES.get(channels)
    if mode is None:
        return f"images with {channels} channels are not read from files"
    try:
        with Image.open(path) as image:
            # The size stands in the header: a huge image is turned away before it is decoded.
            if image.size != (width, height):
                return "image of another size than declared"
            decoded = np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError):
        return "unreadable image"
    target[:] = decoded[None] if channels == 1 else np.moveaxis(decoded, -1, 0)
    return ""
