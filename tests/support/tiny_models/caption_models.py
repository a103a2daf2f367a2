"""Vision-language models with random weights and their real processors, made from scratch, for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from filters.torchvision_ops import ensure_torchvision

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<video>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
)
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_CHAT = QWEN_CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


def tokenizer(words: str = "", named: dict[str, str] | None = None) -> Any:
    """Bytes, the special tokens (every text can be written in them), and the words of a text; `named` are attributes
    that name special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *SPECIAL])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if words:
        trainer = trainers.BpeTrainer(vocab_size=4000, show_progress=False, initial_alphabet=letters)
        core.train_from_iterator([words] * 4, trainer)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=named or {}, **ends)


def qwen(
    text: dict[str, Any], vision: dict[str, Any], vocabulary: int | None = None, training: str = ""
) -> tuple[Any, Any]:
    """A Qwen2.5-VL configuration of these sizes, and its processor."""
    ensure_torchvision()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    words = tokenizer(training)
    token = words.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary or len(words),
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            **text,
        },
        vision_config={"out_hidden_size": text["hidden_size"], **vision},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        bos_token_id=token("<|im_start|>"),
        eos_token_id=token("<|im_end|>"),
    )
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT)
    return config, processor


def tiny_qwen(training: str = "") -> tuple[Any, Any]:
    """Qwen2.5-VL with 2 layers, and its processor."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]}
    config, processor = qwen({**TINY, "rope_parameters": rope}, vision, training=training)
    return model(config), processor


def speaking_qwen(text: str) -> tuple[Any, Any]:
    """A tiny Qwen2.5-VL that says `text` whatever it is asked, and its processor."""
    return speaking(*tiny_qwen(text), text)


def speaking_smolvlm(text: str) -> tuple[Any, Any]:
    """A tiny SmolVLM2 that says `text` whatever it is asked, and its processor."""
    return speaking(*tiny_smolvlm(text), text)


def speaking(vlm: Any, processor: Any, text: str) -> tuple[Any, Any]:
    """Change the weights of a model, whose tokenizer knows the words of `text`, so that it says `text`: its layers pass
    on the last token alone, and each word's row of the output matrix is the embedding of the word before it. No word
    may come twice."""
    encode = processor.tokenizer.encode
    answer = encode(f"\n{text}<|im_end|>")  # a prompt ends with a new line
    assert len(set(answer)) == len(answer), "a word comes twice"
    for layer in vlm.get_decoder().layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    head = torch.zeros_like(vlm.lm_head.weight)
    head[answer[1:]] = vlm.get_input_embeddings().weight[answer[:-1]]
    vlm.lm_head.weight = torch.nn.Parameter(head)
    return vlm, processor


def tiny_qwen3() -> tuple[Any, Any]:
    """Qwen3-VL with 2 layers, its tower's features put into both, and its processor."""
    ensure_torchvision()
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

    words = tokenizer()
    token = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words),
            "head_dim": 16,
            "eos_token_id": token("<|im_end|>"),
            **TINY,
            "rope_parameters": rope,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    pictures = Qwen2VLImageProcessor(patch_size=16)
    return model(config), Qwen3VLProcessor(pictures, words, Qwen3VLVideoProcessor(), chat_template=QWEN_CHAT)


def tiny_llava() -> tuple[Any, Any]:
    """LLaVA-OneVision with 2 layers, and its processor."""
    ensure_torchvision()
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    words = tokenizer()
    token = words.convert_tokens_to_ids
    size = {"height": 28, "width": 28}
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(words), "eos_token_id": token("<|im_end|>"), **TINY},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        image_token_id=token("<image>"),
        video_token_id=token("<video>"),
        image_grid_pinpoints=[[28, 28], [56, 28], [28, 56]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28], [56, 28], [28, 56]]),
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_CHAT,
    )
    return model(config), processor


def tiny_smolvlm(training: str = "") -> tuple[Any, Any]:
    """SmolVLM2 with 2 layers, and its processor."""
    ensure_torchvision()
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    words = tokenizer(training)
    token = words.convert_tokens_to_ids
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": len(words),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            **TINY,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 7,
        },
        image_token_id=token("<image>"),
        scale_factor=2,
        pad_token_id=token("<|endoftext|>"),
    )
    size = {"longest_edge": 56}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=size, max_image_size=size),
        words,
        SmolVLMVideoProcessor(size=size, max_image_size=size, video_sampling={"max_frames": 8, "fps": 1}),
        image_seq_len=16,
        chat_template=LLAVA_CHAT,
    )
    return model(config), processor


def tiny_internvl() -> tuple[Any, Any]:
    """InternVL with 2 layers, and its processor."""
    ensure_torchvision()
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLProcessor, InternVLVideoProcessor

    named = {
        "start_image_token": "<|vision_start|>",
        "end_image_token": "<|vision_end|>",
        "context_image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    words = tokenizer(named=named)
    token = words.convert_tokens_to_ids
    config = InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(words), "eos_token_id": token("<|im_end|>"), **TINY},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [7, 7],
        },
        image_token_id=token("<|image_pad|>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    size = {"height": 28, "width": 28}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        words,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=LLAVA_CHAT.replace("<image>", "<|image_pad|>"),
    )
    return model(config), processor


def model(config: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A model of this configuration with random weights, the same on every call."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device):
        vlm = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    vlm.generation_config.eos_token_id = config.get_text_config(decoder=True).eos_token_id
    return vlm


def save(vlm: Any, processor: Any, folder: Path) -> str:
    """Saves both as a repository on a model hub holds them; the folder's name."""
    vlm.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
