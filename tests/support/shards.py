"""Small shards in the dataset's layout, cut from real videos, for the tests of what reads shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Sample = tuple[str, bytes, str, dict[str, float]]  # media kind, media, caption, index columns


def clips_of(video: Path, count: int, frames: int = 40, size: tuple[int, int] = (90, 160)) -> list[Sample]:
    """`count` clips in a row of a video, (height, width) `size`, keyframes every 10 frames."""
    out: list[Sample] = []
    with av.open(str(video)) as container:
        rate = container.streams.video[0].average_rate
        pictures = container.decode(video=0)
        for number in range(count):
            file = io.BytesIO()
            with av.open(file, "w", format="mp4") as mp4:
                stream = mp4.add_stream("libx264", rate=rate, options={"crf": "23", "g": "10", "preset": "ultrafast"})
                stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
                for _ in range(frames):
                    rgb = next(pictures).reformat(size[1], size[0], "rgb24").to_ndarray()
                    mp4.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
                mp4.mux(stream.encode(None))
            columns = {"frames": frames, "fps": float(rate), "duration": frames / float(rate)}
            columns |= {"width": size[1], "height": size[0]}
            out.append(("mp4", file.getvalue(), f"part {number} of {video.stem}", columns))
    return out


def still(seed: int, size: tuple[int, int] = (90, 160)) -> Sample:
    """A smooth random picture as a JPEG sample."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    columns = {"frames": 1, "fps": 0.0, "duration": 0.0, "width": size[1], "height": size[0]}
    return "jpg", jpeg, f"picture {seed}", columns


def write_shards(
    root: Path, shards: Sequence[Sequence[Sample]], split: str = "train", bucket: str = "16x9-90p"
) -> Path:
    """Writes tars and indexes under `root`/shards and returns `root`; keys are s<shard>n<number>."""
    folder = root / "shards" / bucket
    folder.mkdir(parents=True, exist_ok=True)
    for number, samples in enumerate(shards):
        rows = []
        with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as tar:
            for place, (media, data, caption, columns) in enumerate(samples):
                row: dict[str, object] = {"key": f"s{number}n{place}", "media": media, **columns}
                for name, ending, body in (
                    ("media", media, data),
                    ("text", "txt", caption.encode()),
                    ("json", "json", b"{}"),
                ):
                    member = tarfile.TarInfo(f"{row['key']}.{ending}")
                    member.size = len(body)
                    row |= {f"{name}_offset": tar.offset + 512, f"{name}_size": len(body)}
                    tar.addfile(member, io.BytesIO(body))
                rows.append(row)
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-{number:06d}.parquet")
    return root
