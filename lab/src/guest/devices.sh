# The first program of a Linux guest with a device of each kind: has each do something, and tells what it saw. The
# kernel passes its option `balloon`, in MiB, on as a variable.
echo "processors online: $(/bin/busybox nproc)"
# The clock chip's alarm, which is asked for at the end.
clock=/sys/class/rtc/rtc0
alarm=$(($(/bin/busybox cat $clock/since_epoch) + 2))
echo $alarm >$clock/wakealarm
for device in vda pmem0; do
    echo "$device: $(/bin/busybox head -c 9 /dev/$device)"
    /bin/busybox dd if=/dev/$device of=/dev/$device bs=4096 count=1 seek=1 conv=fsync 2>/dev/null && echo "$device flushed: yes"
done
echo "entropy: $(/bin/busybox dd if=/dev/hwrng bs=64 count=1 iflag=fullblock 2>/dev/null | /bin/busybox wc -c) bytes"
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 172.16.2.2/24 dev eth0
echo "pings: $(/bin/busybox ping -c 1 172.16.2.1 2>&1 | /bin/busybox sed -n 's/ packets received.*//; s/.*, //p')"
/bin/sockets call vsock 5000 1
# The balloon began when its module was loaded. Without the module its pages are the guest's again, and then the device
# has answered for each.
pages() { /bin/busybox sed -n "s/^balloon_$1 //p" /proc/vmstat; }
while [ "$(pages inflate)" -lt $((balloon * 256)) ]; do /bin/busybox usleep 1000; done
/bin/busybox rmmod virtio_balloon
echo "balloon: $(pages inflate) pages, and $(pages deflate) again"
interrupts() { /bin/busybox awk '/ rtc0$/ { print $2 + $3 }' /proc/interrupts; }
while [ "$(interrupts)" = 0 ] && [ "$(/bin/busybox cat $clock/since_epoch)" -le $((alarm + 5)) ]; do
    /bin/busybox usleep 10000
done
late=$(($(/bin/busybox cat $clock/since_epoch) - alarm))
echo "alarm: $(interrupts) interrupt, seconds too early: $((late < 0 ? -late : 0))"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|I/O error|NETDEV WATCHDOG|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f
