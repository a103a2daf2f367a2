"""Images: what still pictures of every kind look like when a build has packed them, beside clips of a film."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from footage.videos import pan, texture, write_video
from PIL import Image

from model.config import from_dict
from model.data import loader as data
from model.data.index import make_schedule, read_index
from model.data.schedule import Shape
from pipeline.build import build
from pipeline.config.recipe import load_recipe
from pipeline.dataset.verify import verify
from pipeline.media.proxy import Shrinker
from pipeline.media.video import MediaError, Video

QUIET = {"x265-params": "log-level=none"}
CORNERS = np.array([[(200, 30, 30), (30, 200, 30)], [(30, 30, 200), (200, 200, 30)]], np.float32)  # RGB
UPRIGHT = {  # by EXIF orientation: what makes the stored picture the shown one
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: np.swapaxes(p, 0, 1),
    6: lambda p: np.rot90(p, 3),
    7: lambda p: np.rot90(np.fliplr(p), 3),
    8: np.rot90,
}


def card(seed: int) -> np.ndarray:
    """(240, 320, 3): a detailed picture whose corners are red, green, blue and yellow."""
    colours = cv2.resize(CORNERS, (320, 240), interpolation=cv2.INTER_NEAREST)
    return np.clip(0.35 * texture(seed, 240, 320) + 0.65 * colours, 0, 255).astype(np.uint8)


def corners(picture: np.ndarray) -> np.ndarray:
    """(2, 2, 3): the mean colour of each quarter."""
    height, width = (side // 2 * 2 for side in picture.shape[:2])
    return picture[:height, :width].reshape(2, height // 2, 2, width // 2, 3).mean((1, 3))


def saved(picture: np.ndarray, file_format: str, mode: str = "RGB", orientation: int = 0, **options: object) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x112] = orientation
    Image.fromarray(picture).convert(mode).save(file, file_format, exif=exif, **options)
    return file.getvalue()


FILES = {  # the same picture in other files
    **{
        f"{file_format} {mode}": saved(card(1), file_format, mode)
        for file_format in ("png", "tiff", "bmp")
        for mode in ("RGB", "P")
    },
    **{f"jpeg {mode}": saved(card(1), "jpeg", mode, quality=95) for mode in ("RGB", "CMYK")},
    "progressive": saved(card(1), "jpeg", quality=95, progressive=True),
    "alpha": saved(card(1), "png", "RGBA"),
    "webp": saved(card(1), "webp", quality=95),
    "gif": saved(card(1), "gif"),
    "16 bits": cv2.imencode(".png", card(1)[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "grey": saved(card(1), "jpeg", "L", quality=95),
    "grey 16 bits": cv2.imencode(".tif", cv2.cvtColor(card(1), cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257)[
        1
    ].tobytes(),
}


@pytest.mark.parametrize("file_format", FILES)
def test_a_picture_has_its_colours_whatever_the_file(file_format):
    with Video(io.BytesIO(FILES[file_format])) as video:
        assert (video.probe.image, video.probe.width, video.probe.height) == (True, 320, 240)
        frame = next(video.frames())
        still = Shrinker(video.probe).still(frame, 320).rgb((0.0, 0.0, 1.0, 1.0))
    wanted = corners(card(1))
    if "grey" in file_format:
        wanted = np.repeat((wanted @ [0.299, 0.587, 0.114])[:, :, None], 3, axis=2)
    for shown in (frame.rgb(), still):
        assert np.abs(corners(shown) - wanted).max() < 6


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_photograph_is_turned_as_its_camera_noted(orientation):
    upright = UPRIGHT[orientation](card(2))
    with Video(io.BytesIO(saved(card(2), "jpeg", orientation=orientation))) as video:
        assert (video.probe.height, video.probe.width) == upright.shape[:2]
        shown = next(video.frames()).rgb()
    assert np.abs(corners(shown) - corners(upright)).max() < 6


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp"])
def test_half_a_picture_is_none(file_format):
    whole = saved(card(3), file_format)
    with pytest.raises(MediaError, match="no frame could be decoded"):
        Video(io.BytesIO(whole[: len(whole) // 2]))


def shots_of(film: Path) -> list[np.ndarray]:
    """A picture of each of the film's six shots, (272, 640, 3) uint8 RGB."""
    with av.open(str(film)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[i] for i in (15, 50, 90, 130, 170, 225)]


def test_a_picture_in_tiles_is_none_rather_than_one_of_its_tiles(tmp_path):
    path = tmp_path / "picture.avif"
    Image.fromarray(card(1)).save(path)
    assert not Video(str(path)).probe.rotation
    data = path.read_bytes()
    item = data.index(b"infe")
    path.write_bytes(data[:item] + data[item:].replace(b"av01", b"grid", 1))
    with pytest.raises(MediaError, match="HEIF grid"):
        Video(str(path))


def test_an_image_sequence_of_heif_is_a_film(tmp_path):
    film = write_video(tmp_path / "film.mp4", pan(texture(1, 64, 96), 20, 1.0), codec="libx265", **QUIET)
    data = film.read_bytes().replace(b"isomiso2mp41", b"msf1hevcmp41").replace(b"ftypisom", b"ftypmsf1")
    path = tmp_path / "sequence.heic"
    path.write_bytes(data.replace(b"vide", b"pict"))  # the handler of image sequences
    with Video(str(path)) as sequence:
        assert not sequence.probe.image
        assert (sequence.probe.width, sequence.probe.height, sequence.probe.duration) == (96, 64, 0.8)
        assert [round(frame.time * 25) for frame in sequence.frames()] == list(range(20))


def test_images_of_a_folder_and_a_tar_are_samples_beside_the_clips_of_a_film(tmp_path, sample_videos):
    """Stills of one film and clips of another, and what cannot be used, by the default recipe; then what a training run
    sees of them."""
    folder, out = tmp_path / "in", tmp_path / "dataset"
    folder.mkdir()
    shutil.copy(sample_videos["bigbuckbunny"], folder / "film.mp4")
    shots = shots_of(sample_videos["bikes"])
    (folder / "0.jpg").write_bytes(saved(shots[0], "jpeg", quality=95))
    (folder / "1.png").write_bytes(saved(shots[1], "png"))
    (folder / "2.jpg").write_bytes(saved(np.rot90(shots[2]), "jpeg", orientation=6, quality=95))
    (folder / "3.jpg").write_bytes(saved(shots[3], "jpeg", "CMYK", quality=95))
    (folder / "half.jpg").write_bytes(saved(shots[4], "jpeg")[:20_000])
    (folder / "letter.jpg").write_text("Dear reader, this is no picture.")
    (folder / "dot.png").write_bytes(saved(shots[4][:1, :1], "png"))
    moving = [Image.fromarray(shot) for shot in shots[4:]]
    moving[0].save(folder / "moving.webp", save_all=True, append_images=moving[1:], duration=500)
    with tarfile.open(folder / "web.tar", "w") as tar:
        for name, picture in (("4", shots[4]), ("5", shots[5])):
            for ending, body in (("jpg", saved(picture, "jpeg", quality=95)), ("json", b'{"licence": "CC0"}')):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))

    options = ["scan.shots=adaptive", "scan.min_seconds=1", "caption.options.least=0.005"]
    built = build([str(folder)], str(out), load_recipe("embedded", options), cores=1)
    assert verify(str(out)) == []
    errors = {row["source_uri"].rpartition("/")[2]: row["error"] for row in built.sources if row["status"] != "ok"}
    assert errors == dict.fromkeys(("half.jpg", "letter.jpg", "moving.webp"), "no frame could be decoded")
    rows = {row["source_uri"].rpartition("/")[2]: row for row in built.clips.to_pylist()}
    assert rows.pop("dot.png")["rejected_by"] == ["resolution"]
    assert all(row["keep"] and row["caption"] for row in rows.values()), rows
    assert {row["bucket"] for row in rows.values()} == {"16x9-720p", "21x9-240p-still"}

    config = from_dict({"data": [str(out)], "resolutions": 160, "frame_counts": [1, 5], "fps": 8, "tokens": 400})
    index = read_index(config.data)
    order = make_schedule(index, config, (4, 8, 8))
    clips, numbers = data.Clips(index, order, config), index.key.tolist()
    for i, name in enumerate(("0.jpg", "1.png", "2.jpg", "3.jpg", "web.tar#4.jpg", "web.tar#5.jpg")):
        number = numbers.index(rows.pop(name)["clip_id"])
        (picture,) = clips.frames(number, Shape(1, 240, 560), 0.0)
        wanted = cv2.resize(shots[i], (560, 240), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(picture.ravel(), wanted.ravel())[0, 1] > 0.9, name
    assert list(rows) == ["film.mp4"]
    batches = [clips[draws] for step in range(8) for draws in order.step(step)]
    assert {key for batch in batches for key in batch.keys} == set(numbers)
    assert {len(batch.inputs[0]) for batch in batches} == {1, 5}
