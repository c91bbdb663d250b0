"""What is to be done to a tree is decided before anything is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.errors import TreeError
from edgeslm.flash.image.plan import plan_writes
from edgeslm.flash.tree import Entry, Node


class There:
    """What is in a tree, by path."""

    def __init__(self, **found: str) -> None:
        self.nodes = {"/": Node("directory", 0o755, 0, 0, 0)}
        for path, what in found.items():
            kind, _, target = what.partition(">")
            self.nodes["/" + path.replace("__", "/")] = Node(kind, 0o755, 0, 0, 0, target)  # type: ignore[arg-type]

    def stat(self, path: str) -> Node | None:
        return self.nodes.get(path)


def steps(there: There, *entries: Entry) -> list[str]:
    return [f"{step.verb} {step.path}" for step in plan_writes(there, entries).steps]


def test_missing_directories_are_made_first_and_once() -> None:
    assert steps(There(etc="directory"), Entry("/etc/a/b/one"), Entry("/etc/a/b/two")) == [
        "make /etc/a", "set /etc/a", "make /etc/a/b", "set /etc/a/b",
        "write /etc/a/b/one", "set /etc/a/b/one", "write /etc/a/b/two", "set /etc/a/b/two",
    ]  # fmt: skip


def test_what_is_there_goes_before_what_takes_its_place() -> None:
    there = There(file="file", link="symlink>file", pipe="other")
    assert steps(there, Entry("/file"), Entry("/link"), Entry("/pipe", kind="symlink", target="x")) == [
        "remove /file", "write /file", "set /file", "remove /link", "write /link", "set /link",
        "remove /pipe", "link /pipe",
    ]  # fmt: skip


def test_a_directory_that_is_there_is_only_set() -> None:
    assert steps(There(d="directory"), Entry("/d", kind="directory")) == ["set /d"]


def test_links_on_the_way_are_followed_also_those_that_are_to_come() -> None:
    there = There(bin="symlink>usr/bin", usr="directory", usr__bin="directory")
    plan = plan_writes(there, [
        Entry("/bin/tool"), Entry("/new", kind="symlink", target="/usr"), Entry("/new/lib/x"),
    ])  # fmt: skip
    assert [step.path for step in plan.steps if step.verb == "write"] == ["/usr/bin/tool", "/usr/lib/x"]
    assert set(plan.result) == {"/usr/bin/tool", "/new", "/usr/lib", "/usr/lib/x"}


def test_a_link_that_changes_on_the_way_counts_from_there_on() -> None:
    there = There(a="directory", b="directory", now="symlink>a")
    plan = plan_writes(there, [Entry("/now/x"), Entry("/now", kind="symlink", target="b"), Entry("/now/x")])
    assert [step.path for step in plan.steps if step.verb == "write"] == ["/a/x", "/b/x"]


@pytest.mark.parametrize(
    ("there", "entry"),
    [
        (There(x="directory"), Entry("/x")),
        (There(x="directory"), Entry("/x", kind="symlink", target="y")),
        (There(x="file"), Entry("/x", kind="directory")),
        (There(x="symlink>y"), Entry("/x", kind="directory")),
        (There(x="file"), Entry("/x/below")),
        (There(x="other"), Entry("/x/below")),
        (There(x="symlink>x"), Entry("/x/below")),
        (There(), Entry("/x", kind="symlink", target="")),
    ],
)
def test_what_cannot_be_is_refused(there: There, entry: Entry) -> None:
    with pytest.raises(TreeError):
        plan_writes(there, [entry])


def test_names_that_mean_the_same_are_one_where_case_says_nothing() -> None:
    plan = plan_writes(There(), [Entry("/A/X", content=b"1"), Entry("/a/x", content=b"2")], fold=str.upper)
    assert [f"{step.verb} {step.path}" for step in plan.steps] == [
        "make /A", "set /A", "write /A/X", "set /A/X", "remove /a/x", "write /a/x", "set /a/x",
    ]  # fmt: skip
    assert {path: entry.content for path, entry in plan.result.items()} == {"/A": b"", "/a/x": b"2"}


NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
ENTRIES = st.one_of(
    PATHS.map(Entry),
    PATHS.map(lambda path: Entry(path, kind="directory")),
    st.tuples(PATHS, PATHS).map(lambda two: Entry(two[0], kind="symlink", target=two[1])),
)


@given(st.lists(ENTRIES, max_size=12))
def test_a_plan_can_be_followed_step_by_step(entries: list[Entry]) -> None:
    try:
        plan = plan_writes(There(), entries)
    except TreeError:
        return
    there = {"/": "directory"}
    for step in plan.steps:
        above = step.path.rpartition("/")[0] or "/"
        match step.verb:
            case "remove":
                assert there.pop(step.path) != "directory"
            case "set":
                assert step.path in there
            case verb:
                assert step.path not in there
                assert there[above] == "directory"
                there[step.path] = {"make": "directory", "link": "symlink", "write": "file"}[verb]
    assert {path: entry.kind for path, entry in plan.result.items()} == {
        path: kind for path, kind in there.items() if path != "/"
    }


@given(st.lists(ENTRIES, max_size=8))
def test_the_same_entries_give_the_same_plan(entries: list[Entry]) -> None:
    def plan() -> object:
        try:
            return plan_writes(There(), entries)
        except TreeError as error:
            return str(error)

    assert plan() == plan()
