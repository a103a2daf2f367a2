"""Damaged video files: small originals in many containers, and seeded mutations of their bytes."""

from __future__ import annotations

import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from footage.videos import pan, texture, write_video

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
HEADER = 1024  # bytes in which most containers keep what they say of themselves
BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss",
         b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"elst", b"edts", b"avc1", b"avcC", b"moof", b"traf", b"trun", b"tfhd",
         b"mdat", b"ftyp")  # fmt: skip


def originals(folder: Path, height: int = 48, width: int = 64, frames: int = 12) -> dict[str, bytes]:
    """A second of two moving pictures in each container, by file name."""
    shots = pan(texture(1, height, width), frames // 2, 2.0) + pan(
        texture(2, height, width), frames - frames // 2, -2.0
    )
    written = {
        "plain.mp4": {"bf": "2", "g": "6"},
        "fast.mp4": {"container_options": {"movflags": "faststart"}, "g": "6"},
        "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "g": "4"},
        "h264.mkv": {"bf": "2", "g": "6"},
        "vp9.webm": {"codec": "libvpx-vp9"},
        "h264.ts": {"bf": "2", "g": "6"},
        "mpeg4.avi": {"codec": "mpeg4"},
        "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    }
    return {
        name: write_video(folder / name, shots, float(frames), **options).read_bytes()  # type: ignore[arg-type]
        for name, options in written.items()
    }


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    for _ in range(rng.choice((1, 4, 16, 64, 256))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_header(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    for _ in range(rng.choice((1, 4, 16))):
        data[rng.randrange(min(HEADER, len(data)))] ^= 1 << rng.randrange(8)
    return data


def truncate(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    return data[: rng.randrange(1, len(data))]


def overwrite(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """A range becomes zeros, noise or text."""
    at, size = rng.randrange(len(data)), rng.choice((8, 64, 512, 4096))
    size = min(size, len(data) - at)
    data[at : at + size] = rng.choice((bytes(size), rng.randbytes(size), b"clipmill" * (size // 8 + 1)))[:size]
    return data


def cut_out(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 3, 16, 188, 1000))]
    return data or bytearray(b"\0")


def repeat(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    at, size = rng.randrange(len(data)), rng.choice((4, 188, 2000))
    return data[: at + size] * rng.choice((1, 1, 3)) + data[at:]


def splice(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """A part of another container in place of, or between, its own bytes."""
    at, start = rng.randrange(len(data)), rng.randrange(len(other))
    part = other[start : start + rng.choice((16, 256, 4096))]
    return data[:at] + part + data[at + rng.choice((0, len(part))) :]


def craft_header(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Extreme numbers in either byte order in the first bytes."""
    for _ in range(rng.choice((1, 2, 6))):
        value, order = rng.choice(EXTREMES), rng.choice("<>")
        form = rng.choice("BHI")
        size = struct.calcsize(form)
        at = rng.randrange(max(1, min(HEADER, len(data)) - size))
        data[at : at + size] = struct.pack(order + form, value & (256**size - 1))
    return data


def craft_box(data: bytearray, rng: random.Random, other: bytes) -> bytearray:
    """Extreme numbers in a box of an MP4: its size, or a field of its body; elsewhere as `craft_header`."""
    places = [at for name in BOXES if (at := data.find(name)) >= 4]
    if not places:
        return craft_header(data, rng, other)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.choice(places) + rng.choice((-4, 4, 8, 12, 16, 20, 24, 28, 32, 40))
        if 0 <= at <= len(data) - 4:
            data[at : at + 4] = struct.pack(">I", rng.choice((*EXTREMES, rng.getrandbits(32))))
    return data


MUTATIONS: dict[str, Callable[[bytearray, random.Random, bytes], bytearray]] = {
    "bit flips": flip_bits,
    "bit flips in the header": flip_header,
    "truncation": truncate,
    "overwritten range": overwrite,
    "removed range": cut_out,
    "repeated range": repeat,
    "spliced": splice,
    "crafted header": craft_header,
    "crafted box": craft_box,
}


def mutated(sources: dict[str, bytes], number: int) -> tuple[str, str, bytes]:
    """Mutation, file name and bytes of the file `number`: the same for the same sources."""
    rng = random.Random(number)
    names = list(sources)
    name = names[number % len(names)]
    mutation = list(MUTATIONS)[number // len(names) % len(MUTATIONS)]
    other = sources[rng.choice(names)]
    data = MUTATIONS[mutation](bytearray(sources[name]), rng, other)
    stem, dot, ending = name.partition(".")
    return mutation, f"{number:06d}-{stem}{dot}{ending}", bytes(data)


def structured(folder: Path, sources: dict[str, bytes]) -> dict[str, str]:
    """Write cases that no mutation makes into `folder`; what each is, by path below it ("" as the path of what is no
    file and so has no row)."""
    gif, mp4 = sources["animation.gif"], sources["plain.mp4"]
    long = patch_mp4(patch_mp4(mp4, b"mdhd", 16, 0xFFFFFFFF), b"mvhd", 16, 0xFFFFFFFF)
    files = {
        "16k.gif": ("16384 x 16384 pixels declared", gif[:6] + struct.pack("<HH", 16384, 16384) + gif[10:]),
        "16k.png": ("16384 x 16384 pixels declared", _png(16384, 16384)),
        "empty.mp4": ("no bytes", b""),
        "text.mp4": ("text", b"this is no video\n" * 100),
        "concat.mp4": ("a script that names other files", b"ffconcat version 1.0\nfile '/etc/passwd'\n"),
        "playlist.mp4": ("a playlist", b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
        "huge-stts.mp4": ("frames of 68 years", patch_mp4(mp4, b"stts", 12, 0x7FFFFFFF)),
        "no-timescale.mp4": ("timescale 0", patch_mp4(mp4, b"mdhd", 12, 0)),
        "long.mp4": ("a duration of 136 years", long),
        "many-samples.mp4": ("2^31 samples", patch_mp4(mp4, b"stsz", 8, 0x7FFFFFFF)),
    }  # fmt: skip
    cases = {}
    for name, (what, data) in files.items():
        (folder / name).write_bytes(data)
        cases[name] = what
    many_streams(folder / "streams.mkv", 100)
    cases["streams.mkv"] = "100 streams"
    os.mkfifo(folder / "pipe.mp4")
    cases["pipe.mp4"] = "a pipe"
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            listener.bind("socket.mp4")
        finally:
            os.chdir(here)
    cases["socket.mp4"] = "a socket"
    (folder / "circle-a.mp4").symlink_to(folder / "circle-b.mp4")
    (folder / "circle-b.mp4").symlink_to(folder / "circle-a.mp4")
    cases["circle-a.mp4"] = cases["circle-b.mp4"] = "a link in a circle"
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    cases["gone.mp4"] = "a link to nothing"
    (folder / "zero.mp4").symlink_to("/dev/zero")
    cases["zero.mp4"] = "a link to an endless device"
    (folder / "folder.mp4").mkdir()
    (folder / "folder.mp4" / "inside.mp4").write_bytes(mp4[: len(mp4) // 2])
    cases["folder.mp4/inside.mp4"] = "half a file in a folder named as a video"
    (folder / "loop").mkdir()
    (folder / "loop" / "back").symlink_to(folder)
    for name in ("vanishing.mp4", "vanishing-later.mp4", "growing.ts"):
        data = bytearray(sources["h264.ts"] if name.endswith("ts") else mp4)
        (folder / name).write_bytes(data + name.encode())  # no two of one content
        cases[name] = name.partition(".")[0] + " while the build runs"
    return cases


def patch_mp4(data: bytes, box: bytes, offset: int, value: int) -> bytes:
    """`data` with a 32-bit number at `offset` bytes into the body of the first `box`."""
    at = data.index(box) + 4 + offset
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


def many_streams(path: Path, count: int) -> None:
    """A Matroska file of so many video streams, three pictures each."""
    picture = av.VideoFrame.from_ndarray(np.full((24, 16), 90, np.uint8), format="yuvj420p")
    with av.open(str(path), "w") as container:
        streams = [
            container.add_stream("mjpeg", rate=10, width=16, height=16, pix_fmt="yuvj420p") for _ in range(count)
        ]
        for pts in range(3):
            for stream in streams:
                picture.pts = pts
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode(None))


def _png(width: int, height: int) -> bytes:
    """A PNG that declares this size and has one row of it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
