"""Templates render as transformers renders them, and reach nothing beyond."""

from __future__ import annotations

from typing import Any

import pytest

from epp_plugins.tokenization.chat import ChatRequest
from epp_plugins.tokenization.chat_template import ChatTemplate
from epp_plugins.tokenization.tokenized import Reason, TokenizationError

HI = [{"role": "user", "content": "hi"}]


def rendered(source: str, request: ChatRequest | None = None, **special: str) -> str:
    return ChatTemplate(source, special, lambda: 0.0).render(request or ChatRequest(HI))


def test_blocks_are_trimmed_and_left_stripped() -> None:
    source = "{% for m in messages %}\n    {% if true %}\n{{ m.role }}:\n    {% endif %}\n{% endfor %}\nend\n"
    assert rendered(source) == "user:\nend"


def test_what_transformers_offers() -> None:
    tools = [{"type": "function", "function": {"name": "<é>&", "description": None}}]
    request = ChatRequest(HI, tools, {"enable_thinking": False, "tools": "mine", "messages": []}, "low")
    source = (
        "{{ bos_token }}{{ tools | tojson }}|{{ tools | tojson(indent=1) | length }}|{{ documents is none }}"
        "|{{ enable_thinking }}|{{ reasoning_effort }}|{{ eos_token is defined }}"
        "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}{% generation %}said{% endgeneration %}{% if add_generation_prompt %}go{% endif %}"
    )
    assert rendered(source, request, bos_token="<s>").startswith(
        '<s>[{"type": "function", "function": {"name": "<é>&", "description": null}}]|'
    )
    assert rendered(source, request, bos_token="<s>").endswith("|True|False|low|False02saidgo")


def test_dates_belong_to_what_decides_the_prompt() -> None:
    now = [0.0]
    template = ChatTemplate("{{ strftime_now('%Y') }}", {}, lambda: now[0])
    assert template.variant == ""
    first = template.render(ChatRequest(HI))
    assert template.variant == first
    now[0] = 4e8
    assert template.render(ChatRequest(HI)) == template.variant == "1982"
    many = ChatTemplate("{% for i in range(50) %}{{ strftime_now('%Y' ~ i) }}{% endfor %}", {}, lambda: 0.0)
    with pytest.raises(TokenizationError, match="too many formats"):
        many.render(ChatRequest(HI))


def test_a_template_may_refuse() -> None:
    with pytest.raises(TokenizationError, match="roles must alternate") as caught:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert caught.value.reason is Reason.REFUSED


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__self__._wall_clock }}",
        "{{ tojson.__code__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
        "{% set _ = messages[0].update({'role': 'x'}) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ range(10000000) | list }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.more }}",
    ],
)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    with pytest.raises(TokenizationError):
        rendered(source, ChatRequest(messages))
    assert messages == HI


def test_formatting_reaches_no_internals() -> None:
    assert rendered("{{ ('{0.__class__.__init__}').format(raise_exception) }}") == ""


def test_a_template_that_does_not_compile() -> None:
    with pytest.raises(ValueError, match="does not compile"):
        ChatTemplate("{% for %}", {}, lambda: 0.0)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% set rest = messages[1:] %}{% set more = rest %}{% for m in more %}"
            "{% for c in m['content'] | selectattr('type') %}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% for c in messages[0]['content'] %}{% endfor %}{% for k, v in x %}{% endfor %}", "string"),
        ("{% for m in messages %}{% for c in m['parts'] %}{% endfor %}{% endfor %}", "string"),
        ("{% for m in others %}{% for c in m['content'] %}{% endfor %}{% endfor %}", "string"),
    ],
)
def test_the_form_of_content_is_read_from_the_syntax(source: str, expected: str) -> None:
    assert ChatTemplate(source, {}, lambda: 0.0).content_format == expected


def test_the_form_of_content_can_be_set() -> None:
    assert ChatTemplate("{{ 1 }}", {}, lambda: 0.0, "openai").content_format == "openai"


@pytest.mark.parametrize(
    ("content", "expected"),
    [("an answer", "[an answer"), (" an answer  ", "[ an answer  "), ([{"type": "text", "text": "x"}], "[x")],
)
def test_the_last_message_is_continued(content: Any, expected: str) -> None:
    request = ChatRequest([{"role": "assistant", "content": content}], add_generation_prompt=False)
    request.continue_final_message = True
    assert rendered("{% for m in messages %}[{{ m.content }}]{% endfor %}", request) == expected
    trimmed = rendered("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}", request)
    assert trimmed == expected.replace("[ ", "[").rstrip()


def test_a_template_that_changes_the_message_to_be_continued() -> None:
    request = ChatRequest([{"role": "assistant", "content": "abc"}], continue_final_message=True)
    with pytest.raises(TokenizationError, match="changes the message"):
        rendered("nothing", request)
