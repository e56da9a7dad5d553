"""Names that other libraries give to arguments, and what they are called here."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LIST = "a list of prompts gives a list of texts: [prompt] * 3"
_STREAM = "rf.stream_generate gives the text piece by piece"
_CHAT = "tokenizer.apply_chat_template makes a prompt of messages"
_LOAD = "rf.load takes context, the longest sequence in tokens"
_PACKED = "weights stay in the file's format, and are multiplied in it"

SAMPLING = {
    **dict.fromkeys(
        ("max_new_tokens", "max_length", "max_completion_tokens", "n_predict", "num_predict", "max_gen_len"),
        "max_tokens",
    ),
    "temp": "temperature",
    "topk": "top_k",
    "topp": "top_p",
    **dict.fromkeys(("typical", "typ_p"), "typical_p"),
    "minp": "min_p",
    **dict.fromkeys(("mirostat_mode", "mirostat_version"), "mirostat"),
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
    "dry_sequence_breaker": "dry_sequence_breakers",
    **dict.fromkeys(("repeat_penalty", "penalty_repeat"), "repetition_penalty"),
    "penalty_present": "presence_penalty",
    "penalty_freq": "frequency_penalty",
    **dict.fromkeys(("stop_sequences", "stop_strings", "stop_words", "reverse_prompt"), "stop"),
    **dict.fromkeys(("eos_token_id", "stop_tokens"), "stop_token_ids"),
    **dict.fromkeys(("min_new_tokens", "min_length"), "min_tokens"),
    **dict.fromkeys(("random_seed", "rng_seed"), "seed"),
    **dict.fromkeys(("n_probs", "top_logprobs", "output_scores"), "logprobs"),
    **dict.fromkeys(("adapter", "adapter_name", "lora_name", "lora_request"), "lora"),
    "ignore_eog": "ignore_eos",
    **dict.fromkeys(("do_sample", "greedy"), "temperature=0 takes the most likely token, more than 0 samples"),
    **dict.fromkeys(("num_return_sequences", "n", "best_of"), _LIST),
    **dict.fromkeys(("num_beams", "use_beam_search", "length_penalty"), "there is no beam search"),
    **dict.fromkeys(("stream", "streamer", "verbose"), _STREAM),
    **dict.fromkeys(("messages", "system", "tools"), _CHAT),
    **dict.fromkeys(("context", "n_ctx", "ctx_size", "max_model_len"), _LOAD),
    **dict.fromkeys(("input_ids", "inputs", "prompts", "text"), "prompt"),
    **dict.fromkeys(("echo", "return_full_text"), "prompt + text is the whole"),
}
"""Of `rf.SamplingParams` and `rf.generate`: the right name, or what to do."""

LOADING = {
    **dict.fromkeys(
        ("n_ctx", "ctx_size", "max_model_len", "max_seq_len", "max_length", "max_position_embeddings"), "context"
    ),
    **dict.fromkeys(("device_map", "n_gpu_layers", "ngl", "gpu", "main_gpu"), "device"),
    **dict.fromkeys(("torch_dtype", "dtype"), _PACKED),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), 'quantize="Q4_K_M", "Q8_0", ... packs on the way'),
    **dict.fromkeys(("quantization", "qtype"), "quantize"),
    **dict.fromkeys(("model", "model_path", "model_id", "repo_id", "filename", "file"), "path"),
    **dict.fromkeys(("verbose", "show_progress", "tqdm"), "progress"),
    **dict.fromkeys(("halves", "fp16"), "fp16_weights"),
    **dict.fromkeys(("type_k", "ctk"), "cache_type_k"),
    **dict.fromkeys(("type_v", "ctv"), "cache_type_v"),
    "kv_cache_dtype": "cache_type_k and cache_type_v are the types of keys and of values",
}
"""Of `rf.load`."""


def right_name(name: str, allowed: Iterable[str], usual: Mapping[str, str]) -> str:
    """What to write in place of a name that is not allowed: `did you mean 'max_tokens'?`."""
    names = list(allowed)
    known = usual.get(name) or next(iter(difflib.get_close_matches(name, names, 1, 0.75)), None)
    if known is None:
        return f"allowed are {', '.join(names)}"
    return f"did you mean {known!r}?" if known.isidentifier() else known


def checked_names(usual: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: an unknown keyword argument raises a TypeError, as Python's own, that names the right one.

    Args:
        usual: names of other libraries -> the right one, or what to do.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        allowed = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in allowed:
                    raise TypeError(f"unexpected keyword argument {name!r}; {right_name(name, allowed, usual)}")
            return function(*args, **kwargs)

        return checked

    return decorate
