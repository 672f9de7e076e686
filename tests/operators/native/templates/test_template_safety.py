"""What an untrusted template cannot do: take long, make much, reach Python, or change the data."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex.bus.errors import DspexError, ExpressionError, InvalidInput
from dspex.operators.native.templates.template import MAX_OUTPUT, Template


class Secret:
    """What must never be seen: a template that reaches an attribute of it has reached Python."""

    token = "s3cret"

    def __str__(self) -> str:
        return self.token


BOMBS = [
    "{% for i in range(999999999) %}a{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}" + "text" * 1000 + "{% endfor %}",
    "{% for i in range(99999) %}" + "text" * 16000 + "{% endfor %}",
    "{% for i in range(99999) %}" + "text" * 100 + "{% if false %}{{ i }}{% endif %}{% endfor %}",
    "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "{% set x = x + x %}" * 60 + "{{ x }}",
    "{% for x in [x ~ x] %}" * 40 + "{{ x }}" + "{% endfor %}" * 40,
    "{% for x in x|slice(1) %}" * 12 + "{{ x }}" + "{% endfor %}" * 12,
    "{{ 'a' * 1000000000 }}",
    "{{ 1000000000 * 'a' }}",
    "{{ x * n }}",
    "{{ n * 1 * x }}",
    "{{ x|length|string * n }}",
    "{{ [1] * 100000000 }}",
    "{{ x" + "|replace('', 'aaaaaaaaaa')" * 12 + " }}",
    "{{ x" + "|list|string" * 30 + " }}",
    "{{ x" + "|tojson" * 60 + " }}",
    "{{ x" + "|e" * 60 + " }}",
    "{{ x" + "|indent(99)" * 30 + " }}",
    "{{ x|indent(100000000) }}",
    "{{ x|indent(n) }}",
    "{{ x|join(x) }}",
    "{{ [x, x]|join(x ~ x) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ x|batch(n) }}",
    "{{ x|center(1000000000) }}",
    "{{ x|map('replace', '', x)|list }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ range(100000)|join('a' * 100) }}",
    "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}",
    "{{ " + "[" * 30000 + "]" * 30000 + " }}",
    "{{ " + "-" * 60000 + "1 }}",
    "{{ " + "- " * 499 + "1 }}",
    "{{ " + "not " * 499 + "1 }}",
    "{{ 2" + " ** 1" * 249 + " }}",
    "{{ 1" + " if x else 1" * 120 + " }}",
    "{% if n == 1 %}" + "{% elif n == 2 %}" * 3000 + "{% endif %}",
    "{{ x" + ".a" * 30000 + " }}",
    "{{ x" + "|upper" * 10000 + " }}",
    "{% if x %}" * 5000 + "{% endif %}" * 5000,
    "{{" * 30000,
    "{%" * 30000,
    "{#" * 30000,
    "{% raw %}" * 7000,
    '{{ "' + "\\" * 60000,
    "{{ '" * 15000,
    "{% raw " + " " * 60000,
    "{% for c in x %}{% for d in x %}{% for e in x %}{{ c }}{% endfor %}{% endfor %}{% endfor %}",
    "{% for c in x %}{% if x|upper == x|lower %}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{% if i in ones %}{% endif %}{% endfor %}",
    "{% for i in range(100000) %}{% if 0.5 in range(100000) %}{% endif %}{% endfor %}",
    "{{ range(20000)|select('in', range(20000))|list }}",
    "{{ rows|selectattr('n', 'in', ones)|list }}",
    "{{ n|round(1e999) }}",
    "{{ n|default(" + "9" * 400 + ") }}",
    "{{ n|tojson(indent=1e999) }}",
    "{% for c in rows %}{{ x }}{% endfor %}",
    "{% for c in rows %}{% for d in rows %}{{ rows|tojson(indent=9) }}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in rows recursive %}{{ loop(rows) }}{% endfor %}",
    "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in rows %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set x %}{% for i in rows %}{{ x }}{{ x }}{% endfor %}{% endset %}{{ x }}",
    "{% filter upper %}{{ x }}{% endfilter %}",
    "{% call(x) f() %}{% endcall %}",
]
ESCAPES = [
    "{{ s.token }}",
    "{{ s.__class__ }}",
    "{{ s['__class__'] }}",
    "{{ s|attr('token') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ d.__class__.__init__.__globals__ }}",
    "{{ d['__class__'] }}",
    "{{ d['\\x5f\\x5fclass__'] }}",
    "{{ d['__cla' ~ 'ss__'] }}",
    "{{ d.update({'a': 1}) }}",
    "{{ d.pop('k') }}",
    "{{ d['po' ~ 'p'] }}",
    "{{ rows.append(1) }}",
    "{{ (rows.append)(1) }}",
    "{{ rows|map('append', 1) }}",
    "{{ rows|map(attribute='append')|list }}",
    "{{ [rows]|map(attribute='__class__')|list }}",
    "{{ rows|selectattr('n', 'attr', 'append')|list }}",
    "{{ debug() }}",
    "{{ self }}",
    "{{ self.__init__ }}",
    "{{ range.__self__ }}",
    "{{ loop.__class__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ lipsum.__globals__ }}",
    "{{ joiner }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% from 'os' import system %}",
    "{% extends '/etc/passwd' %}",
    "{% include x %}",
    "{{ 'x'.format(s) }}",
    "{{ '{0.token}'|format(s) }}",
]
_UNTRUSTED = """
import json, sys, time, resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from dspex.bus.errors import DspexError
from dspex.operators.native.templates.template import Template
Template("{{ x|upper }}").render({"x": "a"})
try:
    Template("{{ x }}{{ x.y }}").render({"x": {}})  # what minijinja imports for its errors
except DspexError:
    pass
seen = []
watched = ("open", "socket.connect", "socket.getaddrinfo", "import", "exec", "compile", "subprocess.Popen", "os.system")
sys.addaudithook(lambda event, args: seen.append([event, repr(args)[:200]]) if event in watched else None)
data = {"x": "abc'!" * 1000, "n": 10**9, "rows": [{"n": i} for i in range(300)], "d": {"k": 1}, "ones": [1] * 100000}
for text in json.loads(sys.stdin.read()):
    began, size = time.process_time(), 0
    try:
        end = Template(text).render(data)
        end, size = end[:300], len(end)
    except DspexError as e:
        end = e.code
    print(json.dumps([text[:60], time.process_time() - began, end, size]))
print(json.dumps(seen))
"""


def test_an_untrusted_template_takes_bounded_time_and_opens_nothing():
    command = [sys.executable, "-c", _UNTRUSTED]
    done = subprocess.run(command, input=json.dumps([*BOMBS, *ESCAPES]), capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr[-2000:]
    *results, seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen == []
    assert len(results) == len(BOMBS) + len(ESCAPES)
    assert [r for r in results if r[1] > 20 or r[3] > MAX_OUTPUT] == []
    assert [r for r in results if "object at 0x" in r[2] or "<built-in" in r[2] or "<class" in r[2] or "root:" in r[2]] == []


def test_a_template_does_not_change_the_data():
    data = {"rows": [3, 1, 2], "d": {"k": [1]}}
    assert Template("{{ rows|sort }}{{ rows|reverse|list }}{{ d.k }}").render(data) == "[1, 2, 3][2, 1, 3][1]"
    assert data == {"rows": [3, 1, 2], "d": {"k": [1]}}


def test_a_template_cannot_read_a_python_object():
    with pytest.raises(InvalidInput, match=r"data\.s is a Secret"):
        Template("{{ s.token }}").render({"s": Secret()})
    assert Template("{{ a }}").render({"a": 1, "s": Secret()}) == "1"


_generated_values = st.recursive(
    st.sampled_from(["x", "y", "n", "rows", "'ab'", "7", "range(9999)", "x[0]", "d.k"]),
    lambda inner: st.one_of(
        st.builds("({} ~ {})".format, inner, inner),
        st.builds("({} + {})".format, inner, inner),
        st.builds("({} * 99)".format, inner),
        st.builds("[{}, {}]".format, inner, inner),
        st.builds("{{'a': {}}}".format, inner),
        st.builds(
            "({})|{}".format,
            inner,
            st.sampled_from(
                [
                    *("list", "string", "tojson", "e", "join", "upper", "sort", "unique", "reverse", "urlencode", "batch(9)"),
                    *("slice(99)", "indent(99)", "replace('', 'aaaa')", "replace('a', 'aaaaaaaa')", "join('aaaaaaaa')"),
                    *("tojson(indent=9)", "map('string')", "map('list')", "groupby('n')", "dictsort", "items", "title"),
                ]
            ),
        ),
    ),
    max_leaves=8,
)
_generated = st.recursive(
    st.builds("{{{{ {} }}}}".format, _generated_values),
    lambda inner: st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("{{% for x in {} %}}{}{{% endfor %}}".format, _generated_values, inner),
        st.builds("{{% set x = {} %}}{}".format, _generated_values, inner),
        st.builds("{{% if {} %}}{}{{% endif %}}".format, _generated_values, inner),
        st.builds("{{% for x in x|list %}}{{% set y = {} %}}{}{{% endfor %}}".format, _generated_values, inner),
    ),
    max_leaves=5,
)


@settings(max_examples=settings().max_examples // 4)
@given(_generated)
def test_a_generated_template_takes_bounded_time_and_makes_bounded_output(text):
    data = {"x": "a'\\ß" * 100, "y": ["a", "b"], "n": 10**9, "rows": [{"n": i, "t": "'\\"} for i in range(30)], "d": {"k": "v"}}
    began = time.process_time()
    with contextlib.suppress(DspexError):
        assert len(Template(text).render(data)) <= MAX_OUTPUT
    assert time.process_time() - began < 20


_junk = st.text(st.sampled_from("{}%#-+ \n'\"\\x|.()[],=~*0aéif"), max_size=40)


@settings(max_examples=settings().max_examples // 4)
@given(_junk)
def test_a_template_of_any_text_is_rendered_or_refused(text):
    with contextlib.suppress(DspexError):
        assert isinstance(Template(text).render({"x": "a", "a": 1}), str)


def test_data_that_is_too_large_for_a_template_is_refused():
    with pytest.raises(InvalidInput, match="too much for the template"):
        Template("{{ x ~ x ~ x ~ x }}").render({"x": "a" * 20_000_000})
    with pytest.raises(ExpressionError, match="more than 16777216 characters"):
        Template("{% for c in x %}{{ x }}{% endfor %}").render({"x": "a" * 30_000})
    with pytest.raises(ExpressionError, match="too many steps"):
        Template("{% for c in x %}{% for d in x %}{% endfor %}{% endfor %}").render({"x": "a" * 5_000})
