"""Write `summary.json`: what a finished run achieved, from the files in its folder alone.

Nothing here loads a model, so a summary can be written again at any time, by any program, on any machine.

The run folder, as this module and `report.py` read it (everything optional but `run.json`)::

    .hydra/config.yaml                  the composed configuration
    run.json                            facts that only the running program knows (schema below)
    references/*.png                    the training photos, in order
    concept/concept.json                what was learned, with provenance
    images/{stage}/*.png                samples; prompt, seed and the rest in the PNG metadata (`png.py`)
    grids/*.png                         overview pictures
    scores.jsonl                        one line per image and scorer (`scoring/subject_scorer.py`)
    logs/{stage}/**/metrics.csv         Lightning's CSV log; column "train/loss" against "step"
    summary.json, report.html           written by `write_summary` and `report.write_report`

`{stage}` is one of "base", "embedding", "transformer".

`run.json` (format_version 1)::

    {"format_version": 1,
     "subject": "cat",                  what `+subject=` called it
     "noun": "cat",                     its class
     "live": true,                      an animal
     "rendered": true,                  rendered by the built-in world (false: photographs)
     "description": "a red cat ..."|null,   the best text description of the subject
     "model": "nano",                   the model group's choice
     "method": "paper", "stage": "both",    the other choices worth a headline
     "command": "python -m personalar.run +subject=cat stage=both",
     "started": "2026-11-21T08:00:00+00:00",    ISO 8601, UTC
     "total_seconds": 123.4,            wall time of the whole run, all of its (resumed) parts together
     "peak_memory_bytes": 123456789,    the largest resident set size, or the device's peak when on a GPU
     "device": "cpu, 2 threads",
     "versions": {"personalar": "0.1.0", "torch": "2.13.0", ...},
     "warnings": ["..."],               what a reader must know: "the nano base knows only its rendered world"
     "scorers": {"clip": "...", "dino": "..."},     which checkpoints judged (`SubjectScorer.describe()`)
     "stages": {"base": {"steps": 0, "seconds": 0.0},               seconds: training only, without sampling
                "embedding": {"steps": 300, "seconds": 31.0},
                "transformer": {"steps": 60, "seconds": 20.0}},     only the stages that ran
     "bounds": {"floor": {"dino": 0.5, "clip_i": 0.7, "images": 20} | null,
                "ceiling": {"dino": 0.9, "clip_i": 0.95, "images": 20} | null}}  `SubjectScorer.bounds()`

`summary.json`::

    {"subject", "model", "noun",
     "stages": {stage: {"dino", "clip_i", "clip_t", "fidelity", "context_accuracy", "class_drift", "steps", "seconds",
                        "accessory_accuracy", "images"}},
     "description": {"dino", "clip_i", "clip_t", "fidelity", "context_accuracy", "images"} | null,
     "ceiling": {"dino", "clip_i"} | null, "floor": {"dino", "clip_i"} | null,
     "total_seconds", "peak_memory_bytes"}

A value that was not measured is null. `fidelity` = (dino - floor) / (ceiling - floor), 0 for another thing of the class and
1 for the thing itself; `class_drift` is the rise, since the base, of the same measure on class prompts without the identifier.
"""
