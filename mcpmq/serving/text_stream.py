"""Conversion of generated tokens to text, in whole characters and without stop texts."""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"  # decoded from the first bytes of a character


class TextStream:
    """Decodes tokens as they are generated.

    Text is held back while it is an incomplete character, or the beginning of a stop text.
    """

    def __init__(self, tokenizer: Tokenizer, control_ids: Collection[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._control_ids, self._stop = tokenizer, control_ids, [text for text in stop if text]
        self._ids: list[int] = []  # those before `_decoded` give the context of the others
        self._decoded, self._before = 0, ""  # the number of these tokens, and their text
        self._held = ""
        self.stopped = False  # a stop text was found

    def push(self, token: int) -> str:
        """Add a token and return the text that is complete; control tokens have no text."""
        if token in self._control_ids:
            return ""
        self._ids.append(token)
        after = self._decode(self._ids)
        if after.endswith(REPLACEMENT) or len(after) <= len(self._before):
            return ""
        text = after[len(self._before) :]
        self._ids = self._ids[self._decoded :]
        self._decoded, self._before = len(self._ids), self._decode(self._ids)
        return self._release(text, final=False)

    def finish(self) -> str:
        """Return the rest of the text."""
        if self.stopped:
            return ""
        return self._release(self._decode(self._ids)[len(self._before) :], final=True)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def _release(self, text: str, *, final: bool) -> str:
        text = self._held + text
        if found := [index for stop in self._stop if (index := text.find(stop)) >= 0]:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
