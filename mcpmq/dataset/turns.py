"""Order of the turns of a conversation."""

from collections.abc import Sequence

from mcpmq.dataset.sample import Turn
from mcpmq.errors import DatasetError

ORDER_HINT = "begin with one system prompt or none, then alternate `user` and `assistant`; the last turn is an answer"


def check_turns(turns: Sequence[Turn], where: str) -> None:
    """Check the order of turns, that images, videos and audio are in prompts, and that every answer has one text.

    Raises:
        DatasetError: the conversation cannot be measured; the error has `where`.
    """
    dialog = turns[1:] if turns and turns[0].role == "system" else turns
    for number, turn in enumerate(dialog):
        if turn.role != ("user", "assistant")[number % 2]:
            raise DatasetError(f"{where}: message {number + len(turns) - len(dialog)} is of `{turn.role}`", ORDER_HINT)
    if len(dialog) % 2 or not dialog:
        raise DatasetError(f"{where}: the last message is not an answer", ORDER_HINT)
    for turn in turns:
        if turn.files and turn.role != "user":
            found = "an image" if turn.images else "a video" if turn.videos else "audio"
            raise DatasetError(
                f"{where}: a message of `{turn.role}` has {found}", "only prompts can have images, videos and audio"
            )
        if turn.role == "assistant" and (len(turn.content) != 1 or not turn.text.strip()):
            raise DatasetError(f"{where}: an answer is not one text", "write every answer as one text")
