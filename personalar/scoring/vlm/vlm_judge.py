"""Score pictures with a vision-language model: ratings of likeness and prompt following, and P("yes").

A rating is the mean of several repeats, each with the next photo of the subject. A question without a valid
answer counts as failed, has no value, and is asked again next time. Tokens are counted for all answers used,
including cached ones.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from personalar.config.subject_config import STYLE
from personalar.core.files import read_json, write_atomic
from personalar.core.measures import Measure
from personalar.core.types import Sample, Subject
from personalar.scoring.base import Value
from personalar.scoring.vlm.endpoint import Endpoint, Unanswered
from personalar.scoring.vlm.rubric import (
    LIKENESS,
    LIKENESS_OF_STYLE,
    PROMPT,
    VERSION,
    YES,
    rating,
    yes_probability,
)

LARGEST_PX = 512
"""Pixels of the longer side of a picture, as in DreamBench++."""
JUDGED = ("subject", "description")
"""Kinds of samples that are scored; the others are not worth the cost."""
MOST_SILENT = 24
"""Failed questions in a row after which the run stops."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One request to the server, with its measure and the number of the repeat."""

    measure: str
    body: dict[str, Any]
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The parsed answer; if it is invalid, `value` is None and `failed` is the reason."""

    value: float | None
    tokens: int = 0
    failed: str | None = None


class VlmJudge:
    """A scorer (`scoring.base.Scorer`) that asks a vision-language model; see conf/scorer/vlm.yaml.

    Args:
        url: address of the server, including /v1.
        model: name of the model on the server.
        repeats: how often each rating is asked.
        parallel: questions at the same time.
        key_variable: environment variable with the API key.
        cache: folder for answers, which several processes can use at the same time.
        request: further fields of each request; null removes one of ours.
        timeout, attempts, wait: see `Endpoint`.
    """

    batch = 16
    version = VERSION
    measures = (
        Measure(name="vlm_likeness", title="VLM likeness", range=(0, 4)),
        Measure(name="vlm_prompt", title="VLM prompt", range=(0, 4), reads="class"),
        Measure(name="vlm_yes", title="VLM yes", range=(0, 1), reads="class"),
        Measure(name="vlm_failed", title="VLM failed", range=(0, 1), better="lower"),
        Measure(name="vlm_tokens", title="VLM tokens", range=(0, None), better="lower"),
    )

    def __init__(
        self,
        url: str | None,
        model: str,
        *,
        repeats: int = 3,
        parallel: int = 8,
        key_variable: str | None = "OPENAI_API_KEY",
        cache: str = "~/.cache/personalar/answers",
        request: dict[str, Any] | None = None,
        timeout: float = 120.0,
        attempts: int = 5,
        wait: float = 1.0,
    ) -> None:
        if repeats < 1 or parallel < 1 or attempts < 1:
            raise ValueError(f"repeats={repeats}, parallel={parallel}, attempts={attempts}: at least 1 each")
        self.endpoint = Endpoint(
            url, key_variable=key_variable, timeout=timeout, attempts=attempts, wait=wait
        )
        self.model, self.repeats, self.parallel, self.request = model, repeats, parallel, request or {}
        self.cache = Path(cache).expanduser()
        self.failures_in_a_row, self.most_failures = 0, 1
        """The run stops after `most_failures` failed questions in a row. That is 1 until the first answer
        (so a wrong URL is found at once), then `MOST_SILENT`."""

    def score(self, samples: Sequence[Sample], subject: Subject) -> dict[str, list[Value]]:
        """Return the values of each sample; None for kinds that are not in `JUDGED`.

        Raises:
            ValueError: the server does not answer the first question, or `MOST_SILENT` questions in a row.
        """
        photos = [_data_uri(photo) for photo in subject.images]
        asked = [self._questions(sample, subject.noun, photos) for sample in samples]
        flat = [question for questions in asked for question in questions]
        found = iter(self._ask_all(flat))
        values = [self._values([(question, next(found)) for question in questions]) for questions in asked]
        return {measure.name: [value[measure.name] for value in values] for measure in self.measures}

    def _questions(self, sample: Sample, noun: str, photos: Sequence[str]) -> list[Question]:
        if sample.kind not in JUDGED:
            return []
        # Encoded once and used in every question about this picture.
        picture, questions = _data_uri(sample.image), []
        alike = LIKENESS_OF_STYLE if noun == STYLE else LIKENESS.format(noun=noun)
        for repeat in range(self.repeats):
            # Each repeat shows another photo, so that the mean does not depend on a single view.
            beside = photos[repeat % len(photos)]
            likeness = self._body(alike, [beside, picture], max_tokens=400)
            following = self._body(PROMPT.format(text=sample.prompt), [picture], max_tokens=400)
            questions.append(Question(measure="vlm_likeness", body=likeness, repeat=repeat))
            questions.append(Question(measure="vlm_prompt", body=following, repeat=repeat))
        # Asked once: its value is a probability, so repeats would give the same.
        sure = self._body(
            YES.format(text=sample.prompt), [picture], max_tokens=1, logprobs=True, top_logprobs=20
        )
        return [*questions, Question(measure="vlm_yes", body=sure, repeat=0)]

    def _body(self, text: str, pictures: Sequence[str], **more: Any) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri}} for uri in pictures]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        # `request` comes last, so that a setting can replace or remove each field.
        body = {"model": self.model, "messages": [message], "temperature": 0, **more, **self.request}
        return {name: value for name, value in body.items() if value is not None}

    def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        """Ask all questions; the first one alone, so that a wrong setting is found before many are paid."""
        if not questions:
            return []
        # While no question was answered, one failure stops the run (see `most_failures`).
        first = self._ask(questions[0])
        with ThreadPoolExecutor(self.parallel) as pool:
            return [first, *pool.map(self._ask, questions[1:])]

    def _ask(self, question: Question) -> Answer:
        file = self._file(question)
        if known := cached(file):
            return known
        try:
            if self.failures_in_a_row >= self.most_failures:
                raise Unanswered("no answer for a while")
            found = self.endpoint.ask(question.body)
        except Unanswered as error:
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= self.most_failures:
                raise ValueError(
                    f"scorer.url={self.endpoint.url} gives no answer ({error}): start the server, check the "
                    f"URL (it ends with /v1), the model's name and the key in {self.endpoint.key_variable}; "
                    "answers that were given are kept"
                ) from error
            return Answer(value=None, failed=str(error))
        self.failures_in_a_row, self.most_failures = 0, MOST_SILENT
        answer = read_answer(question.measure, found)
        # Only valid answers are stored: an invalid one would fail again in every run.
        if answer.value is not None:
            kept = {"value": answer.value, "tokens": answer.tokens}
            write_atomic(file, json.dumps(kept).encode(), sync=False)
        return answer

    def _file(self, question: Question) -> Path:
        """Return the file of its answer: a hash of server, model, settings, text, pictures and repeat."""
        asked = json.dumps([self.endpoint.url, question.body, question.repeat], sort_keys=True)
        key = hashlib.sha256(asked.encode()).hexdigest()
        # Subfolders, because a folder with 100,000 files is slow.
        return self.cache / key[:2] / f"{key}.json"

    def _values(self, answers: Sequence[tuple[Question, Answer]]) -> dict[str, Value]:
        if not answers:
            return {measure.name: None for measure in self.measures}
        values: dict[str, Value] = {}
        for name in ("vlm_likeness", "vlm_prompt", "vlm_yes"):
            mine = [answer.value for question, answer in answers if question.measure == name]
            read = [value for value in mine if value is not None]
            values[name] = {"value": sum(read) / len(read), "answers": mine} if read else None
        reasons = [answer.failed for _, answer in answers if answer.failed]
        values["vlm_failed"] = {"value": len(reasons) / len(answers), "reasons": reasons}
        values["vlm_tokens"] = float(sum(answer.tokens for _, answer in answers))
        return values


def cached(file: Path) -> Answer | None:
    """Return the answer in a file of the cache; None if it is missing or damaged."""
    try:
        found = read_json(file)
        return Answer(value=float(found["value"]), tokens=int(found["tokens"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_answer(measure: str, found: dict[str, Any]) -> Answer:
    """Parse a chat completion for a measure."""
    try:
        choice = found["choices"][0]
        text = choice["message"].get("content") or ""
        tokens = int((found.get("usage") or {}).get("total_tokens") or 0)
        if measure == "vlm_yes":
            value, reason = yes_probability(choice), "no logprobs of yes and no"
        else:
            value, reason = rating(str(text)), "no rating in the answer"
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Answer(value=None, failed="not a chat completion")
    return Answer(value=value, tokens=tokens, failed=reason if value is None else None)


def _data_uri(image: Image.Image) -> str:
    """Return a data URI with the picture as PNG, scaled to at most `LARGEST_PX` pixels per side."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Lossless: JPEG artefacts could be taken for differences from the photo.
    small.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
