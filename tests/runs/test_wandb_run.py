"""W&B: an offline run is read back, with config, curves, panel, table, photos and artifact, but no secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest_run import compose_config
from PIL import Image

from personalar.config.compose import composed, conf_dir, read_config
from personalar.core.run_folder import steps_after, steps_before
from personalar.runs.wandb_run import _open, own_tags, run_name, start

SECRET = "0123456789abcdef0123456789abcdef01234567"


def records(path: Path) -> Iterator[object]:
    """Yield the protobuf records of a .wandb file: a LevelDB log, 32 KiB blocks after a 7-byte header."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole(path: Path) -> list:
    """Return the records of a finished run; waits, because W&B's own process writes the last ones."""
    for _ in range(300):
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end after 30 s")


def read_back(folder: Path) -> dict:
    """Return the content of all offline runs below `folder` together."""
    found: dict = {"history": [], "config": {}, "artifacts": [], "summary": {}, "ids": []}
    for path in sorted(folder.rglob("*.wandb")):
        for record in whole(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                found["ids"].append(record.run.run_id)
                found["group"], found["tags"] = record.run.run_group, list(record.run.tags)
                found["config"] |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            elif kind == "history":
                found["history"].append({
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                })  # fmt: skip
            elif kind == "artifact":
                found["artifacts"].append(
                    (record.artifact.type, [e.path for e in record.artifact.manifest.contents])
                )
            elif kind == "summary":
                found["summary"] |= {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.summary.update
                }
    return found


@pytest.fixture(scope="module")
def wandb_run(do_run, tmp_path_factory) -> Path:
    import wandb

    wandb.teardown()  # W&B reads the environment once a process: an earlier test may have made it do so
    run_dir = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRET)
        patch.setenv("WANDB_RUN_GROUP", "my-sweep")
        do_run(run_dir, "logger=wandb", "logger.wandb.mode=offline", "logger.wandb.tags=[first]")
    return run_dir


def test_the_offline_run_holds_everything(wandb_run: Path) -> None:
    found = read_back(wandb_run / "logs")
    assert found["config"]["subject"]["noun"] == "cat"
    assert found["config"]["logger"]["wandb"]["tags"] == ["first"]
    assert found["group"] == "my-sweep" and {"first", "nano", "paper", "cat"} <= set(found["tags"])
    curves = {name for line in found["history"] for name in line}
    assert {"embedding-train/loss", "transformer-train/loss", "transformer-val/dino"} <= curves
    panel = [line["samples_step"] for line in found["history"] if "samples" in line]
    assert panel[0] == 0 and panel == sorted(panel) and panel[-1] == 8 and len(set(panel)) > 3
    assert sum("references" in line for line in found["history"]) == 1
    assert found["summary"]["transformer/dino"] is not None
    kinds = {kind: files for kind, files in found["artifacts"]}
    assert "concept.json" in kinds["concept"]


def test_a_failing_dashboard_costs_nothing_and_writes_below_the_run(
    do_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import wandb

    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").write_text("in the way")  # nothing can be written there
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    named = []
    make = wandb.Artifact.__init__

    def noted(self: object, name: str, *args: object, **settings: object) -> None:
        named.append(name)
        make(self, name, *args, **settings)

    def broken(*_: object) -> None:
        raise RuntimeError("dashboard on fire")

    monkeypatch.setattr(wandb.Artifact, "__init__", noted)
    offline = ("logger=wandb", "logger.wandb.mode=offline", "stage=embedding", "scorer=none")
    do_run(tmp_path / "run", *offline, "subject.name='my dog (1)'")
    said = capsys.readouterr().out
    assert "concept-nano-my_dog_1" in named and "not stored there" not in said, said
    assert (tmp_path / "run/logs/wandb/data").is_dir() and "WANDB_DATA_DIR" not in os.environ
    monkeypatch.setattr("personalar.runs.wandb_run.log_means", broken)
    do_run(tmp_path / "again", *offline)
    assert "W&B: some results were not stored there (dashboard on fire)" in capsys.readouterr().out
    assert "finished" in json.loads((tmp_path / "again" / "run.json").read_text())


def test_the_table_lists_every_picture(wandb_run: Path) -> None:
    (path,) = (wandb_run / "logs" / "wandb").glob("offline-run-*/files/media/table/pictures*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == [
        "step", "stage", "kind", "prompt", "seed", "image", "dino", "clip_i", "clip_t"
    ]  # fmt: skip
    assert len(table["data"]) == len(list((wandb_run / "images").rglob("*.png")))
    steps = {row[1]: row[0] for row in table["data"]}
    assert steps == {"base": 0, "embedding": 4, "transformer": 8}
    assert all(isinstance(row[6], float) for row in table["data"])
    held = dict(read_back(wandb_run / "logs")["artifacts"])["run_table"]  # the pictures travel with the table
    pictures = {path.read_bytes() for path in (wandb_run / "images").rglob("*.png")}
    assert "pictures.table.json" in held
    assert len(pictures) >= sum(name.startswith("media/images/") for name in held) > 5


def test_no_secret_anywhere(wandb_run: Path) -> None:
    files = [path for path in wandb_run.rglob("*") if path.is_file()]
    assert files and not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [name for name in WANDB_YAML if "key" in name or "secret" in name]


def test_an_interrupted_run_keeps_its_id_and_its_references(wandb_run: Path, do_run, tmp_path: Path) -> None:
    copy = shutil.copytree(wandb_run, tmp_path / "run", symlinks=True)
    record = json.loads((copy / "run.json").read_text())
    del record["finished"]
    (copy / "run.json").write_text(json.dumps(record))
    (first,) = {*read_back(copy / "logs")["ids"]}
    shutil.rmtree(copy / "logs")
    do_run(copy, "logger=wandb", "logger.wandb.mode=offline", "logger.wandb.tags=[first]")
    again = read_back(copy / "logs")
    assert {*again["ids"]} == {first}
    assert not any("references" in line for line in again["history"])


def test_without_an_account_it_stays_on_this_machine(do_run, tmp_path: Path, monkeypatch, capsys) -> None:
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    do_run(tmp_path, "logger=wandb", "stage=embedding", "scorer=none")
    assert "no account on this machine" in capsys.readouterr().out
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*"))
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "logs").rglob("metrics.csv"))


def test_the_slider_counts_the_steps_of_all_stages() -> None:
    method = {"stages": {"embedding": {}, "transformer": {}}}
    stages = {"transformer": {"steps": 100}, "base": {"steps": 0}, "embedding": {"steps": 80}}
    record = {"settings": {"method": method}, "stages": stages}
    assert [steps_before(record, s) for s in ("base", "embedding", "transformer")] == [0, 0, 80]
    assert [steps_after(record, s) for s in ("base", "embedding", "transformer")] == [0, 80, 180]


WANDB_YAML = yaml.safe_load((conf_dir() / "logger" / "wandb.yaml").read_text())["wandb"]
USER = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
PROJECT = {"id": "p", "name": "personalar", "entity": {"id": "e", "name": "me"}}
BUCKET = {"id": "b", "name": "b", "displayName": "b", "description": "", "config": "{}", "sweepName": None,
          "historyLineCount": 0, "project": PROJECT}  # fmt: skip
ANSWERS = {"Viewer": {"viewer": USER}, "UpsertBucket": {"upsertBucket": {"inserted": True, "bucket": BUCKET}}}


class LeavingServer(ThreadingHTTPServer):
    """The part of a W&B server that a run needs to start; then the network fails."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            data = ANSWERS.get(asked.get("operationName"), {})
            if "upsertBucket" in data:
                BUCKET["name"] = asked["variables"]["name"]
            answer = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            if "upsertBucket" in data:
                threading.Thread(target=self.server.leave).start()

        def log_message(self, *words: object) -> None:
            pass

    def leave(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.slow
def test_a_network_lost_in_mid_run_costs_nothing(do_run, tmp_path: Path, monkeypatch, capsys) -> None:
    import wandb

    server = LeavingServer(("127.0.0.1", 0), LeavingServer.Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    wandb.teardown()
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run_dir = tmp_path / "run"
    retries = [f"x_{part}_retry" for part in ("graphql", "file_stream", "file_transfer")]
    settings = {f"{name}_max": 1 for name in retries} | {f"{name}_wait_max_seconds": 1 for name in retries}
    words = [f"+logger.wandb.settings.{name}={value}" for name, value in settings.items()]
    words += ["logger=wandb", "logger.wandb.settings.finish_timeout=2", "stage=embedding"]
    do_run(run_dir, *words)
    said = capsys.readouterr().out
    kept = re.search(r"W&B: some results were not stored there .*has kept: wandb sync (\S+)", said)
    assert kept is not None and (run_dir / "report.html").is_file()
    (path,) = Path(kept.group(1)).glob("*.wandb")
    kinds = [record.WhichOneof("record_type") for record in records(path)]
    assert kinds.count("history") >= 4 and "summary" in kinds  # all of it lies there, to be uploaded


def test_tensorboard_holds_curves_and_grids(do_run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    do_run(
        tmp_path,
        "logger=tensorboard",
        "stage=embedding",
        "samples.grid_every_steps=2",
        "samples.time_share=1",
    )
    events = EventAccumulator(str(tmp_path / "logs" / "embedding" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    grids = events.Images("samples")
    assert [event.step for event in grids] == [2, 4]
    with Image.open(tmp_path / "grids" / "embedding_00004.png") as picture:
        assert (grids[-1].width, grids[-1].height) == picture.size
    (hparams,) = [  # the two other records of this plug-in describe the session
        found
        for tag, found in events.summary_metadata.items()
        if tag.endswith("session_start_info") and found.plugin_data.plugin_name == "hparams"
    ]
    assert b"model/recipe/stages/embedding/lr" in hparams.plugin_data.content
    for name in ("part_0", "tensorboard"):
        kept = yaml.safe_load((tmp_path / "logs" / "embedding" / name / "hparams.yaml").read_text())
        assert kept["stage"] == "embedding" and kept["seed"] == 0 and kept["subject"]["noun"] == "cat"


def test_a_sweep_agents_run_has_the_agents_id(
    session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SimpleNamespace(dir=str(tmp_path / "run" / "files"), define_metric=lambda *_, **__: None)
    monkeypatch.setattr("personalar.runs.wandb_run._open", lambda *_, **__: opened)
    monkeypatch.setenv("WANDB_RUN_ID", "agents1")
    start(session, {"tags": []})
    assert session.folder.record["wandb_id"] == "agents1"
    monkeypatch.setenv("WANDB_RUN_ID", "another")  # the folder's own run goes on
    start(session, {"tags": []})
    assert session.folder.record["wandb_id"] == "agents1"


def test_the_words_of_a_sweep_agent_are_settings() -> None:
    """The arguments that W&B makes from the line in the guide."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    guide = (Path(__file__).parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
    line = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)[0])["command"]
    assert line[:3] == ["python", "-m", "personalar.run"] and line[-1] == "${args_no_hyphens}"
    values = {"decoder.cfg_scale": {"value": 3.5}, "seed": {"value": 2}, "stage": {"value": "embedding"}}
    words = create_sweep_command_args({"args": values})["args_no_hyphens"]
    config = read_config(composed("run", [*line[3:-1], *words]))
    assert (config.decoder.cfg_scale, config.seed, config.stage.name) == (3.5, 2, "embedding")


def test_runs_of_a_sweep_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_NAME", "WANDB_RUN_GROUP"):
        monkeypatch.delenv(variable, raising=False)
    assert run_name({"name": "nano-cat"}, Path("sweeps/seed=0-1a2b")) == "nano-cat"
    monkeypatch.setenv("WANDB_RUN_GROUP", "sweep")
    assert run_name({"name": "nano-cat"}, Path("sweeps/seed=0-1a2b")) == "nano-cat seed=0-1a2b"
    monkeypatch.setenv("WANDB_NAME", "mine")  # the user's own stays
    assert run_name({"name": "mine"}, Path("sweeps/seed=0-1a2b")) == "mine"


def test_tags_of_the_environment_count_where_no_setting_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_TAGS", "one, two")
    assert own_tags({"tags": []}) == ["one", "two"] and own_tags({"tags": ["mine"]}) == ["mine"]


def test_the_environments_folder_and_console_count(
    session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    asked: dict[str, object] = {}
    monkeypatch.setattr(wandb, "init", lambda **words: asked.update(words))
    session.folder.update(wandb_id="a")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("WANDB_CONSOLE", raising=False)
    _open(session, compose_config("+subject=cat", "logger=wandb").logger["wandb"], mode="offline")
    assert asked["dir"] == str(tmp_path / "elsewhere")
    assert asked["settings"].console == "off" and asked["settings"].silent is True
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    monkeypatch.delenv("WANDB_DIR")
    words = ("+subject=cat", "logger=wandb", "logger.wandb.save_dir='{folder}/mine'")
    _open(session, compose_config(*words).logger["wandb"], mode="offline")
    assert asked["dir"] == session.folder.path / "mine" and asked["settings"].console == "wrap"


def test_a_failing_end_does_not_replace_ctrl_c(session, monkeypatch: pytest.MonkeyPatch) -> None:
    from personalar.runs import wandb_run

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("dashboard on fire")

    monkeypatch.setattr(wandb_run, "wandb_settings", lambda logger: {})
    run = SimpleNamespace(dir="run/files", finish=broken)
    monkeypatch.setattr(wandb_run, "start", lambda session, settings: run)
    monkeypatch.setattr(wandb_run, "log_references", broken)
    with pytest.raises(KeyboardInterrupt), wandb_run.dashboard(session):
        raise KeyboardInterrupt
