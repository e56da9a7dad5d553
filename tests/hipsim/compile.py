"""Compiles HIP source to a shared object of the host: what the simulated hiprtc runs.

The source is preprocessed with the prelude in front, which leaves markers where HIP's keywords stood; the markers are
rewritten, a table of the kernels is added, and the result is compiled: with little optimization and no loop unrolled,
since tests run a kernel for milliseconds, and its unrolled code can take the compiler many seconds. The prelude is
precompiled; what was preprocessed refers to it. Results are cached twice: by source, options and the state of every
included file, and by preprocessed text.

    compile.py SOURCE OUTPUT [--expression=NAME ...] -- [hiprtc options]
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = re.compile(r"gfx(?:9|1[0-2])[0-9][0-9a-f](?::(?:sramecc|xnack)[+-])*")
TARGET_OPTIONS = ("--offload-arch=", "--gpu-architecture=")
TARGET_PLACE = b"hipsim-target:".ljust(63, b" ")
"""Every library has this constant, which the target's name takes the place of: most are the same for all targets."""
OWN_TEXT = Path(__file__).read_text()
PASSED_ON = re.compile(r"-[DUI].+$")
GENERAL = [  # _Float16 is rounded after every operation, as on the device; modules can be unloaded
    *["-w", "-fPIC", "-g1", "-ffp-contract=fast", "-fno-strict-aliasing", "-fno-exceptions"],
    *["-fexcess-precision=16", "-fno-gnu-unique", f"-I{HERE / 'include'}"],
]
OPTIMIZATION = ["-O1"]
UNDER_SANITIZER = ["-O1", "-fsanitize=address", "-fsanitize-recover=address"]
UNROLL = re.compile(r"^#pragma GCC unroll.*$", re.M)
LINKAGE_AND_NAME = re.compile(r"\b(__attribute__|__hipsim_bounds__|alignas|decltype|([A-Za-z_]\w*))\s*\(")


def compiler_options(hiprtc_options: list[str]) -> tuple[str, list[str]]:
    """The -std option, and of the others those that mean something to the host's compiler; the rest is for a device."""
    standard, options, rest = "-std=c++17", [], iter(hiprtc_options)
    for option in rest:
        if option.startswith("-I") and option != "-I":
            option = f"-I{os.path.abspath(option[2:])}"  # the compiler will run in another folder
        if option in ("-I", "-D", "-U", "-include", "-isystem"):
            options += [option, next(rest)]
        elif option.startswith("-std="):
            standard = option
        elif PASSED_ON.match(option):
            options.append(option)
    return standard, options


def target_of(hiprtc_options: list[str]) -> str:
    """What to compile for: an architecture, with features perhaps."""
    named = (word.partition("=")[2] for word in hiprtc_options if word.startswith(TARGET_OPTIONS))
    target = next(named, os.environ["HIPSIM_ARCH"].partition(",")[0])
    if not TARGET.fullmatch(target):
        raise SystemExit(f"error: invalid target ID '{target}'")
    return target


def family_of(target: str) -> str:
    """GFX9, GFX10, ...: the last two digits of an architecture are a minor number and a stepping."""
    return target.partition(":")[0][:-2].upper()


def target_macros(target: str) -> list[str]:
    """What AMD's compiler defines for a target."""
    return [f"-D__{target.partition(':')[0]}__=1", f"-D__{family_of(target)}__=1"]


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
    """Puts a table entry behind every plain kernel, one for every name expression; the table and the target end it."""
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
    target = f'extern const char hipsim_target[]; const char hipsim_target[] = "{TARGET_PLACE.decode()}";'
    return f'{text}\nextern "C" {{ {declared} hipsim_entry* hipsim_entries[] = {{ {table} nullptr }}; {target} }}\n'


def entry(number: int, name: str, expression: str, bounds: str) -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    made = f'::hipsim::make_entry("{quoted}", &{expression}, {bounds})'
    return f' extern "C" {{ extern hipsim_entry hipsim_entry_{number}; hipsim_entry hipsim_entry_{number} = {made}; }}'


def rewrite(text: str, expressions: list[str], target: str) -> str:
    """Turns preprocessed HIP into C++: kernels get their table, dynamic LDS the runtime's buffer, markers go.

    The marker of another family's instruction stays, and is an error.
    """
    text = add_entries(text, expressions).replace(f"__hipsim_on_{family_of(target)}__", "0")
    dynamic = re.compile(r"\bextern\s+((?:__attribute__\s*\(\(.*?\)\)\s*)?)__hipsim_shared__([^;]*?);", re.S)
    text = dynamic.sub(r'extern \1\2 __asm__("hipsim_dynamic_lds");', text)
    while match := re.search(r"__hipsim_bounds__\s*\(", text):
        text = text[: match.start()] + text[closing(text, match.end() - 1) :]
    return text.replace("__hipsim_shared__", "static __attribute__((used))").replace("__hipsim_global__", "")


def cpu_options() -> list[str]:
    """Half precision needs F16C to be quick; every x86-64 server of the last ten years has it."""
    flags = Path("/proc/cpuinfo").read_text().split("\n\n")[0].split()
    return ["-march=x86-64-v3"] if {"avx2", "fma", "f16c", "bmi2"} <= set(flags) else []


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


def fresh_name(path: Path) -> Path:
    """Where to write what is then renamed, since other processes may want the same file."""
    return path.with_suffix(f".{os.getpid()}")


def write_record(manifest: Path, record: dict) -> dict:
    fresh = fresh_name(manifest)
    fresh.write_text(json.dumps(record))
    fresh.rename(manifest)
    return record


def digest(*parts: object) -> str:
    """A name for what these parts, and this file, make."""
    return hashlib.sha256(repr((OWN_TEXT, *parts)).encode()).hexdigest()[:32]


def up_to_date(manifest: Path) -> dict | None:
    """The record of what was made, if none of the files it was made from has changed since."""
    try:
        record = json.loads(manifest.read_text())
        if all(state_of(name) == state for name, state in record["included"].items()):
            return record
    except FileNotFoundError:
        pass  # not made yet, or an included file is gone
    return None


def precompiled_prelude(options: list[str], cache: Path) -> dict:
    """The record of a header that stands for the prelude and is precompiled for these options.

    Where the compiler cannot use it precompiled, it reads the header itself, which includes the prelude: so wherever a
    macro is defined that the prelude names and does not define.
    """
    manifest = cache / f"{digest('prelude', options)}.json"
    if record := up_to_date(manifest):
        return record
    include = f'#include "{HERE / "include" / "hipsim" / "prelude.h"}"\n'
    text = run(["g++", *options, "-E", "-x", "c++-header", "-"], include)
    header = cache / f"{digest(text, options)}.h"
    header.write_text(include)
    precompiled = header.with_suffix(".h.gch")
    fresh = fresh_name(precompiled)
    run(["g++", *options, "-x", "c++-header", str(header), "-o", str(fresh)])
    fresh.rename(precompiled)
    return write_record(manifest, {"header": header.name, "included": included_files(text, "-")})


def preprocess(options: list[str], target: str, source: str, header: Path) -> str:
    """A source for a target, behind a header, which is not read where it is precompiled for these options."""
    before = ["-fpch-preprocess", "-include", str(header)]
    return run(["g++", *options, *target_macros(target), *before, "-E", "-x", "c++", source])


def compile_source(
    options: list[str], given: list[str], target: str, source: str, expressions: list[str], manifest: Path
) -> dict:
    """Preprocesses, rewrites and compiles into the cache; returns the record that it leaves there."""
    cache = manifest.parent
    prelude = precompiled_prelude(options, cache)
    preprocessed = preprocess([*options, *given], target, source, cache / prelude["header"])
    text = UNROLL.sub("", rewrite(preprocessed, expressions, target))
    library = cache / f"{digest(text, options, given)}.so"
    if not library.exists():
        fresh, runtime = fresh_name(library), os.environ["HIPSIM_RUNTIME"]
        language = ["-fpreprocessed", "-x", "c++", "-shared", "-", "-x", "none"]
        run(["g++", *options, *given, *language, "-o", str(fresh), runtime], text)
        fresh.rename(library)
    included = {**prelude["included"], **included_files(preprocessed, source)}
    return write_record(manifest, {"library": library.name, "included": included})


def main() -> None:
    split = sys.argv.index("--")
    source, output = Path(sys.argv[1]), Path(sys.argv[2])
    expressions = [word.removeprefix("--expression=") for word in sys.argv[3:split]]
    cache = Path(os.environ["HIPSIM_KERNELS"])
    target = target_of(sys.argv[split + 1 :])
    standard, given = compiler_options(sys.argv[split + 1 :])
    asan = os.environ.get("HIPSIM_ASAN", "") not in ("", "0")
    options = [standard, *cpu_options(), *GENERAL, *(UNDER_SANITIZER if asan else OPTIMIZATION)]

    os.chdir(source.parent)  # so that neither line markers nor the cache's keys hold the temporary folder
    cache.mkdir(parents=True, exist_ok=True)
    given = [option.replace(f"{source.parent}/", "") for option in given]
    macros = target_macros(target)
    manifest = cache / f"{digest(source.read_text(), source.name, options, given, macros, expressions)}.json"
    record = up_to_date(manifest)
    if record is None:
        record = compile_source(options, given, target, source.name, expressions, manifest)
    library = (cache / record["library"]).read_bytes()
    output.write_bytes(library.replace(TARGET_PLACE, target.encode().ljust(len(TARGET_PLACE), b"\0")))


if __name__ == "__main__":
    main()
