"""Sounds of English as targets of a formant synthesizer, and the words of the speech samples.

Formant frequencies are rounded averages of men (Peterson and Barney, J. Acoust. Soc. Am. 24, 1952); gains, bands of
noise and durations were chosen by their spectra.
"""

from dataclasses import dataclass

Formants = tuple[float, float, float]  # Hz
NEUTRAL: Formants = (500.0, 1500.0, 2500.0)


@dataclass(frozen=True)
class Phoneme:
    """Targets of one sound."""

    seconds: float
    begin: Formants = NEUTRAL
    end: Formants | None = None  # of a diphthong
    voicing: float = 0.0  # gain of the harmonics
    noise: float = 0.0  # gain of the noise
    center: float = 0.0  # Hz, of the band of noise
    width: float = 1.0  # Hz, its standard deviation


def _vowel(seconds: float, begin: Formants, end: Formants | None = None, voicing: float = 1.0) -> Phoneme:
    return Phoneme(seconds, begin, end, voicing)


def _noise(seconds: float, gain: float, center: float, width: float, voicing: float = 0.0) -> Phoneme:
    return Phoneme(seconds, voicing=voicing, noise=gain, center=center, width=width)


IY, OW_END = (280.0, 2250.0, 2900.0), (400.0, 800.0, 2400.0)
PHONEMES = {
    "iy": _vowel(0.15, IY),
    "ih": _vowel(0.10, (400, 1950, 2550)),
    "eh": _vowel(0.12, (540, 1820, 2480)),
    "ae": _vowel(0.15, (680, 1700, 2420)),
    "aa": _vowel(0.15, (720, 1100, 2450)),
    "ao": _vowel(0.14, (580, 860, 2420)),
    "uw": _vowel(0.15, (310, 880, 2250)),
    "ah": _vowel(0.09, (630, 1200, 2400)),
    "er": _vowel(0.14, (490, 1350, 1690)),
    "ow": _vowel(0.16, (540, 950, 2400), OW_END),
    "ey": _vowel(0.16, (480, 2000, 2600), (320, 2250, 2850)),
    "ay": _vowel(0.19, (720, 1150, 2450), (360, 2100, 2700)),
    "m": _vowel(0.08, (250, 1050, 2200), voicing=0.35),
    "n": _vowel(0.08, (250, 1600, 2500), voicing=0.35),
    "ng": _vowel(0.10, (250, 2050, 2550), voicing=0.35),
    "l": _vowel(0.07, (350, 1050, 2650), voicing=0.6),
    "r": _vowel(0.07, (330, 1100, 1500), voicing=0.6),
    "w": _vowel(0.07, (300, 680, 2200), voicing=0.5),
    "y": _vowel(0.06, IY, voicing=0.5),
    "s": _noise(0.11, 0.30, 6000, 1200),
    "sh": _noise(0.11, 0.30, 3400, 900),
    "f": _noise(0.10, 0.10, 5000, 3000),
    "th": _noise(0.10, 0.06, 6500, 1800),
    "z": _noise(0.09, 0.18, 6000, 1200, voicing=0.25),
    "zh": _noise(0.07, 0.18, 3300, 900, voicing=0.25),
    "v": _noise(0.07, 0.05, 4500, 3000, voicing=0.35),
    "hh": _noise(0.06, 0.08, 1200, 900),
    "-": Phoneme(0.05),  # the closure of an unvoiced stop
    "=": Phoneme(0.04, (250, 1400, 2400), voicing=0.12),  # that of a voiced one
    "t": _noise(0.03, 0.35, 5000, 1500),
    "k": _noise(0.035, 0.35, 2000, 500),
    "p": _noise(0.025, 0.25, 800, 400),
    "d": _noise(0.02, 0.20, 4500, 1500, voicing=0.3),
    "g": _noise(0.025, 0.20, 1900, 500, voicing=0.3),
    "b": _noise(0.02, 0.15, 700, 400, voicing=0.3),
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLORS = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "moon", "ring")
WORDS = (*DIGITS, *COLORS, *SHAPES)
PRONUNCIATIONS = {
    word: tuple(sounds.split())
    for word, sounds in {
        "zero": "z ih r ow",
        "one": "w ah n",
        "two": "- t uw",
        "three": "th r iy",
        "four": "f ao r",
        "five": "f ay v",
        "six": "s ih - k s",
        "seven": "s eh v ah n",
        "eight": "ey - t",
        "nine": "n ay n",
        "red": "r eh = d",
        "green": "= g r iy n",
        "blue": "= b l uw",
        "yellow": "y eh l ow",
        "white": "w ay - t",
        "black": "= b l ae - k",
        "orange": "ao r ih n = zh",
        "purple": "- p er - p ah l",
        "circle": "s er - k ah l",
        "square": "s - k w eh r",
        "triangle": "- t r ay ae ng = g ah l",
        "star": "s - t aa r",
        "cross": "- k r ao s",
        "heart": "hh aa r - t",
        "moon": "m uw n",
        "ring": "r ih ng",
    }.items()
}
