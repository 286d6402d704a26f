"""A sample set as one self-contained HTML page: counts, and every sample with small images."""

from base64 import b64encode
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

from jinja2 import Environment
from PIL import Image

from mcpmq.dataset import Sample, SampleSet, Turn
from mcpmq.families.images import open_image
from mcpmq.families.video_frames import open_video, spread_frames
from mcpmq.system.escaping import escape_controls
from mcpmq.system.table import Table

PAGE_BEGINNING = "<!doctype html>\n"
MAX_SAMPLES, MAX_CHARACTERS = 200, 600  # of a page, of a text
MAX_FRAMES = 4  # of a video
THUMBNAIL_PIXELS, JPEG_QUALITY = 160, 75


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small copy of an image or a frame, and the size of the original."""

    data: str  # URL
    width: int
    height: int


def render_contact_sheet(samples: SampleSet, table: Table) -> str:
    """Render the table of counts and the first samples of a set.

    Raises:
        DatasetError: an image or a video cannot be read.
    """
    environment = Environment(autoescape=True, finalize=_finalize, trim_blocks=True, lstrip_blocks=True)
    page = files("mcpmq.ui").joinpath("contact_sheet.html").read_text(encoding="utf-8")
    shown = samples.samples[:MAX_SAMPLES]
    return environment.from_string(page).render(
        title=table.title, table=table, cards=[_card(sample) for sample in shown], hidden=len(samples) - len(shown)
    )


def _finalize(value: object) -> object:
    return escape_controls(value) if type(value) is str else value


def _card(sample: Sample) -> dict[str, object]:
    return {"id": sample.id, "tags": sample.tags, "turns": [_turn(sample.id, turn) for turn in sample.turns]}


def _turn(sample_id: str, turn: Turn) -> dict[str, object]:
    text = turn.text if len(turn.text) <= MAX_CHARACTERS else f"{turn.text[:MAX_CHARACTERS]} …"
    shown = [open_image(sample_id, image) for image in turn.images]
    shown += [frame for video in turn.videos for frame in spread_frames(open_video(sample_id, video), MAX_FRAMES)]
    return {"role": turn.role, "text": text, "images": list(map(_thumbnail, shown))}


def _thumbnail(opened: Image.Image) -> Thumbnail:
    width, height = opened.size
    opened.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = BytesIO()
    opened.save(stream, "JPEG", quality=JPEG_QUALITY)
    return Thumbnail("data:image/jpeg;base64," + b64encode(stream.getvalue()).decode(), width, height)
