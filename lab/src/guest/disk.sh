# The first program of a Linux guest with three disks, a source of entropy and a balloon that only hears of freed pages:
# writes, flushes, reads back, fills its memory and frees it, and tells what it saw.
echo "command line: $(/bin/busybox cat /proc/cmdline)"
for disk in vda vdb vdc; do
    echo "$disk: $(/bin/busybox cat /sys/block/$disk/size) sectors, ro $(/bin/busybox cat /sys/block/$disk/ro), $(/bin/busybox cat /sys/block/$disk/serial), $(/bin/busybox cat /sys/block/$disk/queue/write_cache)"
done
sum() { /bin/busybox sha256sum | /bin/busybox cut -d ' ' -f 1; }
/bin/busybox dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null
echo "made: $(sum </data)"
/bin/busybox dd if=/data of=/dev/vda bs=1M conv=fsync 2>/dev/null && echo "flushed: yes"
# What is read now comes from the disk.
echo 3 >/proc/sys/vm/drop_caches
echo "read back: $(/bin/busybox dd if=/dev/vda bs=1M count=8 2>/dev/null | sum)"
echo "read-only: $(/bin/busybox head -c 9 /dev/vdb)"
if /bin/busybox dd if=/data of=/dev/vdb bs=4096 count=1 conv=fsync 2>/dev/null; then
    echo "written to vdb: yes"
else
    echo "written to vdb: no"
fi
# The third has many requests under way: four programs write at once, each a quarter, and then read at once.
quarters() { for quarter in 0 1 2 3; do "$1" "$quarter" $((quarter * 32)) & done; wait; }
store() { /bin/busybox dd if=/data of=/dev/vdc bs=64k count=32 skip="$2" seek="$2" conv=fsync 2>/dev/null && : >"/stored$1"; }
load() { /bin/busybox dd if=/dev/vdc of="/quarter$1" bs=64k count=32 skip="$2" 2>/dev/null; }
quarters store
[ -e /stored0 ] && [ -e /stored1 ] && [ -e /stored2 ] && [ -e /stored3 ] && echo "flushed to vdc: yes"
echo 3 >/proc/sys/vm/drop_caches
quarters load
echo "read back from vdc: $(/bin/busybox cat /quarter0 /quarter1 /quarter2 /quarter3 | sum)"
/bin/busybox rm /quarter0 /quarter1 /quarter2 /quarter3
echo "entropy from: $(/bin/busybox cat /sys/class/misc/hw_random/rng_current)"
echo "entropy: $(/bin/busybox dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null | /bin/busybox wc -c) bytes"
# What is filled and freed is the host's again, which looks before it says to go on.
/bin/busybox mkdir /fill
/bin/busybox mount -t ramfs ramfs /fill
fill=96
/bin/busybox dd if=/dev/zero of=/fill/file bs=1M count="$fill" 2>/dev/null && echo "filled: $fill MiB"
read -r _
/bin/busybox rm /fill/file && echo "freed: yes"
read -r _
/bin/busybox dd if=/dev/zero of=/fill/file bs=1M count="$fill" 2>/dev/null && echo "filled again: yes"
/bin/busybox rm /fill/file
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|I/O error|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f
