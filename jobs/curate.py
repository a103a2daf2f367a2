"""Build a dataset as a Ray job: the same as `clipmill build`, on the cluster that runs the job.

    export RAY_AUTH_MODE=token
    ray job submit --working-dir . -- python jobs/curate.py SOURCES... --out s3://bucket/dataset [key=value ...]

Stop it and submit it again at any time: it continues where it stopped. The first line is for heads that were started on
a machine with ~/.ray/auth_token, as after a build: they require that token from nodes and submitters. Progress
is on the cluster's Prometheus endpoints, as ray_clipmill_*, and in DATASET/stats/PASS.json.
"""

from __future__ import annotations

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:], "--address", "auto"]))
