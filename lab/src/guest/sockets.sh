# The first program of a Linux guest with a socket device: calls programs of the host, one of which is stopped and then
# killed, is called by another, and tells what it saw.
echo "driver: $(/bin/busybox basename "$(/bin/busybox readlink /sys/bus/virtio/devices/virtio0/driver)")"
/bin/sockets call vsock 5000 "$count" && /bin/sockets bear 5001 5002 && /bin/sockets serve vsock 6000 "$count"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f
