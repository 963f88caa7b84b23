"""Options of an import, as they are typed on a command line and as the adapters take them."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from stf2m_core.data.manifest import manifest_folder, options_of, read_manifest
from stf2m_core.data.options import check_options, legal_options, typed_options
from stf2m_core.errors import ManifestError

ADAPTERS = sorted(Path(importlib.import_module("stf2m_core.data.adapters").__file__).parent.glob("[a-z]*.py"))


def read(source, manifest, *, work: Path, table: str = "clips.csv", labels: Sequence[str] | None = None,
         n_workers: int | None = None, rate_hz: float = 25.0, media: bool = False):  # fmt: skip
    """Stands in for an adapter's."""


ADAPTER = SimpleNamespace(read=read)


def test_words_become_values_of_the_kinds_that_the_adapter_takes():
    words = ["table = my clips.csv", "labels=joy, anger ,", "n_workers=2", "rate_hz=12.5", "media=True"]
    assert typed_options(ADAPTER, words, "mine") == {
        "table": "my clips.csv", "labels": ("joy", "anger"), "n_workers": 2, "rate_hz": 12.5, "media": True,
    }  # fmt: skip
    assert typed_options(ADAPTER, ["labels=none", "n_workers=None", "media=false", "table=a=b"], "mine") == {
        "labels": None, "n_workers": None, "media": False, "table": "a=b",
    }  # fmt: skip
    assert typed_options(ADAPTER, ["labels="], "mine") == {"labels": ()}


BAD = {
    "option 'label' is unknown; expected table, labels, n_workers, rate_hz, media .*Did you mean 'labels'": ["label=a"],
    "option 'work' is unknown": ["work=/tmp"],
    "option 'media' has no value; expected name=value": ["media"],
    "option 'media' is there twice": ["media=true", "media=false"],
    "option n_workers is 'two'; expected a whole number": ["n_workers=two"],
    "option n_workers is '2.5'; expected a whole number": ["n_workers=2.5"],
    "option rate_hz is 'none'; expected a number": ["rate_hz=none"],
    "option media is 'yes'; expected true or false": ["media=yes"],
}


@pytest.mark.parametrize("message", BAD)
def test_an_option_that_cannot_be_is_refused_by_its_name(message):
    with pytest.raises(ManifestError, match=message):
        typed_options(ADAPTER, BAD[message], "mine")


def test_a_data_set_without_options_says_so():
    with pytest.raises(ManifestError, match="option 'a' is unknown; expected no options .*import of mine"):
        check_options(SimpleNamespace(read=lambda source, manifest: None), ["a"], "mine")


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_every_option_of_every_adapter_can_be_typed(path):
    adapter = importlib.import_module(f"stf2m_core.data.adapters.{path.stem}")
    for option, kind in legal_options(adapter).items():
        (value,) = typed_options(adapter, [f"{option}={'true' if kind is bool else 1}"], path.stem).values()
        assert value in (1, 1.0, "1", ("1",), True)


def test_settings_of_the_synthetic_set_are_options_of_its_import():
    assert options_of("synemo", ["pure=true", "n_domains=3", "ambiguity=0.5", "preset=smoke"]) == {
        "pure": True, "n_domains": 3, "ambiguity": 0.5, "preset": "smoke",
    }  # fmt: skip
    with pytest.raises(ManifestError, match="option 'sed' is unknown.*Did you mean 'seed'"):
        options_of("synemo", ["sed=3"])
    with pytest.raises(ManifestError, match="data set 'synema' is unknown"):
        options_of("synema", [])


def test_the_manifests_name_adapters_whose_options_are_known():
    names = {read_manifest(path).adapter for path in manifest_folder().glob("*.toml")}
    assert names <= {path.stem for path in ADAPTERS}
