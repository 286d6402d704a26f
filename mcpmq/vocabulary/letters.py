"""Scripts and languages as sets of characters, and the byte sequences of which their UTF-8 texts consist."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from mcpmq.errors import RecipeError

ASCII, COMMON, OTHER = "Basic Latin", "Common", "Other"
# Scripts of letters by the first word of their names in the Unicode character database.
NAMED_SCRIPTS = (
    "Latin",
    "Greek",
    "Cyrillic",
    "Armenian",
    "Hebrew",
    "Arabic",
    "Syriac",
    "Thaana",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    "Thai",
    "Lao",
    "Tibetan",
    "Myanmar",
    "Georgian",
    "Hangul",
    "Ethiopic",
    "Cherokee",
    "Khmer",
    "Mongolian",
    "Hiragana",
    "Katakana",
    "Bopomofo",
    "Javanese",
    "Tifinagh",
)
SCRIPT_WORDS = {script.upper(): script for script in NAMED_SCRIPTS}
SCRIPT_WORDS |= {"CJK": "Han", "IDEOGRAPHIC": "Han", "KATAKANA-HIRAGANA": "Katakana"}
WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")
ASSIGNED_PLANES = (*range(0x40000), *range(0xE0000, 0xE0200))
UNASSIGNED = ("Cn", "Co", "Cs")  # categories of code points without a character, for private use, and of surrogates
SCRIPTS = (*dict.fromkeys(SCRIPT_WORDS.values()), OTHER)

# Letters besides a-z of languages in the Latin script, and the scripts of others.
LATIN_LANGUAGES = {
    "cs": "áčďéěíňóřšťúůýž",
    "da": "æøåé",
    "de": "äöüß",
    "en": "",
    "es": "áéíñóúüªº",
    "et": "äõöüšž",
    "fi": "äöåšž",
    "fr": "àâæçéèêëîïôœùûüÿ",
    "hr": "čćđšž",
    "hu": "áéíóöőúüű",
    "id": "",
    "it": "àèéìíîòóùªº",
    "lt": "ąčęėįšųūž",
    "lv": "āčēģīķļņšūž",
    "ms": "",
    "nb": "æøåéòóô",
    "nl": "áéëèíïóöú",
    "pl": "ąćęłńóśźż",
    "pt": "áâãàçéêíóôõúüªº",
    "ro": "ăâîșțşţ",
    "sk": "áäčďéíĺľňóôŕšťúýž",
    "sl": "čšž",
    "sv": "åäöé",
    "sw": "",
    "tl": "ñ",
    "tr": "âçğıîİöşûü",
    "vi": "àáảãạăằắẳẵặâầấẩẫậđèéẻẽẹêềếểễệìíỉĩịòóỏõọôồốổỗộơờớởỡợùúủũụưừứửữựỳýỷỹỵ",
}
OTHER_LANGUAGES = {
    "am": ("Ethiopic",),
    "ar": ("Arabic",),
    "be": ("Cyrillic",),
    "bg": ("Cyrillic",),
    "bn": ("Bengali",),
    "el": ("Greek",),
    "fa": ("Arabic",),
    "gu": ("Gujarati",),
    "he": ("Hebrew",),
    "hi": ("Devanagari",),
    "hy": ("Armenian",),
    "ja": ("Han", "Hiragana", "Katakana"),
    "ka": ("Georgian",),
    "kk": ("Cyrillic",),
    "km": ("Khmer",),
    "kn": ("Kannada",),
    "ko": ("Hangul",),
    "lo": ("Lao",),
    "ml": ("Malayalam",),
    "mr": ("Devanagari",),
    "my": ("Myanmar",),
    "ne": ("Devanagari",),
    "pa": ("Gurmukhi",),
    "ru": ("Cyrillic",),
    "si": ("Sinhala",),
    "sr": ("Cyrillic",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "th": ("Thai",),
    "uk": ("Cyrillic",),
    "ur": ("Arabic",),
    "zh": ("Han", "Bopomofo"),
}
LANGUAGES = (*sorted((*LATIN_LANGUAGES, *OTHER_LANGUAGES)),)


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str:
    """Return the script of a letter or its mark; `Common` for other characters, e.g. digits, punctuation and emoji."""
    if unicodedata.category(character)[0] not in "LM":
        return COMMON
    name = unicodedata.name(character, "")
    for width in WIDTHS:
        name = name.removeprefix(width)
    word = name.partition(" ")[0]
    return COMMON if word == "COMBINING" else SCRIPT_WORDS.get(word, OTHER)


def script_of_text(text: str) -> str:
    """Return the script of most letters of a text, `Basic Latin` if they are a-z; `Common` if it has none."""
    scripts = [ASCII if letter.isascii() else script_of(letter) for letter in text]
    letters = [script for script in scripts if script != COMMON]
    if "Latin" in letters:
        letters = ["Latin" if script == ASCII else script for script in letters]
    return max(dict.fromkeys(letters), key=letters.count, default=COMMON)


@dataclass(frozen=True, slots=True)
class Letters:
    """A set of characters, and the proper parts of the UTF-8 sequences of its characters."""

    characters: frozenset[str]
    prefixes: frozenset[bytes]
    suffixes: frozenset[bytes]
    middles: frozenset[bytes]

    @classmethod
    def of(cls, languages: Iterable[str], scripts: Iterable[str]) -> Self:
        """Return the letters of languages and scripts, with all characters that are not letters.

        Raises:
            RecipeError: a language or a script is not known.
        """
        languages, scripts = list(languages), set(scripts)
        _check_known("language", languages, LANGUAGES)
        _check_known("script", scripts, SCRIPTS)
        scripts |= {script for language in languages for script in OTHER_LANGUAGES.get(language, ())}
        latin = [letter for language in languages for letter in LATIN_LANGUAGES.get(language, "")]
        has_latin = any(language in LATIN_LANGUAGES for language in languages)
        single = {*latin, *(letter.upper() for letter in latin)}
        return cls.from_characters(
            character
            for character in map(chr, ASSIGNED_PLANES)
            if unicodedata.category(character) not in UNASSIGNED
            and (
                character in single
                or (has_latin and character.isascii())
                or script_of(character) in scripts
                or script_of(character) == COMMON
            )
        )

    @classmethod
    def from_characters(cls, characters: Iterable[str]) -> Self:
        """Return a set of characters."""
        found = frozenset(characters)
        encoded = [code for character in found if len(code := character.encode()) > 1]
        prefixes = frozenset(code[:end] for code in encoded for end in range(1, len(code)))
        suffixes = frozenset(code[begin:] for code in encoded for begin in range(1, len(code)))
        middles = frozenset(code[1:end] for code in encoded for end in range(2, len(code)))
        return cls(found, prefixes, suffixes, middles | frozenset(code[2:3] for code in encoded if len(code) == 4))

    def can_contain(self, part: bytes) -> bool:
        """Return whether a sequence of bytes can be part of a UTF-8 text of these characters."""
        body = part.lstrip(CONTINUATION_BYTES)
        head = part[: len(part) - len(body)]
        if not body:
            return head in self.suffixes or head in self.middles
        try:
            text, tail = body.decode(), b""
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                return False
            text, tail = body[: error.start].decode(), body[error.start :]
        complete = all(character in self.characters for character in text)
        return complete and (not head or head in self.suffixes) and (not tail or tail in self.prefixes)


CONTINUATION_BYTES = bytes(range(0x80, 0xC0))


def _check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise RecipeError(f"the {kind} `{unknown[0]}` in [vocabulary] is not known", f"known: {', '.join(known)}")
