"""The questions for a vision-language model, and how its answers are parsed.

There are two ratings from 0 to 4, with the criteria of DreamBench++ (arXiv 2406.16855) in our own words, and
the yes-or-no question of VQAScore (arXiv 2404.01291). `VERSION`, a hash of the texts, is recorded with every
result, because other texts give other scores.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

LIKENESS = """\
The first picture is a photo of one particular {noun}. The second picture was generated and should show \
the same {noun}, perhaps in another place, pose or style. Rate how well its identity was kept. Ignore \
background, pose, lighting and picture quality. Compare, one by one: shape and proportions; colours, part by \
part; patterns, markings and texture; small parts and details, and the face if there is one.
4: the very same one, every visible detail agrees
3: the same one but for a small detail
2: alike, with clear differences
1: another one of the same kind
0: the {noun} is missing, or is something else
First write one short sentence for each comparison, then end with the line "Score: N", where N is a whole \
number from 0 to 4."""
LIKENESS_OF_STYLE = """\
The first picture is an example of a style. The second picture was generated and should show something else \
in the same style. Rate how well the style was kept. Ignore what the pictures show, and their quality. \
Compare, one by one: medium and technique; colours; lines and strokes; texture; light, shading and depth.
4: the very same style, in every respect
3: the same style but for a detail
2: alike, with clear differences
1: a hint of it
0: another style
First write one short sentence for each comparison, then end with the line "Score: N", where N is a whole \
number from 0 to 4."""
PROMPT = """\
This picture was generated for the text: "{text}". Rate how well it shows what the text asks for. Ignore \
beauty and picture quality. Check, one by one: the things that are named; their colours, number and what \
they do or wear; the place; the style.
4: all of it is there
3: all but a small detail
2: the main thing is there, something important is missing or wrong
1: little of it is there
0: none of it
First write one short sentence for each check, then end with the line "Score: N", where N is a whole number \
from 0 to 4."""
YES = 'Does this picture show "{text}"? Answer with one word, yes or no.'
VERSION = hashlib.sha256("\0".join((LIKENESS, LIKENESS_OF_STYLE, PROMPT, YES)).encode()).hexdigest()[:12]
ALLOWED = ("0", "1", "2", "3", "4")
SCORE = re.compile(
    r"(?:score|rating)(?:\s+is)?(?:[*\s]*[(\[][^()\[\]]{0,20}[)\]])?[^\w-]{0,6}"  # as in "Score (0-4): 3"
    r"([0-9.,]+)(?![0-9.,]|\s*[-–]\s*[0-9])"  # not the start of a range
    r"(?:\s*(?:/|(?:out )?of)\s*([0-9]+))?",
    re.IGNORECASE,
)
"""A rating and the largest possible one, if the answer has it."""
LEAST_ANSWERED = 0.5
"""Minimum of P("yes") + P("no"); below it the model wants to answer something else."""


def rating(text: str) -> int | None:
    """Parse a rating: the last number after "score" or "rating", or the whole text; None if not 0 to 4."""
    # Some models answer with the number only.
    bare = re.fullmatch(r"\s*([0-9.]+)\s*", text)
    found = SCORE.findall(text)
    # The last one: models may mention scores of single criteria before.
    number, of = found[-1] if found else (bare[1] if bare else "", "")
    number = re.sub(r"\.0+$", "", number.rstrip(".,"))
    return int(number) if number in ALLOWED and of in ("", ALLOWED[-1]) else None


def yes_probability(choice: Mapping[str, Any]) -> float | None:
    """Return P("yes") of the first token, from a choice with logprobs.

    None if logprobs are missing, or if yes and no are both unlikely (see `LEAST_ANSWERED`).
    """
    try:
        tokens = choice["logprobs"]["content"][0]["top_logprobs"]
        found = {"yes": 0.0, "no": 0.0}
        for entry in tokens:
            # "Yes", " yes" and "yes." are different tokens with the same meaning.
            word = re.sub(r"[^a-z]", "", entry["token"].lower())
            if word in found:
                found[word] += math.exp(entry["logprob"])
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return None
    total = found["yes"] + found["no"]
    if not LEAST_ANSWERED <= total <= 1.01:  # also NaN
        return None
    return min(found["yes"], 1.0)
