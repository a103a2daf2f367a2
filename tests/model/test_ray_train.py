"""Two workers of Ray Train train what one process trains."""

from parallel_runs import OPTIONS, run_python, same, words
from shards import clips_of, write_shards

from model.train import main


def test_ray_train_trains_the_same(sample_videos, tmp_path, ray_cluster):
    dataset = write_shards(tmp_path / "dataset", [clips_of(sample_videos["bigbuckbunny"], 3)])
    assert not main(words(dataset, tmp_path / "one", "steps=2"))
    arguments = ["--out", str(tmp_path / "ray_run"), "--workers", "2", *OPTIONS, "steps=2", "parallel=ddp"]
    run_python("jobs/train.py", str(dataset), *arguments, "--address", ray_cluster)
    assert same(tmp_path / "one", tmp_path / "ray_run")
