"""Small instruct models of other origins, with chat templates and end tokens of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from characters import character_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{{ m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen 2.5 has it."""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
ORIGINS = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>")),
}
"""Chat template and special tokens; the last one ends a turn."""
BEGIN, END, PLAIN_END = "<|begin_of_text|>", "<|end_of_text|>", "~"


def write_foreign(directory: Path, origin: str, *, pad: bool = True, positions: int = 256) -> Path:
    """A model that knows single characters and ends its replies, as its generation config says, at
    the end of a turn, at the end of a text, and at a token that is not known to be special."""
    template, special = ORIGINS[origin]
    reserved = [BEGIN, END, "<pad>", "<unk>", *special]
    inner = character_tokenizer(reserved)
    vocabulary = inner.get_vocab()
    inner.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, vocabulary[BEGIN])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=special[-1], unk_token="<unk>",
        additional_special_tokens=[END, *special], chat_template=template,
        **({"pad_token": "<pad>"} if pad else {}),
    )  # fmt: skip
    ends = [vocabulary[token] for token in (special[-1], END, PLAIN_END)]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2,  # vLLM has no CPU kernel for heads smaller than 32
        max_position_embeddings=positions, initializer_range=0.3, bos_token_id=vocabulary[BEGIN],
        eos_token_id=ends, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # replies end often
        model.lm_head.weight[ends] = model.lm_head.weight[ends].mean(0)
        model.lm_head.weight[ends] *= 2
    model.generation_config = GenerationConfig(bos_token_id=vocabulary[BEGIN], eos_token_id=ends)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
