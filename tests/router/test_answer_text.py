"""Stop strings and characters cut across tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.router.answer_text import ChoiceText, StopString
from penstock.router.openai_sampling import Stops
from support.surface import END, ByteTokenizer, spell


def choice(*stops: str, keep: bool = False, min_tokens: int = 0) -> ChoiceText:
    stream = ByteTokenizer().stream()
    return ChoiceText(0, stream, Stops(stops, keep, min_tokens), [StopString(s) for s in stops])


def say(taken: ChoiceText, ids: list[int], finish: str = "length") -> list[str]:
    """The text shown with each token, until the choice ends."""
    shown: list[str] = []
    for at, token_id in enumerate(ids):
        if taken.finish:
            break
        shown.append(taken.push(token_id, finish if at == len(ids) - 1 else ""))  # pyright: ignore[reportArgumentType]
    return shown


def test_text_passes_token_by_token():
    assert say(choice(), spell("hello", " world", "!")) == ["hello", " world", "!"]


def test_a_character_waits_for_its_last_byte():
    assert say(choice(), spell("é€", "x")) == ["", "é", "", "", "€", "x"]


def test_an_unfinished_character_is_shown_as_such_at_the_end():
    assert say(choice(), [0xE2, 0x82]) == ["", "\ufffd"]


def test_a_beginning_of_a_stop_string_is_held_and_released():
    assert say(choice("STOP"), spell("a", "ST", "b", "ST", "OP", "c")) == ["a", "", "STb", "", ""]


def test_a_stop_string_ends_the_choice():
    taken = choice("STOP")
    assert "".join(say(taken, spell("hello", "ST", "OP", " world"))) == "hello"
    assert (taken.finish, taken.stop_reason, taken.cut, taken.tokens) == ("stop", "STOP", True, 3)


def test_a_stop_string_inside_one_token_cuts_the_token():
    assert say(choice("l"), spell("hello")) == ["he"]


def test_a_stop_string_may_be_kept():
    assert "".join(say(choice("lo w", keep=True), spell("hello", " world"))) == "hello w"


def test_a_stop_string_may_begin_within_another():
    assert "".join(say(choice("abac", "bab"), spell("xababac"))) == "xa"


def test_the_longest_of_those_complete_at_once_wins():
    assert "".join(say(choice("c", "bc", "abc"), spell("xabc"))) == "x"


def test_held_text_is_shown_when_the_choice_ends_otherwise():
    taken = choice("STOP")
    assert "".join(say(taken, spell("a", "ST", END), finish="stop")) == "aST"
    assert (taken.finish, taken.stop_reason, taken.cut) == ("stop", END, False)


def test_a_stop_string_completed_by_the_last_token_is_no_cut():
    taken = choice("STOP")
    assert "".join(say(taken, spell("a", "ST", "OP"))) == "a"
    assert (taken.finish, taken.stop_reason, taken.cut) == ("stop", "STOP", False)


def test_stop_strings_wait_for_min_tokens():
    taken = choice("a", min_tokens=2)
    assert "".join(say(taken, spell("aab", "ab"))) == "aab"
    assert taken.tokens == 4


@pytest.mark.parametrize("keep", [False, True])
def test_the_text_of_a_stop_token_is_shown_only_on_demand(keep: bool):
    taken = choice(keep=keep)
    assert "".join(say(taken, spell("a", "b"), finish="stop")) == ("ab" if keep else "a")


def reference(text: str, stops: list[str]) -> str:
    """The text up to the first stop string to be complete, by trying every length."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


letters = st.text("abé", max_size=30)
stop_lists = st.lists(st.text("abé", min_size=1, max_size=5), min_size=1, max_size=4, unique=True)


@given(letters, stop_lists)
def test_the_cut_depends_on_the_text_alone(text: str, stops: list[str]):
    ids = list(text.encode())
    assert "".join(say(choice(*stops), ids)) == reference(text, stops)


@given(st.lists(st.sampled_from(range(257, 264)), max_size=12), stop_lists)
def test_and_not_on_how_tokens_cut_it(ids: list[int], stops: list[str]):
    text = ByteTokenizer().decode(ids)
    assert "".join(say(choice(*stops), ids)) == reference(text, stops)


@given(st.binary(max_size=40))
def test_any_bytes_stream_to_what_they_decode_to(raw: bytes):
    assert "".join(say(choice(), list(raw))) == raw.decode(errors="replace")
