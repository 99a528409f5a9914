"""The text of one choice as its tokens arrive: what may be shown now, and where it stops. Pure.

Text is held back while it may be the beginning of a stop string. Which stop string ends an answer
depends on the text alone, not on how tokens cut it: the one complete first, of those the longest.
"""

from collections.abc import Sequence
from typing import Any

from ..models.text_stream import TextStream
from ..protocol.messages import FinishReason
from .openai_sampling import Stops


class StopString:
    """A stop string and its Knuth-Morris-Pratt table: linear whatever text and string are."""

    __slots__ = ("text", "length", "fall_back")

    def __init__(self, text: str):
        self.text = text
        self.length = len(text)
        # fall_back[i]: length of the longest proper prefix that is a suffix of text[: i + 1]
        self.fall_back = [0] * len(text)
        matched = 0
        for at in range(1, len(text)):
            while matched and text[at] != text[matched]:
                matched = self.fall_back[matched - 1]
            matched += text[at] == text[matched]
            self.fall_back[at] = matched

    def step(self, matched: int, character: str) -> int:
        """How many of its characters match, now that this character has come."""
        while matched and character != self.text[matched]:
            matched = self.fall_back[matched - 1]
        return matched + (character == self.text[matched])


class StopScan:
    """Looks for the first of several stop strings in one choice's text."""

    __slots__ = ("stops", "firsts", "matched", "held")

    def __init__(self, stops: Sequence[StopString]):
        self.stops = stops
        self.firsts = frozenset(stop.text[0] for stop in stops)
        self.matched = [0] * len(stops)
        self.held = ""  # not shown yet: a beginning of a stop string

    def push(self, text: str) -> tuple[str, StopString | None]:
        """The text to show, and the stop string found: then all before it, and it is held."""
        if not self.held and self.firsts.isdisjoint(text):
            return text, None
        waiting = self.held + text
        for at in range(len(self.held), len(waiting)):
            found = self._step(waiting[at])
            if found is not None:
                start = at + 1 - found.length
                self.held = found.text
                return waiting[:start], found
        keep = max(self.matched)
        shown = len(waiting) - keep
        self.held = waiting[shown:]
        return waiting[:shown], None

    def _step(self, character: str) -> StopString | None:
        found: StopString | None = None
        for index, stop in enumerate(self.stops):
            matched = stop.step(self.matched[index], character)
            self.matched[index] = matched
            if matched == stop.length and (found is None or stop.length > found.length):
                found = stop
        return found

    def release(self) -> str:
        """The end has come: what was held is text."""
        held, self.held = self.held, ""
        return held


class ChoiceText:
    """One choice: counts its tokens, turns them into text, knows why it ended."""

    __slots__ = (
        "index",
        "tokens",
        "finish",
        "stop_reason",
        "cut",
        "last_at",
        "written",
        "_stream",
        "_scan",
        "_stops",
    )

    def __init__(self, index: int, stream: TextStream, stops: Stops, strings: Sequence[StopString]):
        self.index = index  # among all choices of the client's request
        self.tokens = 0
        self.finish: FinishReason = ""
        self.stop_reason: str | int | None = None
        self.cut = False  # ended here, by a stop string, while its worker would go on
        self.written: Any = None  # what the answer keeps of this choice
        self.last_at = 0.0  # when its last token came; 0 = none has
        self._stream = stream
        self._scan = StopScan(strings) if strings else None
        self._stops = stops

    def push(self, token_id: int, finish: FinishReason) -> str:
        """Take the next token (-1: none was drawn); the text that can be shown now."""
        if finish:
            return self._end(token_id, finish)
        self.tokens += 1
        text = self._stream.push(token_id)
        if self._scan is None or not text or self.tokens <= self._stops.min_tokens:
            return text
        return self._look(text)

    def _look(self, text: str) -> str:
        scan = self._scan
        assert scan is not None
        shown, found = scan.push(text)
        if found is None:
            return shown
        if not self.finish:
            self.cut = True
        self.finish = "stop"
        self.stop_reason = found.text
        return shown + scan.release() if self._stops.keep else shown

    def _end(self, token_id: int, finish: FinishReason) -> str:
        text = ""
        if token_id >= 0:
            self.tokens += 1
            # A stop token's own text is shown only to those who asked for it.
            if finish != "stop" or self._stops.keep:
                text = self._stream.push(token_id)
        text += self._stream.flush()
        self.finish = finish
        if finish == "stop":
            self.stop_reason = token_id
        if self._scan is None:
            return text
        if text and self.tokens > self._stops.min_tokens:
            text = self._look(text)
        if isinstance(self.stop_reason, str):
            return text
        return text + self._scan.release()
