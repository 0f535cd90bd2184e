set -e
# Room for a quarter of the first disk, and of the third, which is one by io_uring.
for folder in small scant; do
    mkdir $folder
    mount -t tmpfs -o size=256k none $folder
    truncate -s $len $folder/image
done
truncate -s $len other
tunctl -t tap-faults >/dev/null
ip link set tap-faults up
mkfifo input
# Of a launcher that ends too early, too: what it says of its guest tells whether the emulator has lost it.
trap 'cat output; sed "s/^/log: /" errors' EXIT
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
mount -o remount,size=4m scant
echo >&3
until_says flushed
kill -9 $!
wait $! || echo "the launcher's status: $?"
for folder in small scant; do
    cmp $folder/image full && echo 'nothing flushed is lost'
    umount -l $folder
done
