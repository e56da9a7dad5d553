"""What CuPy asks of hipcc: where the headers are, --preprocess for its cache's key, and --genco to compile."""

import os
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
        sys.stderr.write(f"#include <...> search starts here:\n {INCLUDE}\nEnd of search list.\n")


if __name__ == "__main__":
    main()
