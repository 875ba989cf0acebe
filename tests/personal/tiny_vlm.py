"""A random LLaVA-OneVision with its processor, small enough to read users in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

SIDE, PATCH, LAYERS, WIDTH = 28, 14, 2, 16
# All pictures before all text, as the chat template of LLaVA-OneVision has it.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}\n{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_vlm(folder: Path, chat: bool = True) -> Path:
    """Weights, configuration and processor in the transformers layout."""
    tokenizer = _tokenizer()
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=[[SIDE, SIDE]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT if chat else None,
    )
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(_config(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    more = ["<|im_start|>", "<image>", "<video>"]
    return PreTrainedTokenizerFast(tokenizer_object=byte_level, additional_special_tokens=more, **special)


def _config(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionConfig:
    small = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**small, image_size=SIDE, patch_size=PATCH, vision_use_head=False),
        text_config=Qwen2Config(
            **small, num_key_value_heads=1, vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
