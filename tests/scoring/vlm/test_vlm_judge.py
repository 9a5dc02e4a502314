"""A vision-language judge against a real server: ratings, cost, failures, cache, and a secret key."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, chat_server, completion, sure
from conftest_run import compose_config
from PIL import Image
from test_subject_scorer import BARE, SNOW, picture, plain, sample, subject

from personalar.config.fingerprint import request_of
from personalar.core.types import PromptSpec, Sample
from personalar.scoring.judges import Judges, load_judges
from personalar.scoring.vlm import vlm_judge
from personalar.scoring.vlm.rubric import VERSION, rating, yes_probability
from personalar.scoring.vlm.vlm_judge import VlmJudge

KEY = "sk-test-0123456789abcdef"


def text_of(body: dict[str, Any]) -> str:
    (text,) = [part["text"] for part in body["messages"][0]["content"] if part["type"] == "text"]
    return text


def pictures_of(body: dict[str, Any]) -> list[Image.Image]:
    parts = [part["image_url"]["url"] for part in body["messages"][0]["content"] if "image_url" in part]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in parts]


def good(body: dict[str, Any], number: int) -> Reply:
    """Rate likeness 3, prompt following 4, and be sure of yes by .8."""
    if body.get("logprobs"):
        return 200, sure(Yes=0.8, no=0.15)
    return 200, completion(f"Colours agree.\n**Score**: {3 if len(pictures_of(body)) == 2 else 4}")


def judge(server: ChatServer, folder: Path, **changes: Any) -> VlmJudge:
    options = {"cache": str(folder / "answers"), "wait": 0.01, "attempts": 3, "timeout": 5, **changes}
    return VlmJudge(server.url, "toy", **options)


def values(scorer: VlmJudge, *samples: Any, owner: Any = None) -> dict[str, list[Any]]:
    owner = owner or subject()
    lines = Judges(owner, None, {"vlm": scorer}, {}).score(samples or [sample(SNOW, plain(9, 0, 0))])
    found: dict[str, list[Any]] = {}
    for line in lines:
        found.setdefault(line["scorer"], []).append(line["value"])
    return found


def test_ratings_are_means_of_repeats_and_everything_is_counted(tmp_path: Path) -> None:
    with chat_server(good) as server:
        found = values(judge(server, tmp_path))
        asked = list(server.bodies)
    assert found == {
        "vlm_likeness": [3], "vlm_prompt": [4], "vlm_yes": [0.8], "vlm_failed": [0], "vlm_tokens": [700],
    }  # fmt: skip
    assert len(asked) == 7 and {body["temperature"] for body in asked} == {0}
    assert {body["model"] for body in asked} == {"toy"}
    likeness = [pictures_of(body) for body in asked if len(pictures_of(body)) == 2]
    shown = sorted(first.getpixel((0, 0)) for first, _ in likeness)
    assert shown == [(0, 1, 0), (1, 0, 0), (1, 0, 0)]  # the photos in turn
    assert all(second.getpixel((0, 0)) == (9, 0, 0) for _, second in likeness)
    others = [text_of(body) for body in asked if len(pictures_of(body)) == 1]
    assert len(others) == 4 and all('"a cat in the snow"' in text for text in others)  # never [V]


def test_large_pictures_are_sent_small(tmp_path: Path) -> None:
    with chat_server(good) as server:
        values(judge(server, tmp_path), sample(SNOW, picture(1, (1024, 700))))
        sizes = {shown.size for body in server.bodies for shown in pictures_of(body)}
    assert (512, 350) in sizes and (1024, 700) not in sizes


def test_answers_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(good) as server:
        first = values(judge(server, tmp_path))
        assert values(judge(server, tmp_path)) == first and len(server.bodies) == 7
        values(judge(server, tmp_path), sample(BARE, plain(9, 0, 0)))  # another prompt, the same picture
        assert len(server.bodies) == 7 + 4
        values(judge(server, tmp_path), sample(SNOW, plain(8, 0, 0)))  # another picture
        assert len(server.bodies) == 11 + 7
        monkeypatch.setattr(vlm_judge, "LIKENESS", vlm_judge.LIKENESS + " ")  # another rubric
        values(judge(server, tmp_path))
        assert len(server.bodies) == 18 + 3
    damaged = next((tmp_path / "answers").rglob("*.json"))
    damaged.write_text("{")
    with chat_server(good) as other:
        assert values(judge(other, tmp_path)) == first  # another server: nothing is known of it


def test_answers_are_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the pictures of DreamBench++, whatever XDG_CACHE_HOME says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert VlmJudge("http://127.0.0.1:9/v1", "toy").cache == tmp_path / ".cache/personalar/answers"


def test_how_it_is_asked_makes_no_other_judge(tiny_scorer_dir: Path) -> None:
    words = ["+subject=cat", "scorer=vlm", "scorer.url=http://localhost:8000/v1"]
    words += ["scorer.extra.vlm.model=toy", "scorer.dino_preprocess=checkpoint"]
    words += [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    faster = [f"+scorer.extra.vlm.{name}=9" for name in ("parallel", "timeout", "attempts", "wait")]
    faster.append("+scorer.extra.vlm.cache=answers")

    def identity(*more: str) -> tuple[dict, dict]:
        config = compose_config(*words, *more)
        judges = load_judges(config.scorer, subject(), prompts=(), device="cpu")
        return judges.names, request_of(config)["scorer"]

    assert identity(*faster) == identity()
    for one, other in zip(identity("scorer.extra.vlm.repeats=1"), identity(), strict=True):
        assert one != other


def test_pictures_of_other_kinds_cost_nothing(tmp_path: Path) -> None:
    import dataclasses

    prior = dataclasses.replace(sample(BARE, plain(1, 2, 3)), kind="prior")
    with chat_server(good) as server:
        assert values(judge(server, tmp_path), prior) == {} and server.bodies == []


def busy_at_first(body: dict[str, Any], number: int) -> Reply:
    return (429, {"error": "slow down"}, {"Retry-After": "0"}) if number < 2 else good(body, number)


def broken_at_first(body: dict[str, Any], number: int) -> Reply:
    return (503, b"<html>") if number < 2 else good(body, number)


@pytest.mark.parametrize("reply", [busy_at_first, broken_at_first])
def test_a_busy_server_is_asked_again(reply: Callable, tmp_path: Path) -> None:
    with chat_server(reply) as server:
        assert values(judge(server, tmp_path, parallel=1))["vlm_failed"] == [0]
        assert len(server.bodies) == 7 + 2


def only(which: int, reply: Reply) -> Callable[[dict[str, Any], int], Reply]:
    """Answer the question of that number by `reply`, the others well."""
    return lambda body, number: reply if number == which else good(body, number)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, completion("I'm sorry, but I can't rate this picture.")), "no rating in the answer"),
        ((200, completion(None)), "no rating in the answer"),
        ((200, completion("Score: 7")), "no rating in the answer"),
        ((200, b"\xff\xfe garbage {"), "not JSON"),
        ((200, [1, 2]), "not a chat completion"),
        ((200, {"choices": []}), "not a chat completion"),
        ((200, {"choices": [{"message": "4"}]}), "not a chat completion"),
        ((400, {"error": {"message": "content policy"}}), "HTTP 400"),
        ((302, b"", {"Location": "http://127.0.0.1:9/v1"}), "HTTP 302"),
    ],
)
def test_what_cannot_be_read_is_counted_and_asked_again(reply: Reply, reason: str, tmp_path: Path) -> None:
    with chat_server(only(2, reply)) as server:
        scorer = judge(server, tmp_path, parallel=1, attempts=1)
        lines = Judges(subject(), None, {"vlm": scorer}, {}).score([sample(SNOW, plain(9, 0, 0))])
        found = {line["scorer"]: line for line in lines}
        assert found["vlm_likeness"]["answers"] == [3, None, 3] and found["vlm_likeness"]["value"] == 3
        assert found["vlm_failed"]["value"] == pytest.approx(1 / 7, abs=1e-6)
        assert found["vlm_failed"]["reasons"] == [reason]
        assert values(judge(server, tmp_path))["vlm_failed"] == [0]  # this time it is answered
        assert len(server.bodies) == 8


def test_a_server_without_logprobs_still_rates(tmp_path: Path) -> None:
    def without(body: dict[str, Any], number: int) -> Reply:
        return (200, completion("Yes")) if body.get("logprobs") else good(body, number)

    with chat_server(without) as server:
        found = values(judge(server, tmp_path))
    assert "vlm_yes" not in found and found["vlm_likeness"] == [3]
    assert found["vlm_failed"] == [pytest.approx(1 / 7, abs=1e-6)]


def test_slow_answers_fail_alone_and_a_dead_server_ends_it(tmp_path: Path, monkeypatch) -> None:
    with chat_server(good, delay=1.0) as server, pytest.raises(ValueError, match=r"no answer \(timeout\)"):
        values(judge(server, tmp_path, timeout=0.1, attempts=1))
    with chat_server(good) as server:
        scorer = judge(server, tmp_path, attempts=1, parallel=2)
        values(scorer)
        server.reply = lambda body, number: (500, b"")
        more = [sample(SNOW, plain(n, 0, 0)) for n in range(20, 22)]
        assert values(scorer, *more)["vlm_failed"] == [1, 1]  # 14 questions
        with pytest.raises(ValueError, match=r"gives no answer \(.*answers that were given are kept"):
            values(scorer, *[sample(SNOW, plain(n, 0, 0)) for n in range(30, 34)])
        asked = len(server.bodies)
    assert asked < 7 + 14 + 14  # it gave up soon
    with pytest.raises(
        ValueError, match=r"scorer.url=http://127.0.0.1:9/v1 gives no answer \(no connection\)"
    ):
        values(VlmJudge("http://127.0.0.1:9/v1", "toy", attempts=1, cache=str(tmp_path / "other")))


def test_the_key_is_sent_and_in_no_file_message_or_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = ""
    with chat_server(good) as server:
        scorer = judge(server, tmp_path)
        values(scorer)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        said += repr(vars(scorer)) + repr(vars(scorer.endpoint))
    echo = (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {"X-Key": KEY})
    with chat_server(lambda *_: echo) as server, pytest.raises(ValueError, match="HTTP 401") as caught:
        values(judge(server, tmp_path))
    said += "".join(repr(vars(error)) + str(error) for error in chain(caught.value))
    out, err = capfd.readouterr()
    assert KEY not in said + out + err + caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(KEY.encode() not in path.read_bytes() for path in files)


def chain(error: BaseException | None) -> list[BaseException]:
    return [error, *chain(error.__cause__ or error.__context__)] if error else []


def test_no_key_no_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_server(good) as server:
        values(judge(server, tmp_path))
        assert not any("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "is not a URL; allowed: https://HOST/v1"),
        ("file:///etc/passwd", "is not a URL"),
        (f"https://me:{KEY}@host/v1", "contains a name, a password or a query"),
        (f"https://host/v1?api-key={KEY}", "contains a name, a password or a query"),
        ("http://gpu-node:8000/v1", "the key in OPENAI_API_KEY would go to gpu-node unencrypted"),
    ],
)
def test_urls_that_would_leak_are_refused(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ValueError, match=message) as caught:
        VlmJudge(url, "toy")
    assert KEY not in str(caught.value)
    VlmJudge("http://gpu-node:8000/v1", "toy", key_variable=None)


def test_fields_of_a_request_can_be_changed(tmp_path: Path) -> None:
    with chat_server(good) as server:
        values(judge(server, tmp_path, request={"max_tokens": None, "max_completion_tokens": 500}))
        assert all("max_tokens" not in body for body in server.bodies)
        assert {body["max_completion_tokens"] for body in server.bodies} == {500}
    with pytest.raises(ValueError, match="repeats=0, parallel=8, attempts=5: at least 1 each"):
        VlmJudge("https://host/v1", "toy", repeats=0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Score: 3", 3), ("... of 4.\nscore - 2", None), ("**Score:** 4/4", 4), ("Score: 3/5", None),
        ("Score: 2\nno, Score: 1", 1), ("3", 3), ("4.", 4), ("Score: 3.5", None), ("Score: -1", None),
        ("Score: 10", None), ("5", None), ("I rate it 3", None), ("", None), ("Score: ٣", None),
        ("Score (0-4): 3", 3), ("**Score** [out of 4]: 2", 2), ("Score (3)", 3), ("Score 0-4: 3", None),
        ("Score 10-4", None), ("Score: 4 out of 10", None), ("Score: 4 out of 4", 4), ("Score: 3 of 4.", 3),
        ("The score is 3", 3), ("Rating: 3", 3), ("The rating is **2**.", 2), ("Rating: 9", None),
        ("Score: 3.0", 3), ("Score: 3.0/4", 3), ("2.0", 2), ("3.5", None), ("Score: 3 - a detail", 3),
    ],
)  # fmt: skip
def test_ratings_are_whole_numbers_from_0_to_4(text: str, found: int | None) -> None:
    assert rating(text) == found


def test_the_probability_of_yes() -> None:
    def of(**probabilities: float) -> float | None:
        return yes_probability(sure(**probabilities)["choices"][0])

    assert of(Yes=0.5, yes=0.2, No=0.2) == pytest.approx(0.7)
    assert of(No=0.9) == 0.0
    assert of(The=0.9, Yes=0.05) is None  # it does not answer the question
    assert of(Yes=1.5) is None
    assert yes_probability({}) is None and yes_probability({"logprobs": {"content": [{}]}}) is None
    bad = {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": float("nan")}]}]}}
    assert yes_probability(bad) is None


def test_it_is_chosen_by_configuration_and_named_with_its_rubric(tiny_scorer_dir: Path) -> None:
    pair = [f"scorer.{name}={tiny_scorer_dir / name}" for name in ("clip", "dino")]
    pair.append("scorer.dino_preprocess=checkpoint")
    words = ["+subject=cat", "scorer=vlm", *pair]
    chosen = ["scorer.url=http://localhost:8000/v1", "scorer.extra.vlm.model=toy"]
    config = compose_config(*words, *chosen)
    judges = load_judges(config.scorer, subject(), prompts=(), device="cpu")
    assert [measure.name for measure in judges.measures][-5:] == [
        "vlm_likeness", "vlm_prompt", "vlm_yes", "vlm_failed", "vlm_tokens",
    ]  # fmt: skip
    named = json.loads(judges.names["vlm"])
    assert named["version"] == VERSION and named["url"] == "http://localhost:8000/v1"
    assert request_of(config)["scorer"]["url"] == "http://localhost:8000/v1"
    with pytest.raises(ValueError, match=r"no value for scorer\.extra\.vlm\.model: set scorer"):
        compose_config(*words)
    nowhere = compose_config(*words, chosen[1])
    with pytest.raises(ValueError, match=r"no server: set scorer\.url=https://HOST/v1"):
        load_judges(nowhere.scorer, subject(), prompts=(), device="cpu")


def test_a_style_is_asked_about_as_a_style(tmp_path: Path) -> None:
    spec = PromptSpec(text="a cat in the snow in the style of {}", category="style")
    drawn = Sample(stage="embedding", prompt="a cat in the snow in the style of [V]", kind="subject", seed=0,
                   spec=spec, image=plain(9, 0, 0))  # fmt: skip
    with chat_server(good) as server:
        values(judge(server, tmp_path, repeats=1), drawn, owner=subject(noun="style"))
        likeness, others = ([text_of(body) for body in server.bodies if len(pictures_of(body)) == count]
                            for count in (2, 1))  # fmt: skip
    assert len(likeness) == 1 and "medium and technique" in likeness[0] and "{" not in likeness[0]
    assert all('"a cat in the snow"' in text for text in others)
