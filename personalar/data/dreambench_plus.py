"""DreamBench++ (Peng et al., ICLR 2025): 150 pictures with nine prompts each, and human ratings.

The data are not part of this package. Unpacked into one folder, or its subfolder data/, they are:

images/live_subject/animal/00.jpg        one picture of each subject
captions/live_subject/animal/00.txt      its class, then its prompts, one per line
data_human_rating/raw_data/RATER/*-METHOD.json    {"SUBJECT-PROMPT": [likeness, prompt following]}, 0 to 4
samples/METHOD_.../{src_image,tgt_image,text}/SUBJECT/PROMPT_NUMBER.{jpg,txt}    the rated pictures

An example of SUBJECT is live_subject_animal_00_kitten; PROMPT is a number from 0.
"""

from __future__ import annotations

import math
import re
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from personalar.config.command_line import quote
from personalar.core.errors import hub_errors
from personalar.core.files import read_json
from personalar.data.photos.companions import PICTURE_SUFFIXES

PAGE = "https://github.com/yuangpeng/dreambench_plus"
ATTRIBUTION = (
    "DreamBench++ pictures and prompts: Y. Peng, Y. Cui, H. Tang, Z. Qi, R. Dong, J. Bai, C. Han, Z. Ge,\n"
    "X. Zhang, S.-T. Xia (ICLR 2025), github.com/yuangpeng/dreambench_plus; the rights of its pictures were\n"
    "checked for academic use"
)
UNPACKED = f"unpack the data of {PAGE} there"
REPOSITORY, ARCHIVE = "yuangpeng/dreambench_plus", "data.zip"
"""Data set on the Hugging Face hub, and its file with pictures and captions."""
MEMBERS = ("data/images/", "data/captions/")
"""Folders of the archive that are unpacked."""
LIVE = ("animal", "human")
SUBJECT = re.compile(r".+?_\d+_(?P<noun>.+)")


@dataclass(frozen=True, kw_only=True)
class PlusSubject:
    """A subject of the benchmark: one picture and its prompts."""

    name: str
    """For example "live_subject_animal_00_kitten"."""
    noun: str
    image: Path
    prompts: tuple[str, ...]
    """Prompts with "{}" for the noun."""

    @property
    def live(self) -> bool:
        """Whether it is an animal or a person."""
        return self.image.parent.name in LIVE


@dataclass(frozen=True, kw_only=True)
class RatedPicture:
    """A sample of a method with its human ratings by rater; NaN for a missing rating."""

    subject: str
    photo: Path
    image: Path
    prompt: str
    likeness: dict[str, float]
    following: dict[str, float]

    @property
    def noun(self) -> str:
        """The class of its subject: "kitten" of live_subject_animal_00_kitten."""
        found = SUBJECT.fullmatch(self.subject)
        return (found["noun"] if found else self.subject).replace("_", " ")


def template(caption: str, noun: str) -> str:
    """Return a prompt with "{}" for the noun; a prompt without the noun gets "{}" in front."""
    # Whole words only: "cat" must not be found in "vacation".
    found, count = re.subn(rf"(?<!\w){re.escape(noun)}(?!\w)", "{}", caption, flags=re.IGNORECASE)
    return found if count else f"a {{}}: {caption}"


def fetch_plus(revision: str) -> Path:
    """Return the folder of the pictures and captions on the hub; download and unpack them if necessary.

    Args:
        revision: a branch or commit of `REPOSITORY`.

    Raises:
        FileNotFoundError: they are not in the local cache and cannot be downloaded.
    """
    import huggingface_hub

    page = f"https://huggingface.co/datasets/{REPOSITORY} (revision {revision})"
    with hub_errors(page, f"set benchmark.path=DIR and {UNPACKED}"):
        found = huggingface_hub.hf_hub_download(REPOSITORY, ARCHIVE, repo_type="dataset", revision=revision)
    commit = Path(found).parent.name
    folder = Path("~/.cache/personalar").expanduser() / f"dreambench_plus-{commit}"
    print(f"DreamBench++: {REPOSITORY} at commit {commit}, in {folder}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpack(Path(found), folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Write pictures and captions of the zip file `archive` into the new folder `folder`."""
    # Unpacked beside its place, so that the folder is complete whenever it exists.
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside, zipfile.ZipFile(archive) as opened:
        opened.extractall(beside, [name for name in opened.namelist() if name.startswith(MEMBERS)])
        try:
            (Path(beside) / "data").rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have unpacked it in the meantime
                raise


def find_plus_subjects(path: Path, names: Sequence[str] | None = None) -> tuple[PlusSubject, ...]:
    """Return the subjects with these `names`; None: all in `path`.

    Raises:
        FileNotFoundError: `path` contains no subject, a picture has no prompts, or one of `names` is missing.
    """
    found = {}
    path = path / "data" if (path / "data" / "images").is_dir() else path
    images = path / "images"
    for image in sorted(images.rglob("*")):
        if image.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        where = image.relative_to(images).with_suffix("")
        captions = path / "captions" / where.with_suffix(".txt")
        if not captions.is_file():
            raise FileNotFoundError(f"{captions} is missing, the prompts of {image}: {UNPACKED}")
        lines = captions.read_text(encoding="utf-8", errors="replace").splitlines()
        # The first line is the class.
        noun, *prompts = [line.strip() for line in lines if line.strip()] or [""]
        name = "_".join([*where.parts, *noun.lower().split()])
        made = tuple(template(prompt, noun) for prompt in prompts)
        found[name] = PlusSubject(name=name, noun=noun.lower(), image=image, prompts=made)
    if not found:
        raise FileNotFoundError(f"benchmark.path={path} contains no picture in images/: {UNPACKED}")
    if missing := [name for name in names or () if name not in found]:
        some = ", ".join(list(found)[:4])
        raise FileNotFoundError(f"benchmark.subjects: {missing[0]!r} is not in {path}; there are {some}, ...")
    return tuple(subject for name, subject in found.items() if names is None or name in names)


def plus_overrides(subject: PlusSubject) -> tuple[str, ...]:
    """Return the overrides of personalar.run for a subject and its prompts."""
    return (
        "+subject=folder",
        f"subject.path={quote(subject.image.resolve())}",
        f"subject.noun={quote(subject.noun)}",
        f"subject.name={quote(subject.name)}",
        f"subject.live={str(subject.live).lower()}",
        f"samples.prompts=[{','.join(quote(prompt) for prompt in subject.prompts)}]",
    )


def read_ratings(path: Path) -> list[RatedPicture]:
    """Return all rated samples whose pictures exist, with their ratings.

    Raises:
        FileNotFoundError: ratings or samples are missing.
        ValueError: a file of ratings is damaged.
    """
    raw = path / "data_human_rating" / "raw_data"
    raw = raw if raw.is_dir() else path / "raw_data"
    files = sorted(raw.glob("*/*-*.json"))
    if not files:
        raise FileNotFoundError(f"ratings={path}: no raw_data/RATER/*-METHOD.json in it: {UNPACKED}")
    ratings: dict[tuple[str, str], dict[str, tuple[float, float]]] = defaultdict(dict)
    for file in files:
        method = file.stem.rpartition("-")[2]
        for key, pair in _pairs(file).items():
            ratings[method, key][file.parent.name] = pair
    folders = {method: _samples(path / "samples", method) for method in {method for method, _ in ratings}}
    found = [_rated(folders[method], key, by_rater) for (method, key), by_rater in sorted(ratings.items())]
    pictures = [picture for picture in found if picture is not None]
    if not pictures:
        raise FileNotFoundError(f"ratings={path}: no picture of samples/ was rated: {UNPACKED}")
    if len(pictures) < len(found):
        print(f"note: {len(found) - len(pictures)} of {len(found)} rated pictures are not in {path}/samples")
    return pictures


def _pairs(file: Path) -> dict[str, tuple[float, float]]:
    try:
        return {str(key): (_rating(pair[0]), _rating(pair[1])) for key, pair in read_json(file).items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error!s:.200}): unpack it again") from error


def _rating(value: object) -> float:
    """Return a rating, NaN for None. Raises ValueError outside of 0 to 4."""
    number = math.nan if value is None else float(str(value))
    if not math.isnan(number) and not 0 <= number <= 4:
        raise ValueError(f"a rating of {number:g}; allowed: 0 to 4")
    return number


def _samples(folder: Path, method: str) -> Path | None:
    """Return the folder with the samples of a method; its name ends with the sampling settings."""
    names = sorted(folder.glob(f"{method}*"), key=lambda path: len(path.name))
    # "_": the samples of "dreambooth" are not those of "dreambooth-lora".
    return next((path for path in names if path.name == method or path.name[len(method)] == "_"), None)


def _rated(folder: Path | None, key: str, ratings: dict[str, tuple[float, float]]) -> RatedPicture | None:
    subject, _, prompt = key.rpartition("-")
    # The key comes from a downloaded file and becomes part of a path.
    if folder is None or not subject or "/" in key:
        return None
    images = sorted((folder / "tgt_image" / subject).glob(f"{prompt}_*"))
    photos = sorted((folder / "src_image" / subject).glob(f"{prompt}_*"))
    texts = sorted((folder / "text" / subject).glob(f"{prompt}_*.txt"))
    if not images or not photos or not texts:
        return None
    return RatedPicture(
        subject=subject,
        photo=photos[0],
        image=images[0],
        prompt=texts[0].read_text(encoding="utf-8", errors="replace").strip(),
        likeness={rater: pair[0] for rater, pair in ratings.items()},
        following={rater: pair[1] for rater, pair in ratings.items()},
    )
