"""config.txt, the kernel's command line, extlinux.conf and armbianEnv.txt, changed and nothing else of them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from edgeslm.flash.payload import boot_text
from edgeslm.flash.payload.boot_text import BEGIN, END, changed_words, with_block, words

LINE = "console=tty1 root=PARTUUID=1-02 rootfstype=ext4 fsck.repair=yes rootwait quiet"
WORD = st.text("abcz0.-_", min_size=1, max_size=6)
TEXT = st.lists(st.sampled_from(["arm_64bit=1", "[pi4]", "# x", "", "dtoverlay=vc4"])).map("\n".join)


class TestConfigTxt:
    def test_has_one_block_of_ours_at_its_end(self):
        text = with_block("arm_64bit=1\n", ["[all]", "arm_freq=900"])
        assert text == f"arm_64bit=1\n{BEGIN}\n[all]\narm_freq=900\n{END}\n"
        assert with_block(text, ["[all]", "arm_freq=600"]).count(BEGIN) == 1

    def test_is_as_it_was_without_one(self):
        assert with_block(with_block("a=1\n", ["b=2"]), []) == "a=1\n"

    def test_keeps_the_ends_of_lines_that_it_has(self):
        assert with_block("a=1\r\n", ["b=2"]) == f"a=1\r\n{BEGIN}\r\nb=2\r\n{END}\r\n"

    @given(text=TEXT, lines=st.lists(WORD, min_size=1))
    def test_changed_twice_is_changed_once(self, text: str, lines: list[str]):
        once = with_block(text, lines)
        assert with_block(once, lines) == once

    def test_loses_lines_that_are_not_wanted_whole_and_no_others(self):
        text = "dtoverlay=disable-wifi\n#dtoverlay=disable-wifi\ndtoverlay=disable-wifi-pi5\n"
        kept = boot_text.without_lines(text, re.compile(r"dtoverlay=disable-wifi(,.*)?"))
        assert kept == "#dtoverlay=disable-wifi\ndtoverlay=disable-wifi-pi5\n"

    def test_says_the_last_value_of_a_key(self):
        assert boot_text.option("os_prefix=a/\nos_prefix=b/ # x\n", "os_prefix") == "b/"
        assert boot_text.option("#os_prefix=a/\n", "os_prefix") is None


class TestTheCommandLine:
    def test_gets_values_and_bare_words_and_loses_them(self):
        assert changed_words("a=1 quiet b", {"a": "2", "quiet": False, "ro": True}) == "a=2 b ro"

    def test_keeps_several_of_those_that_may_be_there_several_times(self):
        changed = changed_words("console=tty1", {"console": "ttyS0,115200"}, add=("video=HDMI-A-1:d",))
        assert changed == "console=tty1 console=ttyS0,115200 video=HDMI-A-1:d"

    def test_takes_dashes_and_underscores_for_the_same(self):
        assert changed_words("dyndbg-x=1", {"dyndbg_x": "2"}) == "dyndbg_x=2"

    def test_keeps_together_what_is_quoted(self):
        assert words('a="b c" d') == ('a="b c"', "d")

    @given(
        line=st.lists(WORD, unique=True).map(" ".join),
        changes=st.dictionaries(WORD, st.one_of(WORD, st.booleans()), max_size=4),
        add=st.lists(WORD, max_size=3),
    )
    def test_changed_twice_is_changed_once_and_stays_one_line(
        self, line: str, changes: dict[str, str | bool], add: list[str]
    ):
        changes = {
            key: value
            for key, value in changes.items()
            if boot_text_plain(key) not in map(boot_text_plain, add)
        }
        once = changed_words(line, changes, add=add)
        assert changed_words(once, changes, add=add) == once
        assert "\n" not in once

    def test_tells_which_words_were_added(self):
        assert boot_text.added_words("a b", "a c b d") == ("c", "d")


class TestLoaders:
    EXTLINUX = (
        "label one\n  kernel /vmlinuz\n  append root=a quiet\nlabel two\n  append root=a quiet\n"
        "label x\n  append other\n"
    )

    def test_every_entry_that_had_the_same_words_has_the_same_again(self):
        changed = boot_text.with_extlinux_words(self.EXTLINUX, "root=a ro")
        assert changed.count("append root=a ro\n") == 2
        assert "append other\n" in changed
        assert boot_text.extlinux_words(changed) == "root=a ro"

    def test_an_extlinux_conf_without_entries_has_no_words(self):
        assert boot_text.extlinux_words("default one\n") is None

    def test_armbian_gets_a_line_where_it_has_none(self):
        assert boot_text.with_armbian_words("verbosity=1", "ro") == "verbosity=1\nextraargs=ro\n"
        assert (
            boot_text.with_armbian_words("extraargs=a\nverbosity=1\n", "ro") == "extraargs=ro\nverbosity=1\n"
        )
        assert boot_text.armbian_words("extraargs=a b\n") == "a b"


def boot_text_plain(word: str) -> str:
    return word.partition("=")[0].replace("-", "_")
