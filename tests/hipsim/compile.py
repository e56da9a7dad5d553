"""Compiles HIP source to a shared object of the host: what the simulated hiprtc runs.

The source is preprocessed with the prelude in front, which leaves markers where HIP's keywords stood; the markers are
rewritten, a table of the kernels is added, and the result is compiled. Results are cached twice: by source, options and
the state of every file that was included, and by preprocessed text.

    compile.py SOURCE OUTPUT [--expression=NAME ...] -- [hiprtc options]
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PASSED_ON = re.compile(r"-([DUI].+|std=.+|include|isystem|O[0-3]|W.*|w)$")
LINKAGE_AND_NAME = re.compile(r"\b(__attribute__|__hipsim_bounds__|alignas|decltype|([A-Za-z_]\w*))\s*\(")


def compiler_options(hiprtc_options: list[str]) -> list[str]:
    """Keeps the options that mean something to the host's compiler; the rest is about the device."""
    options, rest = [], iter(hiprtc_options)
    for option in rest:
        if option.startswith("-I") and option != "-I":
            option = f"-I{os.path.abspath(option[2:])}"  # the compiler will run in another folder
        if option in ("-I", "-D", "-U", "-include", "-isystem"):
            options += [option, next(rest)]
        elif PASSED_ON.match(option):
            options.append(option)
    if not any(option.startswith("-std=") for option in options):
        options.append("-std=c++17")
    return options


def closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`; strings and characters are skipped."""
    opening = text[start]
    close = {"(": ")", "{": "}"}[opening]
    depth = 0
    for match in re.compile(rf'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])+\'|[{opening}{close}]').finditer(text, start):
        depth += {opening: 1, close: -1}.get(match.group(), 0)
        if depth == 0:
            return match.end()
    raise SystemExit(f"hipsim: unbalanced {opening!r} in: {text[start : start + 80]!r}")


def kernel_head(text: str, start: int) -> tuple[str, str, int]:
    """The name, the launch bounds (or "") and the place after the parameters of the kernel declared at `start`."""
    bounds = ""
    while True:
        match = LINKAGE_AND_NAME.search(text, start)
        if not match:
            raise SystemExit(f"hipsim: no kernel after __global__: {text[start : start + 80]!r}")
        end = closing(text, match.end() - 1)
        if match.group(2):
            return match.group(2), bounds, end
        if match.group(1) == "__hipsim_bounds__":
            bounds = text[match.end() : end - 1].split(",")[0]
        start = end


def is_template(text: str, position: int) -> bool:
    """Whether the declaration that holds `position` starts with `template`."""
    before = max(text.rfind(";", 0, position), text.rfind("}", 0, position), text.rfind("{", 0, position))
    return re.search(r"\btemplate\s*<", text[before + 1 : position]) is not None


def add_entries(text: str, expressions: list[str]) -> str:
    """Puts a table entry behind every plain kernel, one for every name expression, and the table at the end."""
    inserts, count = [], 0
    for marker in re.finditer(r"\b__hipsim_global__\b", text):
        if is_template(text, marker.start()):
            continue
        name, bounds, end = kernel_head(text, marker.end())
        body = re.compile(r"\s*(\{|;)").match(text, end)
        if not body or body.group(1) == ";":
            continue
        end = closing(text, body.end() - 1)
        inserts.append((end, entry(count, name, name, bounds or "1024")))
        count += 1
    for position, insert in reversed(inserts):
        text = text[:position] + insert + text[position:]
    for expression in expressions:
        text += entry(count, expression, expression.lstrip("& "), "1024")
        count += 1
    declared = "".join(f"extern hipsim_entry hipsim_entry_{i};" for i in range(count))
    table = "".join(f"&hipsim_entry_{i}," for i in range(count))
    return f'{text}\nextern "C" {{ {declared} hipsim_entry* hipsim_entries[] = {{ {table} nullptr }}; }}\n'


def entry(number: int, name: str, expression: str, bounds: str) -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    made = f'::hipsim::make_entry("{quoted}", &{expression}, {bounds})'
    return f' extern "C" {{ extern hipsim_entry hipsim_entry_{number}; hipsim_entry hipsim_entry_{number} = {made}; }}'


def rewrite(text: str, expressions: list[str]) -> str:
    """Turns preprocessed HIP into C++: kernels get their table, dynamic LDS the runtime's buffer, markers go."""
    text = add_entries(text, expressions)
    dynamic = re.compile(r"\bextern\s+((?:__attribute__\s*\(\(.*?\)\)\s*)?)__hipsim_shared__([^;]*?);", re.S)
    text = dynamic.sub(r'extern \1\2 __asm__("hipsim_dynamic_lds");', text)
    while match := re.search(r"__hipsim_bounds__\s*\(", text):
        text = text[: match.start()] + text[closing(text, match.end() - 1) :]
    return text.replace("__hipsim_shared__", "static __attribute__((used))").replace("__hipsim_global__", "")


def cpu_options() -> list[str]:
    """Half precision needs F16C to be quick; every x86-64 server of the last ten years has it."""
    flags = Path("/proc/cpuinfo").read_text().split("\n\n")[0].split()
    return ["-march=x86-64-v3"] if {"avx2", "fma", "f16c", "bmi2"} <= set(flags) else []


def dialect(compiler: str) -> list[str]:
    """Rounds _Float16 after every operation, as the device does, and makes modules that can be unloaded."""
    if "clang" in Path(compiler).name:
        return ["-Xclang", "-ffloat16-excess-precision=none", "-Wno-unknown-attributes", "-Wno-unused-value"]
    return ["-fexcess-precision=16", "-fno-gnu-unique", "-Wno-attributes"]


def run(command: list[str], text: str | None = None) -> str:
    import subprocess  # late, as is all that a cache hit does not need

    done = subprocess.run(command, input=text, capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise SystemExit(1)
    return done.stdout


def state_of(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_mtime_ns, status.st_size]


def included_files(text: str, source: str) -> dict[str, list[int]]:
    """The files that line markers name, and the state of each."""
    names = set(re.findall(r'^# \d+ "([^"<>]+)"', text, re.M)) - {source}
    return {name: state_of(name) for name in sorted(names) if os.path.isfile(name)}


def write(path: Path, content: bytes) -> None:
    """Writes in one step, since other processes may want the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(content)
    fresh.rename(path)


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def cached(manifest: Path) -> bytes | None:
    """The library that `manifest` names, if no file it was made from has changed."""
    try:
        record = json.loads(manifest.read_text())
        if all(state_of(name) == state for name, state in record["included"].items()):
            return manifest.with_name(record["library"]).read_bytes()
    except FileNotFoundError:
        pass  # not compiled yet, or an included file is gone
    return None


def compile_source(compiler: str, options: list[str], source: str, expressions: list[str], manifest: Path) -> bytes:
    """Preprocesses, rewrites and compiles, and leaves the result in the cache."""
    preprocessed = run([compiler, *options, "-E", "-include", "hipsim/prelude.h", "-x", "c++", source])
    text = rewrite(preprocessed, expressions)
    library = manifest.with_name(f"{digest(text, options, compiler)}.so")
    if not library.exists():
        fresh = library.with_suffix(f".{os.getpid()}")
        language = ["-x", "c++-cpp-output"] if "clang" in compiler else ["-fpreprocessed", "-x", "c++"]
        runtime = os.environ["HIPSIM_RUNTIME"]
        run([compiler, *options, *language, "-shared", "-", "-x", "none", "-o", str(fresh), runtime], text)
        fresh.rename(library)
    record = {"library": library.name, "included": included_files(preprocessed, source)}
    write(manifest, json.dumps(record).encode())
    return library.read_bytes()


def main() -> None:
    split = sys.argv.index("--")
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    expressions = [word.removeprefix("--expression=") for word in sys.argv[3:split]]
    compiler, cache = os.environ["HIPSIM_CXX"], Path(os.environ["HIPSIM_KERNELS"])
    asan = os.environ.get("HIPSIM_ASAN", "") not in ("", "0")
    options = [*compiler_options(sys.argv[split + 1 :]), *dialect(compiler), *cpu_options(), f"-I{HERE / 'include'}"]
    options += ["-w", "-fPIC", "-g1", "-ffp-contract=fast", "-fno-strict-aliasing", "-fno-exceptions"]
    options += ["-O1", "-fsanitize=address", "-fsanitize-recover=address"] if asan else ["-O2"]

    os.chdir(source.parent)  # so that neither line markers nor the cache's keys hold the temporary folder
    cache.mkdir(parents=True, exist_ok=True)
    options = [option.replace(f"{source.parent}/", "") for option in options]
    manifest = cache / f"{digest(source.read_text(), source.name, options, expressions, compiler)}.json"
    output.write_bytes(cached(manifest) or compile_source(compiler, options, source.name, expressions, manifest))


if __name__ == "__main__":
    main()
