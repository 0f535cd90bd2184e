set -e
# Room for a quarter of the first disk.
mkdir small
mount -t tmpfs -o size=256k none small
truncate -s $len small/image
truncate -s $len other
tunctl -t tap-faults >/dev/null
ip link set tap-faults up
mkfifo input
launch <input >output 2>errors &
exec 3>input
# Busy, since the guest says it within a second.
until_says() { while ! grep -q "^$1\$" output; do kill -0 $!; done; }
until_says ready
ip link del dev tap-faults
rm other
echo >&3
until_says 'ready again'
mount -o remount,size=4m small
echo >&3
until_says flushed
kill -9 $!
wait $! || echo "the launcher's status: $?"
cmp small/image full && echo 'nothing flushed is lost'
umount -l small
cat output
sed 's/^/log: /' errors
