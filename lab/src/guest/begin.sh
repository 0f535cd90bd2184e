#!/bin/busybox sh
# How the first program of a Linux guest with modules begins; what follows is the guest's own.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox dmesg -n 1
echo "--- user space ---"
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module.ko" || echo "trouble: no module $module"
done
