set -e
# The disk is made in the host: its holes are then the host's own.
dd if=/dev/zero of=disk-root-data bs=1M count=0 seek="$mib" 2>/dev/null
mkfifo keys-root
launch <keys-root >console &
launcher=$!
exec 3>keys-root
# Of a launcher that is gone, its output tells.
trap '' PIPE
type() { echo "$*" >&3 || true; }
until_it_says root
type 'echo "answer: $((6 * 7))"'
until_it_says answer
type 'mount -t squashfs /dev/vdb /mnt && cat /mnt/word'
until_it_says squashfs
type "stream write /dev/vdc $mib 1"
until_it_says flushed
# What is read now comes from the disk.
type "echo 3 >/proc/sys/vm/drop_caches; stream read /dev/vdc $mib"
until_it_says read
type "dmesg | grep -E 'WARNING: CPU|BUG:|Oops|EXT4-fs error|I/O error|lockup' | sed 's/^/trouble: /'; echo 'log: seen'"
until_it_says log
type "echo 3 >/proc/sys/vm/drop_caches; stream write /dev/vdc $mib 2"
# Busy, so that the launcher does little more than it had done when the guest's fsync returned: the line's end is there,
# though perhaps not the next one's beginning.
line="^flushed: [0-9]*$(printf '\r')"
while [ "$(grep -c "$line" console)" -lt 2 ]; do kill -0 "$launcher" || break; done
kill -9 "$launcher" || true
status=0
wait "$launcher" || status=$?
cat console
echo
echo "the launcher's status: $status"
chmod +x stream
./stream read disk-root-data "$mib" 2>&1 | sed 's/^/host /'
rm disk-root-data keys-root
# Such a guest comes to no end of its own; one that did not get that far may be the emulator's fault.
if grep -q '^root device: ' console; then echo "$end"; fi
