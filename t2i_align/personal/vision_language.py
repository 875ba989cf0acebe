"""A vision-language model that reads somebody's choices and is caught thinking: its last hidden states are the user.

arXiv 2501.06655: the model sees N pairs, describes them, says how they differ and sums the person up; the hidden
state of the last decoding step, of the embedding and of every layer, is the user's array ``[L, F]``. Any model that
transformers opens as image-text-to-text with a chat template will do; the paper's is LLaVA-OneVision 7B (29 x 3584).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i_align.errors import UserError

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TASK = (
    "These are pairs of pictures. Both pictures of a pair were made for one caption, and the same person chose between "
    "them every time. The pictures are numbered in the order in which you see them."
)
QUESTION = (
    "Judge by style, picture quality and aesthetics. First describe both pictures of every pair and how they differ. "
    "Then sum up what this person likes and dislikes. Keep to this layout:\n{layout}\nUser profile: ..."
)
PAIR_LAYOUT = "Pair {number}: preferred: ... not preferred: ... differences: ..."


@dataclass(frozen=True)
class Choice:
    """One comparison that a user decided.

    Attributes:
        caption: of both pictures.
        winner, loser: decoded.
    """

    caption: str
    winner: Image.Image
    loser: Image.Image


@dataclass(frozen=True)
class Reading:
    """What a model made of a user.

    Attributes:
        states: ``[L, F]``, L - 1 layers and the embedding, in the model's precision, on the CPU.
        text: the answer.
        finished: whether the answer ended by itself.
    """

    states: Tensor
    text: str
    finished: bool


class VisionLanguageModel:
    """Reads users.

    Args:
        name: transformers folder with safetensors weights, or hub id.
        device: where it runs.
        precision: of its weights: fp32, fp16 or bf16.

    Raises:
        UserError: no such model, not image-text-to-text, or without a chat template.
    """

    def __init__(self, name: str, device: str, precision: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self._device, self._dtype = device, PRECISIONS[precision]
        try:
            self._processor: Any = AutoProcessor.from_pretrained(name)
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=self._dtype, use_safetensors=True)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UserError(
                "This is no vision-language model that transformers can open.",
                f"{name}: {str(error).splitlines()[0]}",
                "give a folder or hub id such as llava-hf/llava-onevision-qwen2-7b-ov-chat-hf",
            ) from error
        if getattr(self._processor, "chat_template", None) is None:
            raise UserError(
                "The model has no chat template: it cannot be asked.", name, "give the chat variant of the model"
            )
        self._model = model.to(device).eval()

    @torch.no_grad()
    def read(self, choices: Sequence[Choice], max_new_tokens: int) -> Reading:
        """Greedy answer to `conversation` and the hidden states of its last step.

        Args:
            choices: in the order in which they are shown.
            max_new_tokens: longest answer.
        """
        inputs = self._processor.apply_chat_template(
            [conversation(choices)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self._device)
        inputs = {name: self._cast(value) for name, value in inputs.items()}
        made = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
            output_hidden_states=True,
        )
        answer = made.sequences[0, inputs["input_ids"].shape[1] :]
        states = torch.stack([layer[0, -1] for layer in made.hidden_states[-1]])
        return Reading(states.cpu(), self._processor.decode(answer, skip_special_tokens=True), self._ended(answer))

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _ended(self, answer: Tensor) -> bool:
        ends = self._model.generation_config.eos_token_id
        return int(answer[-1]) in (ends if isinstance(ends, list) else [ends])


def conversation(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """One turn: the task, every pair with its caption, the preferred picture first, and the question.

    Pictures have numbers, for there are chat templates that show all pictures before the first word (LLaVA-OneVision's
    in transformers does) and others that leave them where they stand.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": TASK}]
    for number, choice in enumerate(choices, 1):
        better, worse = 2 * number - 1, 2 * number
        content += [
            {"type": "text", "text": f'Pair {number}, caption "{choice.caption}". Picture {better}, preferred:'},
            {"type": "image", "image": choice.winner},
            {"type": "text", "text": f"Picture {worse}, not preferred:"},
            {"type": "image", "image": choice.loser},
        ]
    layout = "\n".join(PAIR_LAYOUT.format(number=number) for number in range(1, len(choices) + 1))
    content.append({"type": "text", "text": QUESTION.format(layout=layout)})
    return [{"role": "user", "content": content}]
