# SPDX-License-Identifier: MIT
"""The rows of the bench: what is run, beside what, and the ratio that is to be reached.

Commands run in the directory of the inputs. "target.*" is what they make, "work.*" what they change; both are gone
before the next run.
"""

from dataclasses import dataclass

# What may make qemu-img faster; the best is looked for once per row.
PARALLEL = ("", "-W -m 8", "-W -m 16")


@dataclass
class Row:
    name: str
    what: str
    goal: float                 # the ratio to be reached: time of blkimg / time of the peer
    args: str                   # the command line of both programs
    inputs: str                 # names, separated by blanks
    limit: tuple                # what the machine can do: see limits.py
    peer: str = ""              # the peer's command line, if it is another one
    program: str = "qemu-img"   # the peer: qemu-img, qemu-io or blkimg
    options: tuple = ("",)      # tried for the peer, after the name of the command
    copies: str = ""            # inputs that the command changes: "a.qcow2" is given as "work.a.qcow2"
    checks: tuple = ()          # see check.py
    size: float = 0             # bound of the target's size beside the peer's; 0: none

    def command(self, mine, options=""):
        """The words after the program's name. The program of a row that runs "io" is qemu-io in the peer's case."""
        line = self.args if mine or not self.peer else self.peer
        first, _, rest = line.partition(" ")
        if first == "-f":
            return split_quoted(line)
        return [first, *options.split(), *split_quoted(rest)]


def split_quoted(line):
    """Words, of which those in single quotes may have blanks."""
    words = []
    for index, part in enumerate(line.split("'")):
        words += [part] if index % 2 else part.split()
    return words


def compare(first, second="source.raw"):
    return (("compare", first, second),)


def sound(name):
    return (("sound", name),)


COPY = "convert -t unsafe "
CHECKED = compare("target.qcow2") + sound("target.qcow2")

ROWS = [
    Row("info", "`info` of a small qcow2: start-up", 0.5, "info -f qcow2 small.qcow2", "small.qcow2", ("start",),
        checks=(("status",),)),

    # Copies in the page cache.
    Row("raw-qcow2", "raw to qcow2, page cache", 0.7, COPY + "-f raw -O qcow2 source.raw target.qcow2", "source.raw",
        ("copy",), options=PARALLEL, checks=CHECKED),
    Row("qcow2-raw", "qcow2 to raw, page cache", 0.7, COPY + "-f qcow2 -O raw source.qcow2 target.raw", "source.qcow2",
        ("copy",), options=PARALLEL, checks=compare("target.raw")),
    Row("qcow2-qcow2", "qcow2 to qcow2, page cache", 0.7, COPY + "-f qcow2 -O qcow2 source.qcow2 target.qcow2",
        "source.qcow2", ("copy",), options=PARALLEL, checks=CHECKED),
    Row("raw-raw", "raw to raw, page cache", 1.0, COPY + "-f raw -O raw source.raw target.raw", "source.raw",
        ("copy",), options=PARALLEL, checks=compare("target.raw")),
    Row("dd", "`dd` of raw, blocks of 1 MiB", 1.0, "dd bs=1M -f raw -O raw if=dense.raw of=target.raw", "dense.raw",
        ("copy", "dense.raw"), checks=compare("target.raw", "dense.raw")),

    # Copies that end on stable storage.
    Row("raw-qcow2-synced", "raw to qcow2, synced (`-t writeback`)", 0.8,
        "convert -t writeback -f raw -O qcow2 source.raw target.qcow2", "source.raw", ("copy-synced",),
        options=PARALLEL, checks=CHECKED),
    Row("raw-qcow2-direct", "raw to qcow2, direct (`-t none -T none`)", 0.8,
        "convert -t none -T none -f raw -O qcow2 source.raw target.qcow2", "source.raw", ("copy-direct",),
        options=PARALLEL, checks=CHECKED),

    # Compression.
    Row("compress-zlib", "`convert -c`, zlib", 0.08, COPY + "-c -f raw -O qcow2 source.raw target.qcow2",
        "source.raw", ("deflate",), options=PARALLEL, checks=CHECKED, size=1.10),
    Row("compress-zstd", "`convert -c`, zstd", 0.5,
        COPY + "-c -o compression_type=zstd -f raw -O qcow2 source.raw target.qcow2", "source.raw", ("zstd",),
        options=PARALLEL, checks=CHECKED, size=1.01),
    Row("zlib-raw", "zlib to raw", 0.4, COPY + "-f qcow2 -O raw zlib.qcow2 target.raw", "zlib.qcow2", ("inflate",),
        options=PARALLEL, checks=compare("target.raw")),
    Row("zstd-raw", "zstd to raw", 0.4, COPY + "-f qcow2 -O raw zstd.qcow2 target.raw", "zstd.qcow2", ("unzstd",),
        options=PARALLEL, checks=compare("target.raw")),
    Row("zlib-zlib", "`convert -c` of zlib to zlib", 0.05, COPY + "-c -f qcow2 -O qcow2 zlib.qcow2 target.qcow2",
        "zlib.qcow2", ("copy", "zlib.qcow2"), options=PARALLEL, checks=CHECKED, size=1.10),
    Row("zstd-zstd", "`convert -c` of zstd to zstd", 0.05,
        COPY + "-c -o compression_type=zstd -f qcow2 -O qcow2 zstd.qcow2 target.qcow2", "zstd.qcow2",
        ("copy", "zstd.qcow2"), options=PARALLEL, checks=CHECKED, size=1.10),

    # Comparing.
    Row("compare", "`compare` of raw and qcow2", 0.3, "compare -f raw -F qcow2 source.raw source.qcow2",
        "source.raw source.qcow2", ("read", "source.qcow2", "same.raw"), checks=(("output",),)),
    Row("compare-raw", "`compare` of two raw files", 0.3, "compare -f raw -F raw source.raw same.raw",
        "source.raw same.raw", ("read", "source.qcow2", "same.raw"), checks=(("output",),)),
    Row("compare-shared", "`compare` of two files that share blocks", 0.02,
        "compare -f raw -F raw xfs/source.raw xfs/same.raw", "xfs/source.raw xfs/same.raw", ("start",),
        checks=(("output",),)),

    # Metadata.
    Row("check-large", "`check` of 1 TiB preallocated", 0.1, "check -f qcow2 large.qcow2", "large.qcow2",
        ("read", "large.qcow2"), checks=(("output",),)),
    Row("map-large", "`map` of 1 TiB preallocated", 0.1, "map --output=json -f qcow2 large.qcow2", "large.qcow2",
        ("read", "large.qcow2"), checks=(("output",),)),
    Row("measure-large", "`measure` of 1 TiB preallocated", 0.1,
        "measure --output=json -f qcow2 -O qcow2 large.qcow2", "large.qcow2", ("read", "large.qcow2"),
        checks=(("output",),)),
    Row("check-fragmented", "`check` of 64 GiB, each 4 GiB in random order", 0.15, "check -f qcow2 fragmented.qcow2",
        "fragmented.qcow2", ("read", "fragmented.qcow2"), checks=(("output",),)),
    Row("map-fragmented", "`map` of 64 GiB, each 4 GiB in random order", 0.15, "map --output=json -f qcow2 fragmented.qcow2",
        "fragmented.qcow2", ("read", "fragmented.qcow2"), checks=(("output",),)),

    # Commands that change an image of a million clusters.
    Row("commit", "`commit` of 1,000,000 clusters", 0.5, "commit -q -f qcow2 work.upper.qcow2", "dense.raw",
        ("copy-synced", "dense.raw"), copies="upper.qcow2 lower.qcow2",
        checks=compare("work.lower.qcow2", "dense.raw") + sound("work.lower.qcow2") + sound("work.upper.qcow2")),
    Row("rebase", "`rebase` of 1,000,000 clusters", 0.5, "rebase -f qcow2 -b changed.raw -F raw work.overlay.qcow2",
        "source.raw changed.raw flat.raw", ("read", "source.raw", "changed.raw"), copies="overlay.qcow2",
        checks=compare("work.overlay.qcow2", "flat.raw") + sound("work.overlay.qcow2")),
    Row("snapshot-create", "`snapshot -c` with 1,000,000 clusters", 0.5, "snapshot -c new work.million.qcow2", "",
        ("copy-synced", "million.qcow2"), copies="million.qcow2", checks=sound("work.million.qcow2")),
    Row("snapshot-apply", "`snapshot -a` with 1,000,000 clusters", 0.5,
        "snapshot -a before work.million-snapshot.qcow2", "", ("copy-synced", "million.qcow2"),
        copies="million-snapshot.qcow2", checks=sound("work.million-snapshot.qcow2")),
    Row("snapshot-delete", "`snapshot -d` with 1,000,000 clusters", 0.5,
        "snapshot -d before work.million-snapshot.qcow2", "", ("copy-synced", "million.qcow2"),
        copies="million-snapshot.qcow2", checks=sound("work.million-snapshot.qcow2")),
    Row("repair", "`check -r all` with 1,000,000 clusters", 0.5, "check -q -r all -f qcow2 work.damaged.qcow2", "",
        ("copy-synced", "million.qcow2"), copies="damaged.qcow2", checks=sound("work.damaged.qcow2")),

    # Bitmaps.
    Row("bitmap-add", "`bitmap --add` to 8 TiB", 0.2, "bitmap --add -g 64k -f qcow2 work.bitmaps.qcow2 new", "",
        ("read", "bitmaps.qcow2"), copies="bitmaps.qcow2", checks=sound("work.bitmaps.qcow2")),
    Row("bitmap-merge", "`bitmap --merge`, 8 TiB, 1 % marked", 0.2,
        "bitmap --merge from -f qcow2 work.bitmaps.qcow2 to", "", ("copy-synced", "bitmaps.qcow2"),
        copies="bitmaps.qcow2", checks=(("same-bits", "work.bitmaps.qcow2"),) + sound("work.bitmaps.qcow2")),
    Row("bitmap-merge-4k", "the same in clusters of 4 KiB", 0.2,
        "bitmap --merge from -f qcow2 work.bitmaps-4k.qcow2 to", "", ("copy-synced", "bitmaps-4k.qcow2"),
        copies="bitmaps-4k.qcow2",
        checks=(("same-bits", "work.bitmaps-4k.qcow2"),) + sound("work.bitmaps-4k.qcow2")),
    Row("io-300-bitmaps", "`io` write of 64 KiB, 1 TiB with 300 bitmaps", 0.5,
        "io -f qcow2 -c 'write -q -P 7 1M 64k' work.many-bitmaps.qcow2", "", ("start",), program="qemu-io",
        peer="-f qcow2 -c 'write -q -P 7 1M 64k' work.many-bitmaps.qcow2", copies="many-bitmaps.qcow2",
        checks=(("pattern", "work.many-bitmaps.qcow2", "read -P 7 1M 64k"),) + sound("work.many-bitmaps.qcow2")),
    Row("info-300-bitmaps", "`info` of 1 TiB with 300 bitmaps", 0.5, "info -f qcow2 many-bitmaps.qcow2",
        "many-bitmaps.qcow2", ("start",), checks=(("status",),)),
    Row("backup-300-bitmaps", "full `backup` of 1 TiB with 300 bitmaps, beside convert", 0.5,
        "backup -f qcow2 -t unsafe many-bitmaps.qcow2 target.qcow2", "many-bitmaps.qcow2", ("start",),
        peer=COPY + "-f qcow2 -O qcow2 many-bitmaps.qcow2 target.qcow2", options=PARALLEL,
        checks=compare("target.qcow2", "many-bitmaps.qcow2") + sound("target.qcow2")),

    # A file system with reflinks.
    Row("reflink-raw-qcow2", "raw to qcow2 on XFS, synced", 0.05,
        "convert -t writeback -f raw -O qcow2 xfs/source.raw xfs/target.qcow2", "xfs/source.raw", ("reflink",),
        options=PARALLEL, checks=compare("xfs/target.qcow2") + sound("xfs/target.qcow2")),
    Row("reflink-qcow2-raw", "qcow2 to raw on XFS, synced", 0.05,
        "convert -t writeback -f qcow2 -O raw xfs/source.qcow2 xfs/target.raw", "xfs/source.qcow2", ("reflink",),
        options=PARALLEL, checks=compare("xfs/target.raw")),
    Row("reflink-backup", "full `backup` on XFS, synced, beside convert", 0.05,
        "backup -f qcow2 xfs/source.qcow2 xfs/target.qcow2", "xfs/source.qcow2", ("reflink",),
        peer="convert -t writeback -f qcow2 -O qcow2 xfs/source.qcow2 xfs/target.qcow2", options=PARALLEL,
        checks=compare("xfs/target.qcow2") + sound("xfs/target.qcow2")),

    # Large and empty.
    Row("convert-empty", "`convert` of an empty qcow2 of 8 TiB", 0.1, COPY + "-f qcow2 -O qcow2 empty.qcow2 target.qcow2",
        "empty.qcow2", ("start",), options=PARALLEL, checks=sound("target.qcow2")),
    Row("convert-sparse", "`convert` of a sparse raw of 4 TiB", 0.1, COPY + "-f raw -O qcow2 sparse.raw target.qcow2",
        "sparse.raw", ("start",), options=PARALLEL, checks=sound("target.qcow2")),

    # Backups beside blkimg's own convert.
    Row("backup", "full `backup`, beside blkimg convert", 0.9, "backup -f qcow2 source.qcow2 target.qcow2",
        "source.qcow2", ("copy-synced",), program="blkimg", peer="convert -f qcow2 -O qcow2 source.qcow2 target.qcow2",
        checks=CHECKED),
    Row("backup-checksum", "the same with `--checksum`", 1.05, "backup --checksum -f qcow2 source.qcow2 target.qcow2",
        "source.qcow2", ("copy-synced",), program="blkimg", peer="convert -f qcow2 -O qcow2 source.qcow2 target.qcow2",
        checks=CHECKED),
    Row("backup-verify", "the same with `--verify`", 1.6, "backup --verify -f qcow2 source.qcow2 target.qcow2",
        "source.qcow2", ("copy-synced",), program="blkimg", peer="convert -f qcow2 -O qcow2 source.qcow2 target.qcow2",
        checks=CHECKED),
    Row("backup-incremental", "1 % of 100 GiB, beside a copy of that 1 % alone", 1.2,
        "backup -f qcow2 --bitmap=daily --bitmap-sync=never --base=full-backup.qcow2 disk.qcow2 target.qcow2",
        "disk.qcow2 full-backup.qcow2 part.qcow2", ("copy-synced", "part.qcow2"), program="blkimg",
        peer="convert -f qcow2 -O qcow2 part.qcow2 target.qcow2", checks=(("same-disk", "disk.qcow2"),)),
]


BY_NAME = {row.name: row for row in ROWS}
