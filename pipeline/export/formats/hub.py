"""The layout of the Hugging Face Hub: the dataset's tars and clips table, linked, with a dataset card, its configs and
Croissant.

The config `default` has the videos, `images` the still images. The table of all clips with their scores is included
without a config, because the Hub reads all files of a config with one loader. Nothing is uploaded: `hf upload` does
that.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import yaml

from pipeline.dataset.finish import card
from pipeline.export.croissant import croissant
from pipeline.export.formats.hugging_face import SPLITS
from pipeline.export.job import Job
from pipeline.export.layout import link_file, write_json, write_text
from pipeline.tables.published import table_files

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write(job: Job) -> list[str]:
    dataset = job.dataset
    tables = table_files(dataset.store, "tables/clips", dataset.info)
    for name in [*(shard["path"] for shard in dataset.shards), *tables]:
        link_file(dataset, name, job.out / name)
    write_text(job.out / "README.md", front_matter(job) + card(dataset.info).split("---\n", 2)[2])
    write_json(job.out / "croissant.json", croissant(dataset, job.out, tables))
    return [
        f"hf upload USER/NAME {job.out} . --repo-type dataset",
        "KEY.json and tables/clips name the files that clips were cut from: look whether they may be read by all",
    ]


def front_matter(job: Job) -> str:
    """Return the card's YAML: task, size, tags and configs."""
    paths: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for shard in job.dataset.shards:
        path = Path(shard["path"])
        split = path.name.partition("-")[0]
        config = "images" if path.parent.name.endswith("-still") else "default"
        paths[config][SPLITS[split]].add(f"{path.parent.as_posix()}/{split}-*.tar")
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": sorted(globs)} for split, globs in sorted(splits.items())],
        }
        for config, splits in sorted(paths.items())
    ]
    count = job.videos + job.stills
    tree = {
        "task_categories": ["text-to-video"],
        "tags": ["webdataset", "video", "clipmill"],
        "size_categories": [next((name for most, name in SIZES if count < most), "n>1M")],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(tree, sort_keys=False)}---\n"
