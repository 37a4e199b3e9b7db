"""Tiny random models with the conventions of well-known families: special tokens, layouts, and real model classes.

Each tokenizer is trained here on the shipped prompts; only its conventions are those of its family: which of bos, eos,
unk and pad are equal or absent, whether BOS is added, byte-level or space-marked BPE, and how a turn is written.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.files import read_jsonl
from harness.hh_layout import SHIPPED

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_2 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA_3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today Date: {{ strftime_now('%d %b %Y') }}\n\n<|eot_id|>"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
_QWEN_3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set content = m['content'].split('</think>')[-1].lstrip('\n') %}<|im_start|>assistant\n"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_ROLE_NAMES = (  # Phi-2 and the older base models have no template of their own; people give them this one
    "{% for m in messages %}{{ ('USER: ' if m['role'] == 'user' else 'ASSISTANT: ') + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """How a family's tokenizer and model differ from others'."""

    name: str
    config: str  # class name in transformers
    template: str
    special: tuple[str, ...] = ()  # in order of ids, before the text's tokens for space-marked BPE, after them else
    plain: tuple[str, ...] = ()  # added tokens that are not special
    named: dict[str, str] = field(default_factory=dict)  # bos_token and so on
    spaced: bool = False  # space-marked BPE with bytes as a last resort, as of SentencePiece
    tokenizer: str = "PreTrainedTokenizerFast"
    add_bos: bool = False
    spare_rows: int = 0  # of the model's embeddings beyond the tokenizer
    more: dict[str, Any] = field(default_factory=dict)  # of the config
    pad: str | None = None  # the pad token that the harness should choose


_END = "<|endoftext|>"
_ALL_END = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_SP = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROPE = {"num_key_value_heads": 2}

FAMILIES = [
    Family("llama2", "LlamaConfig", _LLAMA_2, ("<unk>", "<s>", "</s>"), named=_SP, spaced=True,
           tokenizer="LlamaTokenizer", add_bos=True, more=_ROPE, pad="<unk>"),
    Family("llama3", "LlamaConfig", _LLAMA_3,
           ("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>"),
           named={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, add_bos=True, more=_ROPE,
           pad="<|reserved_special_token_0|>"),
    Family("mistral", "MistralConfig", _MISTRAL, ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[control_8]"),
           named=_SP, spaced=True, tokenizer="LlamaTokenizer", add_bos=True,
           more=_ROPE | {"sliding_window": None}, pad="<unk>"),
    Family("qwen2.5", "Qwen2Config", _CHATML, (_END, "<|im_start|>", "<|im_end|>", "<|vision_pad|>"),
           ("<tool_call>",), {"eos_token": _END, "pad_token": _END}, tokenizer="Qwen2Tokenizer", more=_ROPE,
           spare_rows=7, pad="<|vision_pad|>"),
    Family("qwen3", "Qwen3Config", _QWEN_3, (_END, "<|im_start|>", "<|im_end|>"), ("<think>", "</think>"),
           {"eos_token": "<|im_end|>", "pad_token": _END}, tokenizer="Qwen2Tokenizer",
           more=_ROPE | {"head_dim": 4}, pad=_END),
    Family("gemma3", "Gemma3TextConfig", _GEMMA,
           ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
           named={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
           spaced=True, tokenizer="GemmaTokenizer", add_bos=True,
           more=_ROPE | {"head_dim": 4, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
           pad="<pad>"),
    Family("gpt2", "GPT2Config", _ROLE_NAMES, (_END,), named=_ALL_END, tokenizer="GPT2Tokenizer"),
    Family("neox", "GPTNeoXConfig", _ROLE_NAMES, (_END, "<|padding|>"), named=_ALL_END,
           tokenizer="GPTNeoXTokenizer", pad="<|padding|>"),
    Family("olmo2", "Olmo2Config", _OLMO_2, (_END, "<|pad|>"), named=_ALL_END | {"pad_token": "<|pad|>"},
           tokenizer="GPT2Tokenizer", more=_ROPE, pad="<|pad|>"),
    Family("phi", "PhiConfig", _ROLE_NAMES, (_END,), ("  ", "\t\t"), _ALL_END, tokenizer="CodeGenTokenizer",
           spare_rows=9),
    Family("smollm2", "LlamaConfig", _CHATML, (_END, "<|im_start|>", "<|im_end|>", "<repo_name>", "<filename>"),
           named=_ALL_END, tokenizer="GPT2Tokenizer", more=_ROPE | {"tie_word_embeddings": True}, pad="<filename>"),
]  # fmt: skip


def build(family: Family, folder: Path, *, template: bool = True) -> Path:
    """A random model of `family`, with its tokenizer, as a checkpoint in `folder`."""
    import torch
    import transformers

    tokens = tokenizer_of(family, template=template)
    classes = {"eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
    if family.config != "GPT2Config":  # which sizes it by itself
        sizes["intermediate_size"] = 32
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(
        vocab_size=len(tokens) + family.spare_rows,
        **sizes,
        **classes,
        **{"pad_token_id": tokens.pad_token_id, "initializer_range": 0.3} | family.more,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def tokenizer_of(family: Family, *, template: bool = True) -> Any:
    """A tokenizer with the conventions of `family`, as people find it: the harness has chosen no pad token yet."""
    import transformers
    from tokenizers import AddedToken

    vocabulary, merges = _trained(family.spaced)
    if family.spaced:
        first = [*family.special, *(f"<0x{byte:02X}>" for byte in range(256))]
        order = [*first, *(token for token in vocabulary if token not in first)]
    else:
        order = [*vocabulary, *family.special]
    ids = {token: i for i, token in enumerate(order)}
    cls = getattr(transformers, family.tokenizer)
    named = {"bos_token": None, "unk_token": None, "pad_token": None} | family.named
    if family.tokenizer == "PreTrainedTokenizerFast":
        tokens = cls(tokenizer_object=_llama_3(ids, merges, named["bos_token"]), **named)
    else:
        tokens = cls(vocab=ids, merges=merges, **named, **({"add_bos_token": True} if family.add_bos else {}))
    tokens.add_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    tokens.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.plain])
    tokens.chat_template = family.template if template else None
    return tokens


def _llama_3(ids: dict[str, int], merges: list[tuple[str, str]], bos: str | None) -> Any:
    """Llama 3's pipeline: whole words of the vocabulary before merges, its own split, BOS by the post-processor."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    core = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos or ""])])
    return core


@functools.cache
def _trained(spaced: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """(tokens in order, merges) of a small BPE of the shipped prompts: over bytes, or over words marked by a space."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [row["prompt"] for name in ("redteam", "helpful") for row in read_jsonl(SHIPPED / f"{name}.jsonl")]
    core = Tokenizer(models.BPE())
    if spaced:
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=250, show_progress=False)
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts, trainer)
    model = json.loads(core.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]
