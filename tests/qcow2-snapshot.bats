#!/usr/bin/env bats
# SPDX-License-Identifier: MIT
# Internal snapshots in qcow2: qemu-img lists, checks and applies ours, we its.

bats_require_minimum_version 1.5.0
load lib/common

# holds IMAGE OFFSET LENGTH BYTE: both programs read that.
holds() {
    local reader
    for reader in qemu-io "$BLKIMG io"; do
        $reader -r -c "read -P $4 $2 $3" "$1" >out
        grep -q ^read out || fail "$reader: $(<out)"
        refute grep -q verification out
    done
}

# Both programs find nothing wrong.
sound() {
    qemu-img check -q "$1" || fail "qemu-img check: $(qemu-img check "$1")"
    blkimg check "$1" >/dev/null || fail "check: $(blkimg check "$1")"
}

write() { # IMAGE COMMAND...
    local image=$1 command
    local -a commands=()
    shift
    for command; do
        commands+=(-c "$command")
    done
    qemu-io "${commands[@]}" "$image" >out || fail "$(<out)"
}

@test "lists are qemu-img's" {
    qemu-img create -q -f qcow2 a 10M
    same_output snapshot -l a
    blkimg snapshot -c one a
    qemu-img snapshot -c two a
    blkimg snapshot -c 'and a name that is longer than its column' a
    blkimg snapshot -c '' a
    blkimg snapshot -c two a
    blkimg snapshot -c 3 a
    same_output snapshot -l a
    assert_equal "$(awk 'NR > 2 { print $1 }' <<<"$output" | xargs)" '1 2 3 4 5 6'
    diff <(qemu-img info a) <(blkimg info a)
    diff <(qemu-img info --output=json a) <(blkimg info --output=json a)
    # The largest id decides about the next one, not the number of snapshots.
    blkimg snapshot -d one a
    qemu-img snapshot -d 3 a
    blkimg snapshot -c seven a
    same_output snapshot -l a
    sound a
}

@test "names: an id is looked for first when applying, never when deleting" {
    qemu-img create -q -f qcow2 a 1M
    write a 'write -P 1 0 64k'
    blkimg snapshot -c 2 a # id 1
    write a 'write -P 2 0 64k'
    blkimg snapshot -c x a # id 2
    write a 'write -P 3 0 64k'
    cp a peer
    blkimg snapshot -a 2 a
    qemu-img snapshot -a 2 peer
    holds a 0 64k 2
    qemu-img compare -q a peer
    run -1 blkimg snapshot -d 1 a
    run -1 qemu-img snapshot -d 1 a
    blkimg snapshot -d 2 a
    assert_equal "$(qemu-img snapshot -l a | awk 'NR > 2 { print $1, $2 }')" '2 x'
    sound a
}

@test "what is refused leaves the image alone" {
    qemu-img create -q -f qcow2 a 1M
    qemu-img snapshot -c s a
    cp a before
    run -1 --separate-stderr blkimg snapshot -c "$(printf '%0256d' 0)" a
    [[ ${#stderr_lines[@]} == 1 && $stderr == *"'a'"* ]]
    local action
    for action in -a -d; do
        run -1 --separate-stderr blkimg snapshot $action none a
        [[ ${#stderr_lines[@]} == 1 && $stderr == *none* ]]
    done
    cmp a before

    qemu-img create -q -f qcow2 -o refcount_bits=1 narrow 1M
    write narrow 'write 0 64k'
    cp narrow before
    run -1 --separate-stderr blkimg snapshot -c s narrow
    [[ ${#stderr_lines[@]} == 1 ]]
    qemu-img compare -q narrow before
    sound narrow
    run -1 qemu-img snapshot -c s narrow

    qemu-img create -q -f qcow2 -o data_file=d outside 1M
    run -1 --separate-stderr blkimg snapshot -c s outside
    [[ ${#stderr_lines[@]} == 1 && $stderr == *'external data file'* ]]

}

@test "refcounts of a few bits hold a few snapshots" {
    qemu-img create -q -f qcow2 -o refcount_bits=2 a 1M
    write a 'write -P 1 0 64k'
    blkimg snapshot -c one a
    blkimg snapshot -c two a
    run -1 blkimg snapshot -c three a
    sound a
    # The counts that are full have to go down before they go up.
    blkimg snapshot -a one a
    sound a
    holds a 0 64k 1
    write a 'write -P 2 0 64k'
    sound a
    blkimg snapshot -d one a
    blkimg snapshot -c three a
    sound a
    blkimg snapshot -a two a
    holds a 0 64k 1
}

@test "the disk had another size" {
    qemu-img create -q -f qcow2 -o cluster_size=512 a 1M
    write a 'write -P 1 0 1M'
    blkimg snapshot -c small a
    blkimg resize -q a 9M
    write a 'write -P 2 0 9M'
    blkimg snapshot -c large a
    sound a
    blkimg snapshot -a small a
    assert_equal "$(qemu-img info --output=json a | grep -c '"virtual-size": 1048576')" 1
    holds a 0 1M 1
    sound a
    blkimg snapshot -a large a
    holds a 0 9M 2
    sound a
    qemu-img snapshot -a small a
    holds a 0 1M 1
    blkimg snapshot -d large a
    sound a
    # Where version 2 cannot say it, it is refused.
    blkimg snapshot -d small a
    qemu-img amend -o compat=0.10 a
    blkimg snapshot -c s a
    run -1 blkimg resize -q a 2M
    blkimg snapshot -a s a
    sound a
}

@test "empty images and images without data" {
    local size
    for size in 0 1M 1T; do
        blkimg create -q -f qcow2 a $size
        blkimg snapshot -c one a
        sound a
        blkimg snapshot -a one a
        sound a
        qemu-img snapshot -c two a
        blkimg snapshot -d one a
        sound a
        blkimg snapshot -d two a
        sound a
    done
}

# A VM state lies behind the virtual disk. Made here from a larger disk whose header then says less.
@test "the VM state is kept" {
    qemu-img create -q -f qcow2 a 1G
    write a 'write -P 1 0 1M' 'write -P 7 512M 2M'
    qemu-img snapshot -c state a
    local table
    table=$((16#$(xxd -s 64 -l 8 -p a)))
    poke() { printf '%016x' "$2" | xxd -r -p | dd of=a bs=1 seek="$1" conv=notrunc status=none; }
    poke 24 $((512 << 20))                # the disk ends at 512M
    poke $((table + 40)) $((2 << 20))     # VM state size
    poke $((table + 48)) $((512 << 20))   # disk size of the snapshot
    sound a
    same_output snapshot -l a
    assert_output --partial '2 MiB'
    write a 'write -P 2 0 1M'
    blkimg snapshot -c other a
    blkimg snapshot -a state a
    sound a
    blkimg snapshot -d other a
    blkimg snapshot -c again a
    blkimg snapshot -d state a
    blkimg snapshot -a again a
    sound a
    holds a 0 1M 1
    poke 24 $((1 << 30))
    holds a 512M 2M 7
}

@test "a snapshot read without applying it" {
    qemu-img create -q -f qcow2 a 4M
    write a 'write -P 1 0 1M' 'write -c -P 2 2M 64k'
    blkimg snapshot -c one a
    write a 'write -P 3 0 4M'
    local how
    for how in one 1 snapshot.name=one snapshot.id=1; do
        blkimg convert -l "$how" -f qcow2 -O raw a mine
        qemu-img convert -l "$how" -f qcow2 -O raw a peer
        cmp mine peer
    done
    run -1 --separate-stderr blkimg convert -l none -f qcow2 -O raw a mine
    [[ ${#stderr_lines[@]} == 1 ]]
}

@test "freed clusters are used again, and the file does not grow for ever" {
    qemu-img create -q -f qcow2 -o cluster_size=4k a 4M
    write a 'write 0 4M'
    local i first
    for i in {1..12}; do
        blkimg snapshot -c s a
        write a "write -P $i 0 1M"
        blkimg snapshot -d s a
        ((i != 4)) || first=$(stat -c %s a)
    done
    sound a
    (($(stat -c %s a) <= first + (1 << 20))) || fail "$first bytes after 4 rounds, $(stat -c %s a) after 12"
}

# table COUNT ID_BYTES NAME_BYTES EXTRA_BYTES: the image "hostile" with a table of such entries.
hostile_table() {
    qemu-img create -q -f qcow2 hostile 1M
    python3 - "$@" <<'EOF'
import struct, sys
count, id_bytes, name_bytes, extra = map(int, sys.argv[1:])
at = 1 << 20
entry = struct.pack(">QIHHIIQII", 0x30000, 1, id_bytes, name_bytes, 1, 2, 3, 4, extra)
entry += bytes(extra) + b"1" * id_bytes + b"n" * name_bytes
entry += bytes(-len(entry) % 8)
with open("hostile", "r+b") as f:
    f.seek(60)
    f.write(struct.pack(">IQ", count, at))
    f.seek(at)
    for i in range(min(count, (80 << 20) // len(entry))):
        f.write(entry)
EOF
}

@test "ids at the limit of what is counted cost no more than others" {
    qemu-img create -q -f qcow2 many 1M
    python3 - <<'EOF'
import struct
at, count = 1 << 20, 30000
with open("many", "r+b") as f:
    f.seek(60)
    f.write(struct.pack(">IQ", count, at))
    f.seek(at)
    for i in range(count):
        name = b"%d" % ((1 << 62) - 1 + i)
        entry = struct.pack(">QIHHIIQII", 0, 0, len(name), 1, 1, 2, 3, 0, 16) + struct.pack(">QQ", 0, 1 << 20)
        entry += name + b"n"
        f.write(entry + bytes(-len(entry) % 8))
EOF
    timeout 20 "$BLKIMG" check -q -r all many
    timeout 20 "$BLKIMG" snapshot -c new many
    qemu-img snapshot -l many | tail -1 | grep -q "^$(((1 << 62) - 1 + 30000)) *new "
}

@test "hostile tables cost bounded memory and time" {
    need_unsanitized
    local shape
    for shape in '65536 8 900 16' '65536 65535 65535 16' '1 8 8 1025' '4294967295 1 1 16' '65537 1 1 16' \
        '512 65535 65000 16'; do
        # shellcheck disable=SC2086 # a list
        hostile_table $shape
        local command
        for command in 'info hostile' 'snapshot -l hostile'; do
            local status=0
            # shellcheck disable=SC2086
            timeout 20 /usr/bin/env time -f %M -o peak "$BLKIMG" $command >out 2>err || status=$?
            [[ $status == 0 || $status == 1 ]] || fail "$shape: $command: status $status"
            [[ $status == 0 || $(wc -l <err) == 1 ]] || fail "$shape: $command: $(head -3 err)"
            (($(tail -1 peak) < 65536)) || fail "$shape: $command: $(<peak) KiB"
        done
    done
    # Names are shown as far as qemu-img shows them.
    hostile_table 3 300 400 24
    same_output snapshot -l hostile
    # A table that ends behind the file.
    hostile_table 1000 8 8 16
    truncate -s $(((1 << 20) + 1000)) hostile
    run -1 --separate-stderr blkimg snapshot -l hostile
    [[ ${#stderr_lines[@]} == 1 ]]
}

@test "damaged tables are refused, and nothing is written" {
    qemu-img create -q -f qcow2 a 1M
    write a 'write 0 64k'
    qemu-img snapshot -c s a
    local table l1 what
    table=$((16#$(xxd -s 64 -l 8 -p a)))
    l1=$((16#$(xxd -s $((table)) -l 8 -p a)))
    for what in "$table 0000000000000200" "$table 00ff000000000000" "$((table + 8)) ffffffff" \
        "$l1 8000000000000200" "$l1 00ff000000000000"; do
        cp a x
        xxd -r -p <<<"${what#* }" | dd of=x bs=1 seek="${what% *}" conv=notrunc status=none
        cp x before
        local action
        for action in -a -d; do
            run -1 --separate-stderr blkimg snapshot $action s x
            [[ ${#stderr_lines[@]} == 1 ]] || fail "$what: $stderr"
        done
        qemu-img compare -q x before
    done
}

# Random sequences by both programs; the content is kept beside as raw files.
random_sequence() { # OPTIONS STEPS
    local step program command names=() model=0 name place length
    qemu-img create -q -f qcow2 -o "$1" a 2M
    rm -f model* ; truncate -s 2M model
    for ((step = 0; step < $2; step++)); do
        ((RANDOM % 2)) && program=qemu-img || program=$BLKIMG
        case $((RANDOM % 8)) in
        0 | 1 | 2 | 3)
            place=$((RANDOM % 4000 * 512)) length=$(((RANDOM % 90 + 1) * 512))
            ((place + length <= 2 << 20)) || continue
            command="write -P $((step % 250 + 1)) $place $length"
            fill model $place $length $((step % 250 + 1))
            if ((RANDOM % 2)); then
                qemu-io -c "$command" a >/dev/null
            else
                blkimg io -c "$command" a >/dev/null
            fi ;;
        4 | 5)
            name=s$step
            $program snapshot -c $name a || fail "$program snapshot -c, step $step"
            cp model "model.$name"
            names+=("$name") ;;
        6)
            ((${#names[@]})) || continue
            name=${names[RANDOM % ${#names[@]}]}
            $program snapshot -a "$name" a || fail "$program snapshot -a, step $step"
            cp "model.$name" model ;;
        7)
            ((${#names[@]})) || continue
            model=$((RANDOM % ${#names[@]}))
            $program snapshot -d "${names[model]}" a || fail "$program snapshot -d, step $step"
            rm "model.${names[model]}"
            unset "names[model]"
            names=("${names[@]}") ;;
        esac
        qemu-img check -q a || fail "$1: not sound after step $step: $(qemu-img check a | head -5)"
        qemu-img compare -q -f qcow2 -F raw a model || fail "$1: wrong content after step $step"
    done
    blkimg check a >/dev/null
    for name in "${names[@]}"; do
        qemu-img convert -l "snapshot.name=$name" -O raw a out
        cmp out "model.$name"
        blkimg convert -l "snapshot.name=$name" -O raw a out
        cmp out "model.$name"
    done
}

@test "random sequences of both programs" {
    local seed=${SNAPSHOT_SEED:-$RANDOM} steps=${SNAPSHOT_STEPS:-25} options
    echo "# seed $seed" >&3
    RANDOM=$seed
    for options in cluster_size=64k cluster_size=512 cluster_size=4k,refcount_bits=8 compat=0.10,cluster_size=1k \
        extended_l2=on,cluster_size=16k refcount_bits=64,cluster_size=2M lazy_refcounts=on,cluster_size=4k; do
        random_sequence "$options" "$steps"
    done
}
