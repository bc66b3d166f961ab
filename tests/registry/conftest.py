import pytest

from caravan.registry import Registry


@pytest.fixture(params=["sqlite", "postgres"])
def registry_url(request, tmp_path):
    """A new registry on each of the two databases."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
def registry(registry_url):
    with Registry(registry_url) as registry:
        yield registry


@pytest.fixture
def new_run(registry):
    def create(name="pocket", **options):
        options = {"seed": 17, "recipe_digest": "d" * 64, "owner": "ann"} | options
        return registry.create_run({"name": name}, name=name, **options)

    return create
