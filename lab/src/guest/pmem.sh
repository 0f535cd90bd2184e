# The first program of a Linux guest with two persistent memories, of which it cannot write the second: writes both,
# flushes, reads back, tells what it saw and waits for its end.
echo "command line: $(/bin/busybox cat /proc/cmdline)"
for memory in pmem0 pmem1; do
    echo "$memory: $(/bin/busybox cat /sys/block/$memory/size) sectors"
done
sum() { /bin/busybox sha256sum | /bin/busybox cut -d ' ' -f 1; }
/bin/busybox dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null
echo "made: $(sum </data)"
/bin/busybox dd if=/data of=/dev/pmem0 bs=1M conv=fsync 2>/dev/null && echo "flushed: yes"
if /bin/busybox dd if=/data of=/dev/pmem1 bs=4096 count=1 conv=fsync 2>/dev/null; then
    echo "written to pmem1: yes"
else
    echo "written to pmem1: no"
fi
# What is read now comes from the memories.
echo 3 >/proc/sys/vm/drop_caches
echo "read back: $(/bin/busybox dd if=/dev/pmem0 bs=1M count=8 2>/dev/null | sum)"
echo "read-only: $(/bin/busybox head -c 9 /dev/pmem1)"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup' | /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
echo "done: yes"
read -r _
