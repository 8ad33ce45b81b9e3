"""Does what README says, in its order, and compares what comes with what it shows.

    readme.py README HTTP ADMIN LOG

Runs in a folder that has `models/`, served at HTTP, with `tidegate` on the path; LOG is what the server says. A block
of `sh` or `python` is run; the block of output behind it, with at most one sentence between, is what it must print,
but for times, sizes, names of predictions and the last digits of numbers. A block that shows the server's log must
come. Left out is what needs a terminal or another build (`make ...`), and what README calls an example.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

PATIENCE_SECONDS = 20
LEFT_OUT = ("make ", "tidegate rollout ")


def blocks(text):
    """Each fenced block: its language, its lines, and whether it follows the last one closely."""
    found, between = [], 0
    fence = re.compile(r"^```(\w*)\n(.*?)^```\n", re.M | re.S)
    for block in fence.finditer(text):
        gap = text[between : block.start()]
        found.append((block[1], block[2], len(gap.split()) < 4))
        between = block.end()
    return found


def words(text):
    """A text without what differs from run to run: its words, numbers as such."""
    for pattern, name in [
        (r"\b[0-9a-f]{64}\b", "DIGEST"),
        (r"\b[0-9a-f]{32}\b", "NAME"),
        (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
        (r"\d+(\.\d+)? (us|ms|s|B|KiB|MiB)\b", "MEASURED"),
        (r"load_ms=\d+", "load_ms=MEASURED"),
        (r"http://[\w.]+:\d+", "SERVER"),
    ]:
        text = re.sub(pattern, name, text)
    return re.findall(r"-?\d+\.\d+(?:e-?\d+)?|[\w-]+|[^\w\s]", text)


def alike(shown, came):
    """True if two texts say the same."""
    shown, came = words(shown), words(came)

    def same(one, other):
        if one == other:
            return True
        try:
            return abs(float(one) - float(other)) <= 1e-3 + 1e-2 * abs(float(one))
        except ValueError:
            return False

    return len(shown) == len(came) and all(map(same, shown, came))


def eventually(condition):
    """The first true result of a condition, or its last."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (result := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return result


def main():
    readme, http, admin, log = sys.argv[1:]
    text = pathlib.Path(readme).read_text()
    wrong, compared, train = [], 0, None
    all_blocks = blocks(text)
    for (language, code, _), (after, shown, close) in zip(all_blocks, [*all_blocks[1:], ("", "", False)]):
        if language == "python" and "skl2onnx" in code:
            train = code
        elif language == "python" and "cases = " in code:
            # "Instead of its last three lines": the second version's.
            train = "".join(train.splitlines(keepends=True)[:-3])
            code = train + code
        if language not in ("sh", "python") or code.startswith(LEFT_OUT):
            continue
        code = code.replace("localhost:8000", http)
        command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
        environment = os.environ | {"TIDEGATE_URL": f"http://{http}", "TIDEGATE_ADMIN_URL": f"http://{admin}"}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ran.returncode != 0:
            wrong.append(f"{code}\nended with {ran.returncode}: {ran.stdout}{ran.stderr}")
        if train and code.startswith(train[:40]):
            number = 2 if "cases = " in code else 1
            ready = re.compile(rf'ready model=mine version={number}\b.*')
            if not eventually(lambda: ready.search(pathlib.Path(log).read_text())):
                wrong.append(f"version {number} is not ready: {pathlib.Path(log).read_text()}")
        if after in ("", "json") and close and shown:
            compared += 1
            # Of several commands the last one's output is shown.
            lines = shown.strip().count("\n") + 1
            came = "\n".join(ran.stdout.strip().splitlines()[-lines:])
            if not alike(shown, came):
                wrong.append(f"{code}\nshows\n{shown}\nand gives\n{ran.stdout}{ran.stderr}")
    banner = next(code for _, code, _ in all_blocks if code.startswith("tidegate ready"))
    said = [words(line) for line in pathlib.Path(log).read_text().splitlines()]
    missing = [line for line in banner.splitlines() if words(line) not in said]
    if missing:
        wrong.append(f"the server does not say at the start: {missing}")
    compared += 1
    shown_logs = [code for language, code, _ in all_blocks if language == "" and re.match(r"\d{4}-\d\d-\d\dT", code)]
    for line in shown_logs:
        if "version=3" in line:
            third = pathlib.Path("models/mine/3")
            third.mkdir()
            golden = pathlib.Path("models/mine/2/golden.json").read_text()
            broken = re.sub(r'("name": "label", .*?"data": \[\d, \d, )\d', r"\g<1>7", golden)
            assert broken != golden, "the golden file has another form"
            (third / "golden.json").write_text(broken)
            (third / "model.onnx").write_bytes(pathlib.Path("models/mine/2/model.onnx").read_bytes())
        compared += 1
        came = lambda: any(alike(line, said) for said in pathlib.Path(log).read_text().splitlines())  # noqa: B023, E731
        if not eventually(came):
            wrong.append(f"the log does not say\n{line}\nbut\n{pathlib.Path(log).read_text()}")
    if wrong:
        sys.exit("\n----\n".join(wrong))
    print(f"{compared} outputs are as README shows them")


main()
