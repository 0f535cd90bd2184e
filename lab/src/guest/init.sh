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
# The devices that are of the machine as a whole: its generation with the driver that it has, if the kernel has one,
# the interrupt that tells of another, and the page of its clock, which begins with "VCLK" and has its status later.
/bin/busybox mount -t devtmpfs devtmpfs /dev
driver=$(/bin/busybox readlink /sys/bus/acpi/devices/VMGENCTR:00/driver)
echo "generation: $(/bin/busybox cat /sys/bus/acpi/devices/VMGENCTR:00/hid) ${driver##*/}"
echo "event interrupts: $(/bin/busybox grep -c 'ACPI:Ged' /proc/interrupts)"
page=$(/bin/busybox sed -n 's/^ *\([0-9a-f]*\)-[0-9a-f]* : AMZNC10C:00$/\1/p' /proc/iomem)
of_page() { /bin/busybox dd if=/dev/mem bs=1 skip=$((0x$page + $1)) count="$2" 2>/dev/null; }
echo "clock page: $(of_page 0 4) at $page"
echo "clock status: $(of_page 34 1 | /bin/busybox hexdump -e '1/1 "%u"')"
# The kernel passes its option `witness` on as a variable.
if [ -x /bin/witness ]; then
    while read -r module; do
        # A host that cannot be asked for the time is one that the module refuses.
        /bin/busybox insmod "/modules/$module.ko" 2>&1 | /bin/busybox sed 's/^/log: /'
    done </modules/order
    /bin/witness "${witness:-10}" "$page"
fi
if [ -x /bin/balloon ]; then
    /bin/balloon
fi
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup|stall|APIC timer disabled' |
    /bin/busybox sed 's/^/trouble: /'
echo "uptime: $(/bin/busybox cut -d ' ' -f 1 /proc/uptime) s"
echo "--- power off ---"
/bin/busybox poweroff -f
