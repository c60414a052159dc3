"""Scattering features of images: a fixed, public transform of one image, with nothing learnt.

Two layers of wavelets and moduli, each averaged over windows of 2^J pixels: Bruna and Mallat 2013,
"Invariant scattering convolution networks", arXiv 1203.1513, section 2; J = 2 scales, L = 8 angles,
order 2. Morlet wavelets with the usual constants: envelope 0.8 x 2^j, frequency (3 pi / 4) / 2^j,
aspect 4 / L (the same paper, section 2.1; Oyallon and Mallat 2015, arXiv 1412.8659).

Promises: row i of the result depends on row i of the input alone, and on nothing else. So features
are made once, and cost no privacy: neighbouring data sets stay neighbours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

SCALES, ANGLES = 2, 8
CHANNELS = 1 + SCALES * ANGLES + ANGLES**2 * SCALES * (SCALES - 1) // 2
WINDOW = 2**SCALES
GROUPS = 27  # Tramer and Boneh 2021, arXiv 2011.11660, for Fashion-MNIST
_BATCH = 32  # images at a time: what they need stays near the processor


def gaussian_wave(
    side: int, *, width: float, angle: float = 0.0, frequency: float = 0.0, aspect: float = 1.0
) -> np.ndarray:
    """Return a complex wave under a Gaussian of integral 1, wrapped on ``(side, side)`` pixels.

    Args:
        side: pixels.
        width: standard deviation along the wave, pixels.
        angle: of the wave, radians.
        frequency: radians per pixel; 0 is the Gaussian alone.
        aspect: width along the wave over width across it.
    """
    total = np.zeros((side, side), dtype=np.complex128)
    here = np.arange(side)
    for rows in range(-2, 3):
        for columns in range(-2, 3):
            y, x = np.meshgrid(here + rows * side, here + columns * side, indexing="ij")
            along = y * math.cos(angle) + x * math.sin(angle)
            across = x * math.cos(angle) - y * math.sin(angle)
            envelope = np.exp(-(along**2 + (aspect * across) ** 2) / (2 * width**2))
            total += envelope * np.exp(1j * frequency * along)
    return total * aspect / (2 * math.pi * width**2)


def morlet(side: int, *, scale: int, angle: float) -> np.ndarray:
    """Return a wave less the multiple of its envelope that makes its mean zero."""
    width, aspect = 0.8 * 2**scale, 4.0 / ANGLES
    frequency = 0.75 * math.pi / 2**scale
    wave = gaussian_wave(side, width=width, angle=angle, frequency=frequency, aspect=aspect)
    envelope = gaussian_wave(side, width=width, angle=angle, aspect=aspect)
    return wave - envelope * (wave.sum() / envelope.sum())


def make_wavelets(side: int) -> list[torch.Tensor]:
    """Return the Fourier transforms, real: ``(ANGLES, side, side)``, fine and coarse."""
    return [
        torch.stack([_spectrum(side, scale, math.pi * angle / ANGLES) for angle in range(ANGLES)])
        for scale in range(SCALES)
    ]


def _spectrum(side: int, scale: int, angle: float) -> torch.Tensor:
    values = np.fft.fft2(morlet(side, scale=scale, angle=angle))
    return torch.from_numpy(values.real.astype(np.float32))


def scattering(images: torch.Tensor) -> torch.Tensor:
    """Return ``(n, CHANNELS, side / 4, side / 4)`` float32 of ``(n, side, side)`` float32 images.

    Channels: the average; |image * wavelet| averaged, by scale and angle; then that of two wavelets
    one after the other, the second of the larger scale, by first and second angle.

    Raises:
        ValueError: the images are not square, or their side is no multiple of 4.
    """
    side = images.shape[-1]
    if images.dim() != 3 or images.shape[1] != side or side % WINDOW:
        raise ValueError(f"expected (n, side, side), side a multiple of {WINDOW}: {images.shape}")
    wavelets = make_wavelets(side + 2 * WINDOW)
    result = torch.empty((len(images), CHANNELS, side // WINDOW, side // WINDOW))
    for start in range(0, len(images), _BATCH):
        result[start : start + _BATCH] = _scatter(images[start : start + _BATCH], wavelets)
    return result


def _scatter(images: torch.Tensor, wavelets: list[torch.Tensor]) -> torch.Tensor:
    padded = functional.pad(images[:, None], (WINDOW,) * 4, mode="reflect")
    fine, coarse = wavelets
    spectra = torch.fft.fft2(padded)
    moduli = _moduli(spectra, fine, shrink=1)
    channels = [
        averaged(padded, shrunk=1),
        averaged(moduli, shrunk=1),
        averaged(_moduli(spectra, coarse, shrink=2), shrunk=2),
        averaged(_moduli(torch.fft.fft2(moduli)[:, :, None], coarse, shrink=2), shrunk=2),
    ]
    return torch.cat([part.flatten(1, -3) for part in channels], dim=1)


def _moduli(spectra: torch.Tensor, wavelets: torch.Tensor, *, shrink: int) -> torch.Tensor:
    """Return |values * wavelet| at every ``shrink``-th pixel: coarse ones vary slowly."""
    filtered = spectra * wavelets
    side = filtered.shape[-1] // shrink
    folded = filtered.unflatten(-1, (shrink, side)).unflatten(-3, (shrink, side))
    return torch.fft.ifft2(folded.mean(dim=(-4, -2))).abs()


def averaged(values: torch.Tensor, *, shrunk: int) -> torch.Tensor:
    """Return Gaussian averages at every fourth pixel of the image, without the margins.

    Args:
        values: ``(..., side, side)``, margins included.
        shrunk: how many pixels of the image one value stands for.
    """
    side, step = values.shape[-1], WINDOW // shrunk
    width = 0.8 * 2 ** (SCALES - 1) / shrunk
    centres = np.arange(step, side - step, step)
    distances = np.abs(np.arange(side)[None] - centres[:, None])
    distances = np.minimum(distances, side - distances)
    weights = np.exp(-((distances / width) ** 2) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = torch.from_numpy(weights.astype(np.float32))
    return rows @ values @ rows.T


def normalised(features: torch.Tensor) -> torch.Tensor:
    """Return each image's channels in groups of mean 0 and variance 1: its own, nobody else's."""
    return torch.cat([functional.group_norm(part, GROUPS) for part in features.split(_BATCH)])
