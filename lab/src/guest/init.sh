#!/bin/busybox sh
# The first program of a Linux guest: says what the guest is and which clock it keeps, then powers off.
/bin/busybox mkdir -p /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
# The lines below must stay whole: the kernel is to be silent on the console now.
/bin/busybox dmesg -n 1
clock=/sys/devices/system/clocksource/clocksource0
echo "--- user space ---"
echo "kernel: $(/bin/busybox uname -r) $(/bin/busybox uname -m)"
echo "processors online: $(/bin/busybox grep -c ^processor /proc/cpuinfo)"
# 32-bit kernels differ in it, and one that is entered behind its setup code does not insist on it.
case "$(/bin/busybox uname -m)" in
i686) echo "pae: $(/bin/busybox grep -qw pae /proc/cpuinfo && echo yes || echo no)" ;;
esac
echo "memory: $(/bin/busybox sed -n 's/^MemTotal: *//p' /proc/meminfo)"
echo "clocksource: $(/bin/busybox cat $clock/current_clocksource)"
echo "clocksources available: $(/bin/busybox cat $clock/available_clocksource)"
echo "date: $(/bin/busybox date -u '+%Y-%m-%d %H:%M:%S')"
/bin/busybox dmesg | /bin/busybox grep -iE 'tsc|kvm-clock|clocksource' | /bin/busybox sed 's/^/log: /'
# The kernel passes its option `witness` on as a variable.
if [ -x /bin/witness ]; then
    /bin/busybox mount -t devtmpfs devtmpfs /dev
    while read -r module; do
        # A host that cannot be asked for the time is one that the module refuses.
        /bin/busybox insmod "/modules/$module.ko" 2>&1 | /bin/busybox sed 's/^/log: /'
    done </modules/order
    /bin/witness "${witness:-10}"
fi
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup|stall|APIC timer disabled' |
    /bin/busybox sed 's/^/trouble: /'
echo "uptime: $(/bin/busybox cut -d ' ' -f 1 /proc/uptime) s"
echo "--- power off ---"
/bin/busybox poweroff -f
