"""What CuPy asks of hipcc: where the headers are, --preprocess for its cache's key, and --genco to compile."""

import os
import subprocess
import sys
from pathlib import Path

import compile as hiprtc

INCLUDE = Path(__file__).resolve().parent / "include"


def main() -> None:
    words = sys.argv[1:]
    if "--genco" in words:
        place = words.index("-o")
        output = os.path.abspath(words[place + 1])
        *options, source = [word for word in words[:place] + words[place + 2 :] if word != "--genco"]
        sys.argv[1:] = [os.path.abspath(source), output, "--", *options]
        hiprtc.main()
    elif "--preprocess" in words:
        print(hiprtc.digest(*sorted((path.name, path.read_text()) for path in INCLUDE.rglob("*.h"))))
    else:
        folders = [str(INCLUDE), *language_headers()]
        sys.stderr.write("\n ".join(["#include <...> search starts here:", *folders]) + "\nEnd of search list.\n")


def language_headers() -> list[str]:
    """What AMD's compiler has beside it where ROCm is installed: stddef.h and the like. The host's are as good."""
    if not os.environ.get("HIPSIM_HIPRTC"):
        return []
    command = ["g++", "-print-file-name=include"]
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()]


if __name__ == "__main__":
    main()
