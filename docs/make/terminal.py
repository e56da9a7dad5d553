"""Makes docs/terminal.svg: a real run of the README's command, as a terminal shows it.

python docs/make/terminal.py
"""

import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[2]
PROMPT = "class Stack:"
OPTIONS = ["--temperature", "0", "--max-tokens", "110"]

command = [sys.executable, ROOT / "examples" / "generate.py", PROMPT, *OPTIONS]
done = subprocess.run(command, capture_output=True, text=True, check=True)
load, _, closing = done.stderr.replace("\r", "\n").strip().rpartition("\n")
console = Console(record=True, width=100, file=io.StringIO())
console.print(Text("$ ", "bold green") + Text(f'python examples/generate.py "{PROMPT}" {" ".join(OPTIONS)}', "bold"))
console.print(Text(load.splitlines()[-1].strip(), "dim"))
console.print(Text(done.stdout.rstrip()))
console.print(Text(closing.split(" (no GPU")[0], "cyan"))
console.save_svg(str(ROOT / "docs" / "terminal.svg"), title="rocforge")
