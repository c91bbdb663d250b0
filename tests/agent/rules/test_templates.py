from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.agent.rules.conditions import ExpressionError
from edgeslm.agent.rules.templates import Template
from edgeslm.errors import NoReadingError, RuleFaultError

KNOWN = ["said", "payload", "answer", "stats", "n"]
CONTEXT = {
    "said": "lights on",
    "payload": {"items": [1, 2, 3], "name": "Lamp", "keys": "k"},
    "answer": {"temperature": 21, "on": True},
    "stats": {"n": {"mean": 2.5}},
    "n": 4,
}


def template(text: str) -> Template:
    return Template(text, lambda name: name in KNOWN, KNOWN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("please: {{ said }}", "please: lights on"),
        ("{{ said | upper }}!", "LIGHTS ON!"),
        ("{% if n > 3 %}many{% else %}few{% endif %}", "many"),
        ("{% for i in payload.items %}{{ i }},{% endfor %}", "1,2,3,"),
        ("{{ payload.items | join('-') }} {{ payload.keys }}", "1-2-3 k"),
        ("{{ stats.n.mean | round(1) }} C", "2.5 C"),
        ("{{ answer.area | default('all') }} rooms", "all rooms"),
        ("{{ said ~ ' now' }}.", "lights on now."),
        ("{{ answer | tojson }} ", '{"temperature":21,"on":true} '),
    ],
)
def test_renders(text, expected):
    assert template(text).render(CONTEXT, 100) == expected


def test_a_single_expression_keeps_its_type():
    assert template("{{ answer.temperature }}").value(CONTEXT, 100) == 21
    assert template(" {{ answer.on }} ").value(CONTEXT, 100) is True
    assert template("{{ n / 8 }}").value(CONTEXT, 100) == 0.5
    assert template("{{ payload.items }}").value(CONTEXT, 100) == [1, 2, 3]
    assert template("{{ n }}{{ n }}").value(CONTEXT, 100) == "44"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__ }}",
        "{{ payload['__class__']() }}",
        "{{ said.upper() }}",
        "{{ range(10) }}",
        "{{ cycler }}",
        "{% set x = 1 %}",
        "{% macro m() %}{% endmacro %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{{ 9 ** 9 }}",
        "{{ said[0:3] }}",
        "{{ said | attr('x') }}",
        "{{ said | format(1) }}",
        "{{ said | center(1000000000) }}",
        "{{ said | replace('', said) }}",
        "{% for a in payload %}{% for b in payload %}{% endfor %}{% endfor %}",
        "{% for a in payload recursive %}{{ a }}{% endfor %}",
        "{% for a in payload %}{% endfor %}" * 5,
        "{{ unknown }}",
        "{{ ",
        "{% if %}",
        "{{ n" + " + n" * 500 + " }}",
    ],
)
def test_refuses_what_no_template_may_hold(text):
    with pytest.raises(ExpressionError):
        template(text)


@pytest.mark.parametrize(
    "text", ["{{ said * 3 }} ", "{{ said + said }}", "{{ said % 3 }}", "{{ n / 0 }}", "{{ [0] * n }}"]
)
def test_arithmetic_is_for_numbers(text):
    with pytest.raises(RuleFaultError):
        template(text).render(CONTEXT, 1000)


@pytest.mark.parametrize(
    "text", ["{{ answer.nothing }}", "x{{ payload.a.b }}", "{{ stats.n.max }}!", "{{ said.upper }}x"]
)
def test_a_name_without_a_value_is_an_error(text):
    with pytest.raises(NoReadingError):
        template(text).value(CONTEXT, 1000)


def test_output_is_capped():
    with pytest.raises(RuleFaultError, match="more than 50"):
        template("{% for i in payload.items %}{{ said }}{{ said }}{{ said }}{% endfor %}").render(CONTEXT, 50)


def test_a_value_that_is_large_costs_little():
    context = {**CONTEXT, "payload": {"items": ["x" * 8000] * 4000}}
    began_s = time.process_time()
    for text in (
        "{{ payload.items | join(payload.items[0]) }}",
        "{{ n | round(1000000000) }} ",
        "{{ payload.items | sum }}",
    ):
        try:
            template(text).render(context, 1000)
        except RuleFaultError:
            continue
    assert time.process_time() - began_s < 2.0


def test_knows_the_figures_that_it_asks_for():
    found = template("{{ stats.n.mean }} {{ stats.n.max | round }}")
    assert found.figures == {("n", "mean"), ("n", "max")}
    assert template("just text").is_constant
    assert not found.is_constant


@given(st.text(alphabet="{}%|.nsaid '\"[]()+*~-0123", max_size=40))
def test_any_text_is_a_template_or_a_named_error(text):
    with contextlib.suppress(ExpressionError, RuleFaultError):
        made = template(text)
        made.value(CONTEXT, 200)
