#!/bin/busybox sh
# The first program of a Linux guest with a socket device: loads the driver, calls a program of the host, is called by
# another, and tells what it saw.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox dmesg -n 1
echo "--- user space ---"
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module.ko" || echo "trouble: no module $module"
done
echo "driver: $(/bin/busybox basename "$(/bin/busybox readlink /sys/bus/virtio/devices/virtio0/driver)")"
/bin/sockets call vsock 5000 "$count" && /bin/sockets serve vsock 6000 "$count"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f
