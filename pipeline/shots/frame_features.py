"""Frame similarity features: cheap comparisons of many frame pairs, from which transitions are detected.

All are computed on (27, 48, 3) frames, in batches. A transition differs from motion, a change of light or a flash less
in how much two neighbours differ than in how the frames before, in and after it relate. So each frame is described by
pairs and triples of frames around it, up to `REACH` frames away.
"""

from __future__ import annotations

import cv2
import numpy as np

PAIRS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # lags in frames between the two of a pair, centred on the frame
MOVED = (1, 2, 4)  # lags of the pairs that are also compared after block matching
BLENDS = (2, 4, 8, 12, 16, 24)  # lags of the pairs whose middle frame is tested as a blend of the two
SHIFTED = (1, 2)  # lags of the pairs that are tested for a shift of the whole picture
REACH = 12  # frames on either side that the features of a frame depend on
FEATURES = 5 + 6 * len(PAIRS) + 2 * len(MOVED) + 5 * len(BLENDS) + len(SHIFTED)
STILL = 6.0  # grey levels: cells that change by less within REACH are bars, text or a static background
GRID = (16, 9)  # cells of 3x3 pixels
NOISE = 24.0  # squared grey levels: regularises directions; about three grey levels in each colour of a cell


def features(colour: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n, 27, 48, 3) uint8 RGB frames at `times` (n,) seconds -> (n - 2 * REACH, FEATURES) float32, of frames REACH up
    to n - REACH. Row t describes frame t and the gap between frames t - 1 and t.

    Per frame: mean, deviation and saturation, and the share of cells that change at all within REACH. Per pair: mean
    and largest difference of a 9x16 grid of colours; one minus the correlation of luma (blind to light); difference of
    colour histograms (blind to motion); the difference relative to the range that the cells go through within REACH (in
    a cut or dissolve all of them do so at once) and the uncorrelatedness of those cells that change (blind to bars).
    Per moved pair: mean and largest difference of 3x4 blocks of luma after the best shift of up to 3 pixels. Per
    shifted pair: the peak of their phase correlation. Per blend: where the middle frame lies on the line between the
    two in colour space, 0 to 1, and its distance from that line relative to theirs from each other; in a dissolve the
    first goes from 0 to 1 and the second is near 0. The same place cell by cell, -0.5 to 0.5, least and greatest: a
    wipe's first cells are there before the picture as a whole has left. And the distance of the cells from lines of
    their own: near 0 in a wipe too, not where something moves.
    """
    count, reach = len(colour), REACH
    luma = _luma(colour)
    cells = mean_cells(colour)
    histogram = _histograms(colour)
    middle = np.arange(reach, count - reach)
    mean = luma.mean(axis=1)
    centred = luma - mean[:, None]
    deviation = np.sqrt(_products(centred, centred))
    red, green, blue = np.moveaxis(colour.reshape(count, -1, 3), 2, 0)
    saturation = (np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)).mean(axis=1)
    columns = [mean[middle] / 255, deviation[middle] / 64, saturation[middle] / 64]
    span = _range(cells)  # (n - 2 * reach, 3, 144)
    active = span.max(axis=1) > STILL
    columns.append(active.mean(axis=1))
    whole = span.sum(axis=(1, 2)) + 3 * STILL * span.shape[2] / 4
    grey = cells.mean(axis=1)
    weights = active + 1e-3
    weights /= weights.sum(axis=1, keepdims=True)
    for lag in PAIRS:
        a, b = middle - (lag + 1) // 2, middle + lag // 2
        apart = np.abs(cells[a] - cells[b]).mean(axis=1)
        columns += [apart.mean(axis=1) / 32, apart.max(axis=1) / 64]
        columns.append(_uncorrelated(_products(centred[a], centred[b]), deviation[a] * deviation[b]))
        columns.append(np.abs(histogram[a] - histogram[b]).sum(axis=1))
        columns.append(3 * apart.sum(axis=1) / whole)
        columns.append(_weighted_uncorrelated(grey[a], grey[b], weights))
    small = luma.reshape(count, 27, 48).round().astype(np.uint8)
    for lag in MOVED:
        blocks = _moved(small[middle - (lag + 1) // 2], small[middle + lag // 2])
        columns += [blocks.mean(axis=1) / 32, blocks.max(axis=1) / 64]
    spectra = np.fft.rfft2(centred.reshape(count, 27, 48) * _WINDOW)
    for lag in SHIFTED:
        columns.append(_shift_peak(spectra[middle - (lag + 1) // 2], spectra[middle + lag // 2]))
    for lag in BLENDS:
        a, b = middle - lag // 2, middle + lag // 2
        step, gone = cells[b] - cells[a], cells[middle] - cells[a]
        lengths, shares = (step * step).sum(axis=1), (gone * step).sum(axis=1)
        length = lengths.sum(axis=1) + NOISE * cells.shape[2]
        place = np.clip(shares.sum(axis=1) / length, -0.5, 1.5)
        off_line = gone - place[:, None, None] * step
        columns += [place, np.sqrt((off_line * off_line).sum(axis=(1, 2)) / length).clip(0, 4)]
        places = ((shares - lengths / 2) / (lengths + 12 * NOISE)).clip(-1, 1)
        columns += [places.min(axis=1), places.max(axis=1)]
        off = (gone * gone).sum(axis=1) - shares * shares / (lengths + NOISE)
        columns.append(np.sqrt(np.maximum(off, 0).sum(axis=1) / length).clip(0, 4))
    columns.append(np.log2(np.maximum(np.diff(times)[middle - 1], 1e-3) / 0.08).clip(-3, 4))
    return np.stack(columns, axis=1).astype(np.float32)


def unlike(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return two distances of (27, 48, 3) uint8 RGB frames, each 0 to 2: one minus the correlation of luma (invariant
    to brightness), and the difference of colour histograms (invariant to motion)."""
    both = np.stack([first, second])
    luma, histogram = _luma(both), _histograms(both)
    centred = luma - luma.mean(axis=1, keepdims=True)
    deviation = np.sqrt(_products(centred, centred))
    moved = _uncorrelated(_products(centred[:1], centred[1:]), deviation[:1] * deviation[1:])
    return float(moved[0]), float(np.abs(histogram[0] - histogram[1]).sum())


def _luma(colour: np.ndarray) -> np.ndarray:
    """(n, 27 * 48) float32."""
    return (colour.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).reshape(len(colour), -1)


def _uncorrelated(together: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Return one minus the correlation, from covariances and products of deviations (grey levels); near 0 if flat."""
    return 1 - (together + 4) / (deviations + 4)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) mean products of the rows of two (n, k) arrays."""
    return np.einsum("ij,ij->i", a, b) / a.shape[1]


def mean_cells(colour: np.ndarray) -> np.ndarray:
    """(n, 3, 9 * 16) float32 mean colours of cells."""
    count, (columns, rows) = len(colour), GRID
    stacked = np.ascontiguousarray(colour).reshape(count * colour.shape[1], colour.shape[2], 3)
    small = cv2.resize(stacked, (columns, count * rows), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small.reshape(count, rows * columns, 3).transpose(0, 2, 1), np.float32)


def _histograms(colour: np.ndarray) -> np.ndarray:
    """(n, 125) float32 shares of pixels by five levels of red, green and blue."""
    count = len(colour)
    codes = cv2.transform(cv2.LUT(colour.reshape(count, -1, 3), _LEVELS), np.ones((1, 3), np.float32))
    codes = codes.reshape(count, -1) + 125 * np.arange(count, dtype=np.int32)[:, None]
    counts = np.bincount(codes.reshape(-1), minlength=count * 125).reshape(count, 125)
    return (counts / codes.shape[1]).astype(np.float32)


def _range(cells: np.ndarray) -> np.ndarray:
    """Range of each value within REACH frames: (n, 3, k) -> (n - 2 * REACH, 3, k)."""
    high, low, width, wanted = cells, cells, 1, 2 * REACH + 1
    while width < wanted:  # double the window; the last step joins two overlapping windows
        step = min(width, wanted - width)
        high, low = np.maximum(high[:-step], high[step:]), np.minimum(low[:-step], low[step:])
        width += step
    return high - low


def _weighted_uncorrelated(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(n,) one minus the correlation of (n, k) values under (n, k) weights whose rows sum to 1."""
    a = a - (a * weights).sum(axis=1, keepdims=True)
    b = b - (b * weights).sum(axis=1, keepdims=True)
    deviations = np.sqrt((a * a * weights).sum(axis=1) * (b * b * weights).sum(axis=1))
    return _uncorrelated((a * b * weights).sum(axis=1), deviations)


def _shift_peak(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) the highest phase correlation of pictures with spectra `a` and `b`: 1 for a shifted copy, near 0 for
    another picture (Kuglin and Hines, 1975)."""
    cross = a * b.conj()
    return np.fft.irfft2(cross / (np.abs(cross) + 1e3), s=(27, 48)).max(axis=(1, 2))


def _moved(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, 12) mean difference of 3x4 blocks of (n, 27, 48) uint8 pictures after each block's best shift.

    The pictures are stacked vertically, nine rows apart, so that one view shifts all of them.
    """
    count = len(a)
    still = np.pad(a, ((0, 0), (0, 9), (0, 0))).reshape(-1, 48)
    edged = np.pad(np.pad(b, ((0, 0), (2, 2), (3, 3)), mode="edge"), ((0, 0), (0, 5), (0, 0))).reshape(-1, 54)
    edged = np.pad(edged, ((0, 4), (0, 0)))
    best = np.full((count * 4, 4), 255, np.uint8)
    for dy in range(5):
        for dx in range(7):
            apart = cv2.absdiff(still, edged[dy : dy + len(still), dx : dx + 48])
            np.minimum(best, cv2.resize(apart, (4, count * 4), interpolation=cv2.INTER_AREA), out=best)
    return best.reshape(count, 4, 4)[:, :3].reshape(count, 12).astype(np.float32)


_LEVELS = (((np.arange(256) * 5) >> 8)[:, None] * np.array([25, 5, 1])).astype(np.uint8)[None]
_WINDOW = (np.hanning(29)[1:-1, None] * np.hanning(50)[1:-1]).astype(np.float32)
