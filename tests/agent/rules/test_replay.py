from __future__ import annotations

import pytest

from edgeslm import codec
from edgeslm.agent.rules.loading import compile_rules
from edgeslm.agent.rules.replay import payload_of, read_answers, read_log, recorded_result, replay
from edgeslm.errors import ConfigError
from edgeslm.schema.rule_trace import FiringTrace, RecordedMessage

TEXT = b"""
allow: [out/+]
inputs: {t: {topic: t, window: 1m}, said: {topic: said, decode: text}}
rules:
  - {name: warm, when: mean(t) > 20, debounce: 5s, then: [{event: "{{ now }}"}]}
  - {name: ask, prompt: "{{ said }}", answer: {type: object}, then: [{publish: {topic: out/x, payload: "1"}}]}
"""


def messages() -> list[RecordedMessage]:
    made = [RecordedMessage(at_s=n * 1.0, wall_s=1.8e9 + n, topic="t", text=str(15 + n)) for n in range(20)]
    made.insert(7, RecordedMessage(at_s=6.5, wall_s=1.8e9 + 6.5, topic="said", hex="ff00"))
    made.insert(8, RecordedMessage(at_s=6.6, wall_s=1.8e9 + 6.6, topic="said", text="go"))
    return made


def test_a_log_gives_the_same_firings_each_time():
    rules = compile_rules([("r.yaml", TEXT)])

    def run() -> list[bytes]:
        found = replay(
            rules, messages(), lambda request, rule: recorded_result(request, '{"a": 1}'), until_s=10
        )
        return [codec.encode(trace) for trace in found]

    first = run()
    assert first == run()
    assert [codec.decode(FiringTrace, line).rule for line in first] == ["ask", "warm"]


def test_reads_what_was_recorded(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(codec.encode(message) + b"\n" for message in messages()))
    assert list(read_log(path)) == messages()
    assert payload_of(messages()[7]) == b"\xff\x00"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{}", "line 2"),
        (b"nonsense", "line 2"),
        (b'{"at_s": -1, "wall_s": 0, "topic": "t"}', "line 2"),
        (b'{"at_s": 0.5, "wall_s": 0, "topic": "t"}', "earlier"),
    ],
)
def test_says_which_line_of_a_log_is_wrong(tmp_path, line, why):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"at_s": 1, "wall_s": 0, "topic": "t", "text": "1"}\n' + line + b"\n")
    with pytest.raises(ConfigError, match=why):
        list(read_log(path))


def test_reads_recorded_answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "answer": {"x": 1}}\n\n{"prompt": "b", "answer": "text"}\n')
    assert read_answers(path) == {"a": '{"x": 1}', "b": "text"}
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="line 1"):
        read_answers(path)
