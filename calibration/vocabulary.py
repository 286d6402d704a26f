"""The words of the text grammar, frequent ones first."""


def split_words(line: str) -> tuple[str, ...]:
    """Return the words of a line."""
    return tuple(line.split())


NAMES = split_words(
    "Anna Tom Clara Felix Maria Paul Lena Oskar Ida Hugo Nora Emil Vera Anton Rosa Simon Greta Jonas Marta Victor "
    "Edith Leo Hanna Karl"
)
JOBS = split_words(
    "baker teacher farmer doctor sailor painter driver nurse writer miner cook gardener smith tailor pilot judge "
    "singer fisher builder clerk"
)
TOWNS = split_words(
    "Marlow Eastbrook Tarnfield Wexley Oldham Birchwood Kirkby Sanden Halden Norwick Lindow Ferrin Ashby Corvey"
)
RIVERS = split_words("Wend Alder Tarn Isel Moss Laine Brill Ouse")
BUILDINGS = split_words(
    "school bridge station market church harbour library mill tower museum bakery castle hospital barn lighthouse "
    "theatre"
)
NOUNS = split_words(
    "book lamp key boat clock hat letter chair box coat bottle basket ladder drum map coin mirror rope kettle "
    "violin wheel bell candle stamp"
)
FOODS = split_words(
    "bread soup rice cheese fish apples honey milk beans cake plums butter eggs carrots tea walnuts ham figs"
)
ANIMALS = split_words("dog cat horse owl fox cow goat swan bear mouse otter donkey raven seal hare badger")
COLORS = split_words("red green blue yellow black white brown gray purple golden")
MATERIALS = split_words("wooden iron glass stone paper silver woollen copper clay leather")
SUBSTANCES = split_words("wood stone brick iron glass clay copper")
TRAITS = split_words(
    "small old large new quiet strange heavy broken famous cold bright empty useful narrow gentle dusty clever "
    "round ugly rare"
)
FEELINGS = split_words("happy tired sad angry proud hungry afraid calm lonely curious bored grateful")
WEATHER = split_words("raining sunny windy foggy snowing cloudy stormy warm freezing dry")
VERBS = split_words(
    "took cleaned sold painted lost repaired carried hid opened washed forgot measured borrowed dropped"
)
DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split_words("January February March April May June July August September October November December")
OPPOSITES = (
    ("large", "small"),
    ("old", "new"),
    ("hot", "cold"),
    ("heavy", "light"),
    ("full", "empty"),
    ("open", "closed"),
    ("wet", "dry"),
    ("cheap", "expensive"),
    ("clean", "dirty"),
    ("high", "low"),
    ("bright", "dark"),
    ("near", "far"),
    ("strong", "weak"),
    ("long", "short"),
    ("early", "late"),
    ("soft", "hard"),
)
