"""The file as such: what can't be read is one line that says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.ensemble_file import MAX_FILE_BYTES
from pipeline.mistakes import SettingsError
from pipeline.settings import load_ensemble

VALID = "name: reviews\nmodels: [{name: a, source: some_model}]\n"


def lines_of(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_ensemble(path)
    return [line.replace(str(path.parent), "DIR") for line in caught.value.lines]


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "e.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "DIR/e.yaml: holds no settings; allowed: lines like 'name: reviews'"),
        ("# nothing yet\n", "DIR/e.yaml: holds no settings; allowed: lines like 'name: reviews'"),
        ("- a\n- b\n", "DIR/e.yaml: is no mapping of options; allowed: lines like 'name: reviews'"),
        ("just text\n", "DIR/e.yaml: is no mapping of options; allowed: lines like 'name: reviews'"),
        (b"name: caf\xe9\n", "DIR/e.yaml:1: is not UTF-8: invalid continuation byte; save the file as UTF-8"),
        (b"a: b\n\xff\n", "DIR/e.yaml:2: is not UTF-8: invalid start byte; save the file as UTF-8"),
        (
            "name: a\nb: \x00\n",
            "DIR/e.yaml:2: the character '\\x00' is not allowed; allowed: what can be printed",
        ),
        ("name: a\n\tb: c\n", "DIR/e.yaml:2: is not YAML: found character '\\t' that cannot start any token"),
        ("name: a: b\n", "DIR/e.yaml:1: is not YAML: mapping values are not allowed here"),
        ("name: [1\n", "DIR/e.yaml:2: is not YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "name: a\n---\nname: b\n",
            "DIR/e.yaml:2: a second document (after --- or ...) is not allowed; allowed: one document in a file",
        ),
        (
            "name: a\n...\nname: b\n",
            "DIR/e.yaml:3: a second document (after --- or ...) is not allowed; allowed: one document in a file",
        ),
        (
            "name: *hunter2\n",
            "DIR/e.yaml:1: an alias (*name) is not allowed; allowed: the value, in quotes where it begins with *",
        ),
        (
            "name: a\nhttp: {host: *}\n",
            "DIR/e.yaml:2: an alias (*name) is not allowed; allowed: the value, in quotes where it begins with *",
        ),
        ("a: " + "[" * 600, "DIR/e.yaml: is nested too deeply"),
        ("#" * (MAX_FILE_BYTES + 1), "DIR/e.yaml: has more than 1048576 bytes: this is no ensemble file"),
    ],
)
def test_a_file_that_is_no_yaml_mapping(write, content, line):
    assert lines_of(write(content)) == [line]


def test_no_file(tmp_path):
    assert lines_of(tmp_path / "e.yaml") == ["DIR/e.yaml: can't be read: No such file or directory"]


def test_a_folder(tmp_path):
    folder = tmp_path / "e.yaml"
    folder.mkdir()
    assert lines_of(folder) == ["DIR/e.yaml: can't be read: Is a directory"]


def test_a_path_that_no_system_takes():
    with pytest.raises(SettingsError) as caught:
        load_ensemble("a\0b")
    assert caught.value.lines == ("a\\x00b: can't be read: embedded null byte",)


def test_a_line_break_in_a_name_stays_on_one_line(write):
    assert lines_of(write(VALID + '"a\\nb": 1\n'))[0].startswith("DIR/e.yaml:3: a\\nb: no such option; allowed: name,")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("name: other\n", "DIR/e.yaml:1: name: is given on line 1 and on line 3; allowed: once"),
        ("http: !server {}\n", "DIR/e.yaml:3: http: a tag (!name) is not allowed; allowed: the value itself"),
        ("http: {port: !!int x}\n", "DIR/e.yaml:3: http.port: 'x' can't be read as int"),
        (
            "delivery: !!binary aGk=\n",
            "DIR/e.yaml:3: delivery: a tag (!name) is not allowed; allowed: the value itself",
        ),
        ('delivery: "\\ud800"\n', "DIR/e.yaml:3: delivery: '\\ud800' is not allowed; allowed: a string"),
        (
            'http: {host: "\\ud800"}\n',
            "DIR/e.yaml:3: http.host: '\\ud800' is not allowed; allowed: an address or a name of this machine, such as "
            "127.0.0.1, 0.0.0.0, ::1",
        ),
        (
            'kafka: {client.rack: "\\ud800"}\n',
            "DIR/e.yaml:3: kafka.client.rack: half of a surrogate pair is not allowed; allowed: a string, a number, "
            "true, false",
        ),
        ('kafka: {"\\ud800": 1}\n', "DIR/e.yaml:3: kafka: '\\ud800' is not allowed; allowed: a string"),
        ("? [a]\n: 1\n", "DIR/e.yaml:3: ?: sequence as a key is not allowed; allowed: a name"),
        (
            "kafka: {sasl.password: &hunter2}\n",
            "DIR/e.yaml:3: kafka.sasl.password: an anchor (&name) is not allowed; allowed: the value, in quotes where "
            "it begins with &",
        ),
        (
            "topics: &t {requests: *t}\n",
            "DIR/e.yaml:3: topics: an anchor (&name) is not allowed; allowed: the value, in quotes where it begins "
            "with &",
        ),
        (
            "commit_interval_ms: " + "9" * 5000 + "\n",
            "DIR/e.yaml:3: commit_interval_ms: '" + "9" * 55 + "...' can't be read as int",
        ),
    ],
)
def test_yaml_that_settings_need_not(write, more, line):
    assert lines_of(write(VALID + more)) == [line]


@pytest.mark.filterwarnings("error")
def test_an_alias_and_each_anchor_is_a_mistake(write):
    assert lines_of(write(VALID + "topics: &t {partitions: 1}\nhttp: *t\nengine: &t {}\n")) == [
        "DIR/e.yaml:3: topics: an anchor (&name) is not allowed; allowed: the value, in quotes where it begins with &",
        "DIR/e.yaml:4: http: an alias (*name) is not allowed; allowed: the value, in quotes where it begins with *",
        "DIR/e.yaml:5: engine: an anchor (&name) is not allowed; allowed: the value, in quotes where it begins with &",
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_editors_leave_in_a_file_is_no_mistake(write, newline, mark):
    assert load_ensemble(write((mark + VALID).replace("\n", newline))).name == "reviews"


def test_yaml_1_2_knows_no_dates_and_no_yes(write):
    settings = load_ensemble(write("name: 2024-01-01\nmodels: [{name: no, source: =}]\n"))
    assert (settings.name, settings.models[0].name, settings.models[0].source) == ("2024-01-01", "no", "=")


def test_all_mistakes_are_told_in_the_order_of_the_file(write):
    content = "models:\n- name: a\n  source: 1\n  pooling: men\nhttp:\n  prot: 1\nzzz: 1\n"
    assert lines_of(write(content)) == [
        "DIR/e.yaml: name: is missing; it has no default",
        "DIR/e.yaml:3: models[0].source: 1 is not allowed; allowed: a string",
        "DIR/e.yaml:4: models[0].pooling: 'men' is not allowed; allowed: mean, cls, max, null",
        "DIR/e.yaml:6: http.prot: no such option; did you mean port?",
        "DIR/e.yaml:7: zzz: no such option; allowed: name, requests, topics, dead_letters, tokenizer, models, "
        "objective, batching, engine, "
        "delivery, commit_interval_ms, transactions, encode_order, share_group, drain_timeout_ms, "
        "speech, http, kafka",
    ]
