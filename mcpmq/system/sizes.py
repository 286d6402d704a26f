"""Parse sizes such as 4.6GB."""

import re
from typing import Annotated

from pydantic import ByteSize, Field, TypeAdapter, ValidationError

from mcpmq.errors import McpmqError

_SIZE = TypeAdapter(Annotated[ByteSize, Field(gt=0)])
_FORM = re.compile(r"\d*\.?\d+\s*[A-Za-z]*")  # ByteSize ignores the rest of `4,6GB`


def parse_size(text: str) -> int:
    """Return the number of bytes of a size such as `4.6GB`, `512 MiB` or `1000`.

    Raises:
        McpmqError: the text is not a size, or the size is 0.
    """
    try:
        return int(_SIZE.validate_python(text if _FORM.fullmatch(text.strip()) else ""))
    except ValidationError as error:
        raise McpmqError(f"`{text}` is not a size", "write a number and a unit: kB, MB, GB, KiB, MiB or GiB") from error
