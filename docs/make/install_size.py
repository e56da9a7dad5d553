"""What the README's first command takes on disk: a fresh environment, and the bytes of each package in it.

python docs/make/install_size.py
"""

import json
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SIZES = """
import importlib.metadata, json, os
sizes = {}
for package in importlib.metadata.distributions():
    paths = {os.path.realpath(package.locate_file(file)) for file in package.files or []}
    sizes[package.name] = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
print(json.dumps(sizes))
"""


def sizes(extra: str = "rocm") -> dict[str, int]:
    """Bytes of each package in a fresh environment with rocforge, compiled modules included, largest first."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "-e", f"{ROOT}[{extra}]"], check=True)
        found = json.loads(subprocess.run([python, "-c", SIZES], check=True, capture_output=True, text=True).stdout)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main() -> None:
    found = sizes()
    cupy = sum(size for name, size in found.items() if name.startswith("cupy"))
    for name, size in found.items():
        if size > 1e6:
            print(f"{name:24} {size / 1e6:8.1f} MB")
    print(f"{'beside CuPy':24} {(sum(found.values()) - cupy) / 1e6:8.1f} MB")


if __name__ == "__main__":
    main()
