# The first program of a tenant's Linux guest: uses its disk and its network card, and tells what
# it saw.
echo "processors online: $(/bin/busybox nproc)"
/bin/busybox dd if=/dev/urandom of=/data bs=1M count=8 2>/dev/null
echo "made: $(/bin/busybox sha256sum </data | /bin/busybox cut -d ' ' -f 1)"
/bin/busybox dd if=/data of=/dev/vda bs=1M conv=fsync 2>/dev/null || echo "trouble: the disk was not written"
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 172.16.0.2/24 dev eth0
echo "pings: $(/bin/busybox ping -c 1 172.16.0.1 2>&1 | /bin/busybox sed -n 's/ packets received.*//; s/.*, //p')"
# Version 1 of the metadata service wants no token.
/bin/busybox ip route add 169.254.169.254 dev eth0
echo "metadata: $(/bin/busybox wget -q -O - http://169.254.169.254/latest/meta-data/name)"
/bin/busybox dmesg | /bin/busybox grep -E 'WARNING: CPU|BUG:|Oops|I/O error|lockup' |
    /bin/busybox sed 's/^/trouble: /'
echo "--- power off ---"
/bin/busybox poweroff -f
