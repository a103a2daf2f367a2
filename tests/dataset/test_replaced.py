from pipeline.config.recipe import load_recipe
from pipeline.dataset.unchanged import replaced
from pipeline.sources.discover import discover
from pipeline.storage.store import Store


def test_a_build_names_the_sources_and_the_recipe_that_it_replaces(golden_dataset, sample_videos, tmp_path):
    dataset, both = Store(str(golden_dataset)), [str(sample_videos[name]) for name in ("bikes", "bigbuckbunny")]
    recipe = load_recipe("embedded")
    assert replaced(discover(both, recipe.sources), dataset, recipe) == []
    assert replaced(discover(both[:1], recipe.sources), dataset, load_recipe("small")) == [
        "1 file of the dataset, no longer among the sources: the clips go",
        "recipe small; the dataset was built with embedded",
    ]
    assert replaced([], Store(str(tmp_path)), recipe) == []
