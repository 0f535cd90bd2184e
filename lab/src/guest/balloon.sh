#!/bin/busybox sh
# What a guest with a balloon does: has all of its memory touched, and tells how much it has, until the host has put
# pages into the balloon and taken them out again.
/bin/busybox mount -t devtmpfs devtmpfs /dev
# The first file system holds half of the memory at most.
/bin/busybox mkdir /fill
/bin/busybox mount -t ramfs ramfs /fill
total() { /bin/busybox sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module.ko" || echo "trouble: no module $module"
done
free=$(/bin/busybox sed -n 's/^MemFree: *\([0-9]*\) kB/\1/p' /proc/meminfo)
fill=$((free / 1024 - 24))
/bin/busybox dd if=/dev/zero of=/fill/file bs=1M count="$fill" 2>/dev/null
/bin/busybox rm /fill/file
before=$(total)
echo "touched: $fill MiB of $before kB"
while [ "$(total)" -gt $((before - ${balloon:-0} * 1024)) ]; do /bin/busybox usleep 50000; done
echo "with a balloon: $(total) kB"
while [ "$(total)" -lt "$before" ]; do /bin/busybox usleep 50000; done
echo "without: $(total) kB"
# It has that memory again.
/bin/busybox dd if=/dev/zero of=/fill/file bs=1M count="$fill" 2>/dev/null && echo "filled again: yes"
/bin/busybox rm /fill/file
