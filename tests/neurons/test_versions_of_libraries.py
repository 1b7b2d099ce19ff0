"""A library that is too old is refused on import, with what to install."""

from importlib import metadata

import pytest

from fptt_plugin.neurons import check_version


@pytest.mark.parametrize("found", ["0.9.1", "0.9.1.post1", "0.9.4", "0.10.0", "1.0", "1.0.0rc1", "1.0.0+local2", "2"])
def test_new_enough(monkeypatch, found):
    monkeypatch.setattr(metadata, "version", lambda name: found)
    check_version("snntorch", "0.9.1")


@pytest.mark.parametrize("found", ["0.9.0", "0.9", "0.8.1", "0.9.0.post2", "0.9rc1"])
def test_too_old(monkeypatch, found):
    monkeypatch.setattr(metadata, "version", lambda name: found)
    with pytest.raises(
        ImportError, match=r"needs snntorch 0\.9\.1 or later, found .*: pip install 'snntorch>=0\.9\.1'"
    ):
        check_version("snntorch", "0.9.1")


def test_spikingjellys_numbers(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.0.0.12")
    with pytest.raises(ImportError, match=r"found 0\.0\.0\.0\.12"):
        check_version("spikingjelly", "0.0.0.0.14")
    monkeypatch.setattr(metadata, "version", lambda name: "2.0.0")
    check_version("spikingjelly", "0.0.0.0.14")


def test_a_copy_without_metadata_is_taken_as_it_is():
    check_version("no_such_distribution", "1.0")
