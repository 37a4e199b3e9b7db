"""What a tokenizer carries away from a run, so that other programs write texts as this one does.

They know `apply_chat_template` and nothing else: vLLM's chat endpoint and lm-eval for policies, RewardBench and
vLLM's pooling for preference models, whose score is read at the last token of a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.models import chat, checkpoints

_HH_LAYOUT = (
    "%s{%% for m in messages %%}{%% if m['role'] == 'assistant' %%}{{ '\\n\\nAssistant: ' + m['content'] | trim }}"
    "{%% else %%}{{ '\\n\\nHuman: ' + m['content'] | trim }}{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}{{ '\\n\\nAssistant:' }}"
    "{%% elif messages[-1]['role'] == 'assistant' %%}{{ eos_token }}{%% endif %%}"
)
# Whatever a template writes behind the last end of turn (SmolLM2 and Qwen: a line break) goes. The empty strings keep
# line breaks at its ends, which Jinja takes away beside a block.
_UNTIL_END_OF_TURN = (
    "{%% set enable_thinking = false %%}{%% set told %%}{{ '' }}%s{{ '' }}{%% endset %%}{%% set close = %r %%}"
    "{%% if messages[-1]['role'] == 'assistant' and not add_generation_prompt and close in told %%}"
    "{{ told.rsplit(close, 1)[0] + close }}{%% else %%}{{ told }}{%% endif %%}"
)


def policy(tokenizer: Any) -> Any:
    """`tokenizer`, with the layout of human and assistant turns as its chat template where it has none."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _HH_LAYOUT % _begin(tokenizer)
    return tokenizer


def _begin(tokenizer: Any) -> str:
    """What a template writes for the BOS that `tokenizer` would add, so that the text after it is tokenised alike."""
    bos = chat.bos_ids(tokenizer)
    if not bos:
        return ""
    text = "\n\nHuman: Tea?"
    alike = tokenizer(tokenizer.bos_token + text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]
    return "{{ bos_token }}" if alike else "{{ bos_token + ' ' }}"  # SentencePiece begins a text with a space


def preference_model(tokenizer: Any) -> Any:
    """`tokenizer`, changed so that the ids of a templated conversation are `chat.encode_dialogue`'s.

    The text ends at the end of turn, and whether there is a BOS is the template's to say: tokenised with special tokens
    or without, it is the same.
    """
    closing = tokenizer.convert_ids_to_tokens(chat.end_of_turn_id(tokenizer))
    if tokenizer.chat_template is None:
        policy(tokenizer)
    else:
        dated = chat.template_arguments(tokenizer).get("chat_template", tokenizer.chat_template)
        head = dated.removesuffix(tokenizer.chat_template)
        tokenizer.chat_template = head + _UNTIL_END_OF_TURN % (tokenizer.chat_template.removesuffix("\n"), closing)
    if tokenizer("")["input_ids"]:
        _add_nothing(tokenizer)
    return tokenizer


def _add_nothing(tokenizer: Any) -> None:
    """Let `tokenizer` add neither BOS nor EOS by itself, nor after it has been saved and loaded."""
    from tokenizers.processors import TemplateProcessing

    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs or hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
            tokenizer.init_kwargs[name] = False
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")


def for_older_transformers(folder: Path) -> None:
    """Let transformers 4 read a checkpoint that transformers 5 saved, as RewardBench's 4.51 must.

    It does not know the tokenizer class that 5 writes, and misses the base of the rotary embeddings where 5 puts it: it
    would take its default of 10,000 without a word. Transformers 5 reads both.
    """
    file = folder / "tokenizer_config.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    if about.get("tokenizer_class") == "TokenizersBackend":
        about["tokenizer_class"] = "PreTrainedTokenizerFast"
        about.setdefault("model_input_names", ["input_ids", "attention_mask"])  # else token types, which Llama refuses
    for left in ("is_local", "local_files_only"):  # of the load on this machine
        about.pop(left, None)
    file.write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")

    file = folder / "config.json"
    about = json.loads(file.read_text(encoding="utf-8"))
    rope = dict(about.get("rope_parameters") or {})
    if "rope_theta" in rope:  # else absent, or by kind of layer
        names = ("rope_theta", "partial_rotary_factor")
        about |= {name: rope.pop(name) for name in names if name in rope}
        about |= {"rope_scaling": rope} if rope.get("rope_type", "default") != "default" else {}
    file.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def merged(model: str | Path, folder: Path) -> bool:
    """Write `model` with all its weights into `folder`, for other programs; whether it is a preference model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    pm = isinstance(model, Path) and _is_pm(model)
    if pm:
        classifier, dtype = AutoModelForSequenceClassification, torch.float32
        found, tokenizer = checkpoints.load_model(classifier, model, num_labels=1, dtype=dtype)
        preference_model(tokenizer)
    else:
        found, tokenizer = checkpoints.load_model(AutoModelForCausalLM, model, dtype="auto")
        policy(tokenizer)
    found.config._name_or_path = ""  # a path on this machine means nothing elsewhere
    checkpoints.save(found, tokenizer, folder)
    for_older_transformers(folder)
    return pm


def _is_pm(model: Path) -> bool:
    adapter = model / "adapter_config.json"
    about = json.loads((adapter if adapter.is_file() else model / "config.json").read_text(encoding="utf-8"))
    kinds = [str(about.get("task_type")), *map(str, about.get("architectures") or [])]
    return any(kind == "SEQ_CLS" or "SequenceClassification" in kind for kind in kinds)
