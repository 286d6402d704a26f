"""Sizes as people write them."""

import re

from mcpmq.errors import McpmqError

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of `4.6GB`, `512 MiB` or `1000`.

    Raises:
        McpmqError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    units = {unit.lower(): nbytes for unit, nbytes in UNITS.items()}
    if not found or found[2].lower() not in units or not float(found[1]):
        raise McpmqError(f"`{text}` is no size", f"write a number and one of: {', '.join(filter(None, UNITS))}")
    return int(float(found[1]) * units[found[2].lower()])
