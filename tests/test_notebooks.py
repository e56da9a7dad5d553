"""The notebooks in examples/ run from top to bottom, and are stored as they run."""

import os
from pathlib import Path

import pytest

import rocforge as rf

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell's outputs are: streams by name, values by their types."""
    return [output.get("name") or sorted(output.get("data", output)) for output in cell.outputs]


@pytest.fixture(scope="module")
def kernel():
    """One kernel for all, since starting one takes longer than most notebooks."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"}  # small products: threads only wait
    manager.start_kernel(cwd=str(ROOT / "examples"), env={**os.environ, **variables})
    yield manager
    manager.shutdown_kernel(now=True)


def test_there_are_some():
    """Else the tests below prove nothing."""
    assert {path.stem for path in NOTEBOOKS} >= {"tour", "logit_lens", "patching", "quantizations", "kernel"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(kernel, path):
    """Without an error, in a fresh namespace, and each cell gives the kinds of output that are stored."""
    stored, notebook = read(path), read(path)
    if "import cupy" in str(stored) and rf.device_info().device == "cpu":
        pytest.skip("there is no GPU to run it on; tests/device runs it on the software device")
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = nbclient.NotebookClient(notebook, km=kernel, timeout=120, coalesce_streams=True)
    client.execute(cleanup_kc=False)
    for before, after in zip(code_cells(stored), code_cells(notebook)[1:], strict=True):
        assert kinds(after) == kinds(before), before.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_as_it_ran(path):
    """Each cell once and in order, with its outputs, in a small file without what a machine adds."""
    notebook = read(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells) and path.stat().st_size < 200_000
    assert all(not cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
