"""Builds a dataset as a Ray job: the same as `clipmill build`, on the cluster that runs the job.

    ray job submit --working-dir . -- python jobs/curate.py SOURCES... --out s3://bucket/dataset [key=value ...]

Stop it and submit it again at any time: it goes on where it stopped.
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:], "--address", "auto"]))
