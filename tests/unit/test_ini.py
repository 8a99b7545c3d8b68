"""What a uwsgi.ini says; each expectation was seen in uWSGI's own --show-config."""

import os
from pathlib import Path

import pytest

from uwsgi_tasks import ini
from uwsgi_tasks.errors import ConfigurationError


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, name="site.ini", **environ):
        (tmp_path / name).write_text(text)
        return ini.read(tmp_path / name, environ)

    return write_and_read


def values(found):
    return [(option.name, option.value) for option in found.options]


def test_every_value_of_an_option_is_found(read):
    found = read("[uwsgi]\nspooler = /a\nmaster = true\nspooler=/b\n")

    assert found.get("spooler") == ["/a", "/b"]
    assert found.get("mules") == []


def test_other_sections_comments_and_blank_lines_say_nothing(read):
    found = read(
        "top = 1\n[uwsgi]\n# a = 1\n; b = 1\n\n  c = 1  \n[other]\nd = 1\n[uwsgi]\ne = 1\n"
    )

    assert values(found) == [("c", "1"), ("e", "1")]


def test_what_stands_behind_a_value_belongs_to_it(read):
    assert read("[uwsgi]\na = b = c # d\n").get("a") == ["b = c # d"]


def test_a_line_without_a_value_switches_on(read):
    found = read("[uwsgi]\nmaster\nlazy =\nstrict = true\nvacuum = false\nneed-app=0\n")

    assert [found.has(name) for name in ("master", "lazy", "strict")] == [True] * 3
    assert [found.has(name) for name in ("vacuum", "need-app", "mules")] == [False] * 3


def test_the_last_line_decides_whether_it_is_on(read):
    assert not read("[uwsgi]\nmaster = true\nmaster = false\n").has("master")


def test_magic_variables_say_where_the_file_is(read, tmp_path):
    found = read("[uwsgi]\na = %d|%p|%s|%n|%e|%c|%v|%%|%u|%z|\n")

    path = tmp_path / "site.ini"
    assert found.get("a") == [
        f"{tmp_path}/|{path}|site.ini|site|ini|{tmp_path.name}|{Path.cwd()}|%|{os.geteuid()}||"
    ]


def test_names_stand_for_their_first_value_also_above_it(read):
    found = read("[uwsgi]\na = %(base)/x\nbase = /one\nbase = /two\nb = %(base)\nc = %(none)\n")

    assert found.get("a") == ["/one/x"]
    assert found.get("b") == ["/one"]
    assert found.get("c") == ["%(none)"]


def test_placeholders_can_be_set(read):
    found = read(
        "[uwsgi]\nset-placeholder = x=1\nset-ph = y=%(x)2\nset = z=3\na = %(x) %(y) %(z)\n"
    )

    assert found.get("a") == ["1 12 3"]


def test_placeholders_that_name_each_other_end(read):
    assert "%(" in read("[uwsgi]\na = %(b)\nb = %(a)\n").get("a")[0]


def test_the_environment_is_looked_into(read):
    assert read("[uwsgi]\na = $(HOME)/x$(NONE)\n", HOME="/home/ada").get("a") == [
        "/home/ada/x$(NONE)"
    ]


def test_other_files_are_read_where_they_are_included(read, tmp_path):
    (tmp_path / "more.ini").write_text("[uwsgi]\nb = %s\n")

    found = read("[uwsgi]\na = 1\nini = more.ini\nc = %(b)\n")

    assert values(found) == [("a", "1"), ("ini", "more.ini"), ("b", "more.ini"), ("c", "more.ini")]
    assert [(option.file.name, option.line) for option in found.options][2] == ("more.ini", 2)


def test_files_that_include_each_other_end(read):
    assert len(read("[uwsgi]\nini = site.ini\n").options) > 1


def test_another_section_can_be_asked_for(tmp_path):
    (tmp_path / "site.ini").write_text("[uwsgi]\na = 1\n[blue]\na = %x\n")

    assert ini.read(f"{tmp_path}/site.ini:blue", {}).get("a") == ["blue"]


def test_a_relative_path_starts_where_we_are_or_where_the_file_is(read, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / "here").mkdir(parents=True)
    monkeypatch.chdir(home)

    found = read("[uwsgi]\nspooler = here\nspooler = there\nspooler = /abs\n")

    assert found.paths("spooler") == [home / "here", tmp_path / "there", Path("/abs")]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("site.ini", "[other]\na = 1\n", r"no section \[uwsgi\]"),
        ("site.yaml", "uwsgi:\n", "only the ini format"),
    ],
)
def test_what_is_no_configuration_is_refused(read, name, text, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        read(text, name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ini.read(tmp_path / "none.ini")
