# SPDX-License-Identifier: MIT
"""What was measured, as a table on the terminal, as docs/benchmarks.md and .json, and as pictures if gnuplot is there."""

import json
import os
import platform
import shutil
import subprocess
import sys

import limits
import rows
from growth import MORE_MEMORY_KIB, QUICK_ENOUGH, STEEPEST

FULL_PAIRS = 7


# --- the machine: nothing that names it ---

def first_line(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode(errors="replace").splitlines()


def from_proc(name, key):
    with open(name, encoding="utf-8") as file:
        for line in file:
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def file_system(path):
    """The type of the file system: that of the longest mount point that the path is below."""
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _, where, kind, *_ = line.split()
            if (path + "/").startswith(where.rstrip("/") + "/"):
                best = max(best, (where, kind), key=lambda found: len(found[0]))
    return best[1]


def machine(bench):
    blkimg = first_line(bench.blkimg, "--version")
    return {
        "cpu": from_proc("/proc/cpuinfo", "model name"),
        "processors": os.cpu_count(),
        "virtual_machine": "hypervisor" in from_proc("/proc/cpuinfo", "flags").split(),
        "memory_gib": round(int(from_proc("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20)),
        # Without what a distribution or a host adds to it.
        "kernel": platform.system() + " " + platform.release().split("-")[0],
        "file_system": file_system(bench.where),
        "blkimg": blkimg[0].removeprefix("blkimg version "),
        "built_with": blkimg[1].removeprefix("built with: ") if len(blkimg) > 1 else "",
        "qemu_img": first_line("qemu-img", "--version")[0].removeprefix("qemu-img version "),
    }


# --- words ---

def seconds(value):
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def mib(kib):
    return f"{kib / 1024:.0f}"


def spread(result):
    low, high = result["ratio_spread"]
    return f"{low:.2f} to {high:.2f}"


def verdict(result):
    """met, or what is missed."""
    missed = []
    if not result["fast"]:
        missed.append("time")
    if not result["small"]:
        missed.append("memory")
    if not result.get("fits", True):
        missed.append("size")
    return "met" if not missed else "missed: " + ", ".join(missed)


def row_in_a_line(result):
    if result["status"] != "measured":
        return f"{result['status']}: {result['why']}"
    return (f"{result['ratio']:.3f} ({spread(result)}), target {result['goal']}, "
            f"{mib(result['blkimg_peak_kib'])} MiB: {verdict(result)}")


def growth_in_a_line(result):
    if result["status"] != "measured":
        return f"{result['status']}: {result['why']}"
    times = ", ".join(seconds(point["seconds"]) for point in result["points"])
    return f"{times}; exponent {result['exponent']:.2f}: {verdict(result)}"


# --- the terminal ---

def row_table(data, names):
    lines = [f"{'row':<20} {'ratio':>7} {'spread':>14} {'target':>7} {'peer':>9} {'blkimg':>9} {'limit':>7} "
             f"{'MiB':>5} {'peer':>5}  verdict"]
    for result in data["rows"]:
        if names and result["name"] not in names:
            continue
        if result["status"] != "measured":
            lines.append(f"{result['name']:<20} {result['status']}: {result['why']}")
            continue
        lines.append(f"{result['name']:<20} {result['ratio']:>7.3f} {spread(result):>14} {result['goal']:>7} "
                     f"{seconds(result['peer_seconds']):>9} {seconds(result['blkimg_seconds']):>9} "
                     f"{result['from_limit']:>6.2f}x {mib(result['blkimg_peak_kib']):>5} "
                     f"{mib(result['peer_peak_kib']):>5}  {verdict(result)}")
    return "\n".join(lines + notes(data))


def growth_table(data):
    lines = [f"{'case':<48} {'x1':>9} {'x4':>9} {'x16':>9} {'exponent':>8} {'MiB':>9}  verdict"]
    for result in data["growth"]:
        if result["status"] != "measured":
            lines.append(f"{result['name']:<48} {result['status']}: {result['why']}")
            continue
        times = " ".join(f"{seconds(point['seconds']):>9}" for point in result["points"])
        lines.append(f"{result['name']:<48} {times} {result['exponent']:>8.2f} {peaks(result):>9}  {verdict(result)}")
    return "\n".join(lines + notes(data))


def peaks(result):
    return f"{mib(result['points'][0]['peak_kib'])}-{mib(result['points'][-1]['peak_kib'])}"


def notes(data):
    said = []
    if data["pairs"] < FULL_PAIRS:
        said.append(f"Only {data['pairs']} runs each: rough figures.")
    if data["scale"] != 1:
        said.append(f"Inputs of 1/{data['scale']} of the size: start-up and noise weigh more than they should.")
    return said


# --- the document ---

HEAD = """# Benchmarks

Made by `scripts/bench` and `scripts/bench --growth`; [benchmarks.json](benchmarks.json) has every single time.
"""

HOW = """
## How it is measured

The peer and blkimg run in turns, and each pair gives a ratio: time of blkimg / time of the peer. The table shows the
median of the ratios and their quartiles. Before each run the results of the one before are removed and all is written
back (`sync`), outside the timing; inputs are in the page cache. Every result is checked: copies by `qemu-img compare` and
`qemu-img check`, printed output against the peer's. blkimg runs with its defaults, qemu-img with those of
its options (none, `-W -m 8`, `-W -m 16`) that were the fastest in a trial before the row.

A target is met if the ratio, the size of the result where one is given, and the memory are within bounds: memory
at most the peer's (where that is not blkimg itself) and 64 MiB. Peaks below 6 MiB are shown as about 5: no
smaller one can be told apart. The limit is what the simplest means need for the same data; the last column of times
says how many times as long blkimg takes.
"""


def document(data, pictures):
    parts = [HEAD, machine_text(data["machine"])]
    parts += ["\n" + line + "\n" for line in notes(data)]
    if data["rows"]:
        parts += [rows_text(data), HOW, limits_text(data), commands_text(data)]
        if "ratios" in pictures:
            parts.insert(2, "\n![Ratio of each row beside its target](benchmarks-ratios.svg)\n")
    if data["growth"]:
        parts.append(growth_text(data))
        if "growth" in pictures:
            parts.append("\n![Time at 1, 4 and 16 times the size](benchmarks-growth.svg)\n")
    return "".join(parts)


def machine_text(found):
    virtual = " in a virtual machine" if found["virtual_machine"] else ""
    return f"""
| machine | |
| --- | --- |
| processors | {found['processors']} x {found['cpu']}{virtual} |
| memory | {found['memory_gib']} GiB |
| kernel, file system | {found['kernel']}, {found['file_system']} |
| blkimg | {found['blkimg']}, with {found['built_with']} |
| qemu-img | {found['qemu_img']} |
"""


def rows_text(data):
    measured = [result for result in data["rows"] if result["status"] == "measured"]
    met = sum(verdict(result) == "met" for result in measured)
    lines = [f"\n## Beside qemu-img\n\n{met} of {len(measured)} measured rows meet their targets.\n",
             "| row | now | spread | target | peer | blkimg | of the limit | memory, MiB (peer's) | verdict |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for result in data["rows"]:
        what = rows.BY_NAME[result["name"]].what
        if result["status"] != "measured":
            lines.append(f"| {what} | | | {rows.BY_NAME[result['name']].goal} | | | | | {result['status']}: {result['why']} |")
            continue
        size = f"; size {result['size']:.3f}, at most {result['size_goal']:.2f}" if "size" in result else ""
        lines.append(f"| {what} | **{result['ratio']:.3f}** | {spread(result)} | {result['goal']} | "
                     f"{seconds(result['peer_seconds'])} | {seconds(result['blkimg_seconds'])} | "
                     f"{result['from_limit']:.2f} | {mib(result['blkimg_peak_kib'])} ({mib(result['peer_peak_kib'])}) | "
                     f"{verdict(result)}{size} |")
    return "\n".join(lines) + "\n"


def limits_text(data):
    found = {}
    for result in data["rows"]:
        if result["status"] == "measured":
            key = " ".join([result["limit"], *result["limit_files"]])
            found[key] = (result["limit"], result["limit_files"], result["limit_seconds"])
    lines = ["\n## Limits\n", "| limit | time |", "| --- | --- |"]
    for name, files, value in found.values():
        about = f" ({', '.join(files)})" if files else ""
        lines.append(f"| {limits.WHAT[name]}{about} | {seconds(value)} |")
    if data["memory_seconds"]:
        lines.append(f"| {limits.WHAT['memory']} | {seconds(data['memory_seconds'])} |")
    return "\n".join(lines) + "\n"


def commands_text(data):
    lines = ["\n## Commands\n", "| row | peer | blkimg |", "| --- | --- | --- |"]
    for result in data["rows"]:
        if result["status"] == "measured":
            row = rows.BY_NAME[result["name"]]
            peer = " ".join([row.program, *row.command(False, result["peer_options"])])
            lines.append(f"| {row.name} | `{peer}` | `blkimg {' '.join(row.command(True))}` |")
    return "\n".join(lines) + "\n"


def growth_text(data):
    lines = [f"""
## Growth

blkimg alone, at 1, 4 and 16 times the size. The exponent is the slope of processor time, less start-up, over size, both as
logarithms: 1 is a line. It is to be at most {STEEPEST} where what is allocated or a count grows, and 0.15 where only the virtual size
does; what takes at most {QUICK_ENOUGH} s at the largest size passes anyway. From 4 to 16 times the size memory may grow by
{MORE_MEMORY_KIB // 1024} MiB, and it stays below 64 MiB.

| case | grows | x1 | x4 | x16 | exponent | memory, MiB | its exponent | verdict |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""]
    for result in data["growth"]:
        if result["status"] != "measured":
            lines.append(f"| {result['name']} | | | | | | | | {result['status']}: {result['why']} |")
            continue
        times = " | ".join(seconds(point["seconds"]) for point in result["points"])
        lines.append(f"| {result['name']} | {result['grows']} | {times} | {result['exponent']:.2f} | {peaks(result)} | "
                     f"{result['memory_exponent']:.2f} | {verdict(result)} |")
    return "\n".join(lines) + "\n"


# --- pictures ---

def gnuplot(script, path):
    subprocess.run(["gnuplot"], input=f"set output '{path}'\n{script}".encode(), check=True)
    # The version of gnuplot in a comment would change the file for no reason.
    with open(path, encoding="utf-8") as file:
        text = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write("".join(line for line in text.splitlines(True) if not line.lstrip().startswith("<desc>")))


def ratio_script(data):
    measured = [result for result in data["rows"] if result["status"] == "measured"]
    points = "\n".join(f'{-index} {r["ratio"]} {r["ratio_spread"][0]} {r["ratio_spread"][1]} {r["goal"]} "{r["name"]}"'
                       for index, r in enumerate(measured))
    tics = ", ".join(f'"{r["name"]}" {-index}' for index, r in enumerate(measured))
    return f"""$rows << END
{points}
END
set terminal svg size 900,{120 + 18 * len(measured)} font "sans,11" background "white"
set logscale x
set xrange [0.005:*]
set yrange [{-len(measured)}:1]
set ytics ({tics})
set grid x
set key top left outside horizontal
set xlabel "time of blkimg / time of the peer (logarithmic); left of 1 blkimg is faster"
set arrow from 1, graph 0 to 1, graph 1 nohead lc rgb "#888888"
plot $rows using 2:1:3:4 with xerrorbars pt 7 ps 0.6 lc rgb "#1060a0" title "ratio and its spread", \\
     $rows using 5:1 with points pt 2 ps 0.6 lc rgb "#c04020" title "target"
"""


def growth_script(data):
    measured = [result for result in data["growth"] if result["status"] == "measured"]
    groups = [(kind, [result for result in measured if result["grows"] == kind])
              for kind in ("allocated", "virtual", "count")]
    groups = [(kind, found) for kind, found in groups if found]
    text = [f"""set terminal svg size 1000,{max(500, 40 + 15 * max(len(found) for _, found in groups)) * len(groups)} \\
    font "sans,9" background "white"
set multiplot layout {len(groups)},1
set logscale xy
set xtics (1, 4, 16)
set xrange [0.9:17]
set grid
set ylabel "seconds"
set key outside right
"""]
    for kind, found in groups:
        for index, result in enumerate(found):
            points = "\n".join(f'{point["factor"]} {point["seconds"]}' for point in result["points"])
            text.append(f"${kind}{index} << END\n{points}\nEND\n")
        lines = ", ".join(f'${kind}{index} with linespoints ps 0.4 title "{result["name"]}"'
                          for index, result in enumerate(found))
        text.append(f'set title "what grows: {kind}"\nplot {lines}\n')
    return "".join(text) + "unset multiplot\n"


def draw(data, where):
    """Makes the pictures; their names."""
    if not shutil.which("gnuplot"):
        print("bench: gnuplot is not installed: no pictures", file=sys.stderr)
        return []
    drawn = []
    for name, script in (("ratios", ratio_script), ("growth", growth_script)):
        if any(result["status"] == "measured" for result in data["rows" if name == "ratios" else "growth"]):
            gnuplot(script(data), os.path.join(where, f"benchmarks-{name}.svg"))
            drawn.append(name)
    return drawn


def write(data, where):
    os.makedirs(where, exist_ok=True)
    text = document(data, draw(data, where))
    with open(os.path.join(where, "benchmarks.md"), "w", encoding="utf-8") as file:
        file.write(text)
    with open(os.path.join(where, "benchmarks.json"), "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
