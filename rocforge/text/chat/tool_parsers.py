"""The formats of calls by the names that vLLM gives to its tool parsers, and by what chat templates say.

Sources: https://docs.vllm.ai/en/latest/features/tool_calling.html, and the published chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rocforge.text.chat.calls import NAME, JSONCalls
from rocforge.text.chat.gemma import GemmaCalls
from rocforge.text.chat.harmony import HarmonyCalls
from rocforge.text.chat.pythonic import PythonicCalls
from rocforge.text.chat.reply import CallFormat
from rocforge.text.chat.tagged import TaggedCalls

_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_MISTRAL_HEAD = re.compile(rf"\s*({NAME})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*")


def _tags(begin: str, end: str, tag: str = "", said: str = "") -> TaggedCalls:
    """`invoke` with a name, and `parameter` with a name, within a section."""
    string = r'\s+string="(true|false)"' if said else ""
    return TaggedCalls(
        (begin, end),
        (f'<{tag}invoke name="{{name}}">', f"</{tag}invoke>"),
        (f'<{tag}parameter name="{{key}}"{said}>', f"</{tag}parameter>"),
        re.compile(rf'"?({NAME})"?\s*>'),
        re.compile(rf'"?([^">]+?)"?{string}\s*>'),
    )


def _functions(begin: str, end: str, inner: str) -> TaggedCalls:
    """`function` and `parameter` with their names after `=`."""
    return TaggedCalls(
        (begin, end),
        ("<function={name}>", "</function>"),
        ("<parameter={key}>", "</parameter>"),
        re.compile(rf"\s*({NAME})\s*>"),
        re.compile(r"\s*([^>\n]+?)\s*>"),
        inner,
    )


def _glm(between: str) -> TaggedCalls:
    return TaggedCalls(
        ("<tool_call>", "</tool_call>"),
        ("{name}", ""),
        (f"<arg_key>{{key}}</arg_key>{between}<arg_value>", "</arg_value>"),
        re.compile(rf"\s*({NAME})\s*(?=<)"),
        re.compile(r"\s*(.+?)\s*</arg_key>\s*<arg_value>"),
        between=between,
    )


TOOL_PARSERS: Mapping[str, CallFormat] = {
    "hermes": JSONCalls("<tool_call>", "</tool_call>"),
    "qwen3_coder": _functions("<tool_call>", "</tool_call>", "\n"),
    "seed_oss": _functions("<seed:tool_call>", "</seed:tool_call>", ""),
    "glm45": _glm("\n"),
    "glm47": _glm(""),
    "minimax_m2": _tags("<minimax:tool_call>", "</minimax:tool_call>"),
    "deepseek_v32": _tags("<｜DSML｜function_calls>", "</｜DSML｜function_calls>", "｜DSML｜", ' string="{string}"'),
    "deepseek_v4": _tags("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "｜DSML｜", ' string="{string}"'),
    "deepseek_v3": JSONCalls(
        "<｜tool▁call▁begin｜>",
        "\n```<｜tool▁call▁end｜>",
        _DEEPSEEK,
        named="function<｜tool▁sep｜>{name}\n```json\n",
        head=re.compile(rf"\s*\w+<｜tool▁sep｜>\s*({NAME})\s*```(?:json)?\s*"),
    ),
    "deepseek_v31": JSONCalls(
        "<｜tool▁call▁begin｜>",
        "<｜tool▁call▁end｜>",
        _DEEPSEEK,
        named="{name}<｜tool▁sep｜>",
        head=re.compile(rf"\s*({NAME})\s*<｜tool▁sep｜>\s*"),
    ),
    "kimi_k2": JSONCalls(
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        named="functions.{name}:0<|tool_call_argument_begin|>",
        head=re.compile(rf"\s*(?:functions\.)?({NAME})(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"),
    ),
    "mistral": JSONCalls("[TOOL_CALLS]", listed=True, head=_MISTRAL_HEAD),
    "mistral_v11": JSONCalls("[TOOL_CALLS]", named="{name}[ARGS]", head=_MISTRAL_HEAD),
    "llama3_json": JSONCalls("<|python_tag|>", key="parameters", bare=True),
    "llama4_json": JSONCalls("<|python_start|>", "<|python_end|>", key="parameters", bare=True),
    "pythonic": PythonicCalls(),
    "llama4_pythonic": PythonicCalls("<|python_start|>", "<|python_end|>"),
    "lfm2": PythonicCalls("<|tool_call_start|>", "<|tool_call_end|>", bare=False),
    "gemma4": GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>'),
    "functiongemma": GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>"),
    "granite": JSONCalls("<|tool_call|>", listed=True),
    "phi4_mini_json": JSONCalls("<|tool_call|>", "<|/tool_call|>", listed=True),
    "command_r7b": JSONCalls("<|START_ACTION|>", "<|END_ACTION|>", key="parameters", name_key="tool_name", listed=True),
    "nemotron_v2": JSONCalls("<TOOLCALL>", "</TOOLCALL>", listed=True),
    "jamba": JSONCalls("<tool_calls>", "</tool_calls>", listed=True),
    "minimax": JSONCalls("<tool_calls>", "</tool_calls>"),
    "functionary_v31": JSONCalls("<function=", "</function>", named="{name}>", head=re.compile(rf"\s*({NAME})\s*>\s*")),
    "internlm": JSONCalls("<|action_start|><|plugin|>", "<|action_end|>", key="parameters"),
    "openai": HarmonyCalls(),
}
"""Formats by name. A parser takes all forms of its family; what a grammar lets a model write is the form named here."""

_BY_MARKS = (
    ("openai", r"<\|channel\|>[\s\S]*<\|message\|>|<\|message\|>[\s\S]*<\|channel\|>"),
    ("minimax_m2", "minimax:tool_call"),
    ("seed_oss", "seed:tool_call"),
    ("deepseek_v32", "(?s)DSML.*function_calls"),
    ("deepseek_v4", "(?s)DSML.*tool_calls"),
    ("deepseek_v3", "(?s)tool▁call▁begin｜>.*```json"),
    ("deepseek_v31", "tool▁call▁begin｜>"),
    ("kimi_k2", r"<\|tool_call_begin\|>"),
    ("glm45", r"</arg_key>\\n|</arg_key>\n"),
    ("glm47", "<arg_key>"),
    ("qwen3_coder", "(?s)<tool_call>.*<function=|<function=.*<tool_call>"),
    ("functionary_v31", "<function="),
    ("gemma4", r"<\|tool_call>"),
    ("functiongemma", "<start_function_call>"),
    ("mistral_v11", r"(?s)\[TOOL_CALLS\].*\[ARGS\]"),
    ("mistral", r"\[TOOL_CALLS\]"),
    ("command_r7b", r"<\|START_ACTION\|>"),
    ("nemotron_v2", "<TOOLCALL>"),
    ("minimax", "(?s)<beginning_of_sentence>.*<tool_calls>|<tool_calls>.*<beginning_of_sentence>"),
    ("jamba", "<tool_calls>"),
    ("lfm2", r"<\|tool_call_start\|>|<\|tool_list_start\|>|List of tools: \["),
    ("phi4_mini_json", r"<\|/tool_call\|>"),
    ("granite", r"<\|tool_call\|>"),
    ("internlm", r"<\|plugin\|>"),
    ("llama4_json", r"(?s)<\|python_start\|>.*\"parameters\"|\"parameters\".*<\|python_start\|>"),
    ("llama4_pythonic", r"<\|python_start\|>"),
    ("hermes", "<tool_call>"),
    ("pythonic", r"\[func_name1?\("),
    ("llama3_json", "parameters"),
    ("hermes", "tools"),
)
"""The format of the first pattern that a chat template has; each also has to know tools."""


def calls_of(template: str) -> CallFormat | None:
    """The format of models with this chat template; None if it knows no tools."""
    if "tools" not in template and "<|channel|>" not in template:
        return None
    return next((TOOL_PARSERS[name] for name, pattern in _BY_MARKS if re.search(pattern, template)), None)
