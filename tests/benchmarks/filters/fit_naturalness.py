"""Makes filters/picture/naturalness.npz from good photographs, each at its own size and at half of it.

    python tests/benchmarks/filters/fit_naturalness.py PICTURE ...

The one in the package was made from 13 photographs that come with scikit-image 0.26 (astronaut, camera, chelsea,
coffee, rocket, both of motorcycle, grass, gravel, brick, hubble_deep_field) and scikit-learn (china, flower).
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from filters.picture import naturalness


def main() -> None:
    pictures = []
    for name in sys.argv[1:]:
        picture = cv2.imread(name, cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise SystemExit(f"{name} is not a picture")
        pictures.append(picture)
        if min(picture.shape) >= 400:
            pictures.append(cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    if not pictures:
        raise SystemExit(__doc__)
    rows = np.array([row for picture in pictures for row in naturalness.square_features(picture)])
    mean, covariance = rows.mean(axis=0), np.cov(rows, rowvar=False)
    path = Path(naturalness.__file__).with_suffix(".npz")
    np.savez(path, mean=mean.astype(np.float32), covariance=covariance.astype(np.float32))
    print(f"{path}: {len(pictures)} pictures, condition number {np.linalg.cond(covariance):.3g}")


if __name__ == "__main__":
    main()
