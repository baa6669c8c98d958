"""How long the page of an atlas takes to open in Chromium: medians of five fresh browsers.

    python benchmarks/report_opening.py atlas.html

Milliseconds from the request on, and the CPU time of the page's main thread, which other work on
the machine does not lengthen as much (Linux): until the text is there, all but the matrices is
drawn, and all is. Run it from the root of the repository: it drives the browser as the tests do.
"""

import argparse
import statistics
import sys
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.report.browser import Page, opened

STEPS = ("text", "ready", "connected")


def renderers() -> dict[int, float]:
    """Process -> milliseconds on a CPU of its main thread, of all pages of our browser."""
    found = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("chrom")]
    pids = [p.pid for p in found if "--type=renderer" in p.cmdline()]
    times = (Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0] for pid in pids)
    return {pid: int(time) / 1e6 for pid, time in zip(pids, times, strict=True)}


def busy(before: dict[int, float]) -> float:
    return max(time - before.get(pid, 0.0) for pid, time in renderers().items())


def open_once(address: str) -> list[float]:
    """When each step was done; CPU time until the last two of them."""
    with opened("about:blank") as page:
        before = renderers()
        page.go(address)
        cpu = []
        for step in STEPS[1:]:
            page.wait(f"document.body && document.body.dataset.{step}")
            cpu.append(busy(before))
        return [*(started(page, step) for step in STEPS), *cpu]


def started(page: Page, step: str) -> float:
    return page.run(f"performance.getEntriesByName('{step}')[0].startTime")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    path = parser.parse_args().page.resolve()
    if not path.is_file():
        parser.error(f"there is no page {path}; write one with funcnet report.")
    rows = [open_once(path.as_uri()) for _ in range(5)]
    text, ready, connected, *cpu = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"{path.stat().st_size / 1e6:.1f} MB")
    print(f"text {text:.0f} ms, drawn {ready:.0f} ms, with matrices {connected:.0f} ms")
    print(f"main thread: drawn {cpu[0]:.0f} ms, with matrices {cpu[1]:.0f} ms")
    load = [round(value, 1) for value in psutil.getloadavg()]
    print(f"load of the machine (1, 5, 15 minutes): {load}, {psutil.cpu_count()} cores")
