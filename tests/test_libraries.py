"""What is said where CuPy for ROCm lacks libraries: which, and the packages that have them."""

import pytest

from rocforge.device import libraries


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that sets which libraries load, and which of HIP's runtimes lie in ROCm's folders."""

    def set_up(loads, lying=()):
        folder = tmp_path / "rocm" / "lib"
        folder.mkdir(parents=True)
        for name in lying:
            (folder / name).touch()
        monkeypatch.setattr(libraries, "_loads", lambda name: name in loads)
        monkeypatch.setattr(libraries, "FOLDERS", (str(tmp_path / "rocm*" / "lib"),))
        return str(folder)

    return set_up


def test_nothing_is_missing(machine):
    machine(libraries.ROCM)
    assert libraries.missing_libraries() is None


def test_no_rocm(machine):
    """Every library and every package is named, in one line."""
    machine(())
    said = libraries.missing_libraries()
    assert said.startswith("ROCm 7 is not installed") and "\n" not in said
    assert all(name in said for name in [*libraries.ROCM, *libraries.ROCM.values()])


def test_some_are_missing(machine):
    """Those alone are named, with their packages."""
    machine(set(libraries.ROCM) - {"libhipfft.so.0", "libroctx64.so.4", "libroctracer64.so.4"})
    said = libraries.missing_libraries()
    assert "libhipfft.so.0, libroctx64.so.4, libroctracer64.so.4" in said and said.endswith("install hipfft, roctracer")
    assert "libamdhip64" not in said


def test_another_major_version(machine):
    """ROCm 6 is named, with where it lies, and what is to be installed."""
    folder = machine((), ["libamdhip64.so.6", "libamdhip64.so.6.4.43484", "libamdhip64.so"])
    said = libraries.missing_libraries()
    assert f"found ROCm 6 ({folder}/libamdhip64.so.6)" in said and "install ROCm 7 (hip-runtime-amd" in said


def test_where_the_loader_does_not_look(machine):
    """ROCm 7 that lies there, and that the loader does not find, is a matter of its path."""
    folder = machine((), ["libamdhip64.so.7"])
    assert f"set LD_LIBRARY_PATH={folder}" in libraries.missing_libraries()
