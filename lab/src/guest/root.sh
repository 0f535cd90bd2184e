# The first program of a Linux guest whose root is a disk: as a distribution's own would, mounts what the kernel's
# command line names, and goes on from there.
read -r options </proc/cmdline
for option in $options; do
    case $option in
    root=*) root=${option#root=} ;;
    ro | rw) access=$option ;;
    esac
done
# A partition's name of this kind is its disk's signature, at 440, and its number.
named=$root
for disk in /dev/vd?; do
    signature=$(/bin/busybox dd if="$disk" bs=1 skip=440 count=4 2>/dev/null |
        /bin/busybox hexdump -e '1/4 "%08x"')
    if [ "$root" = "PARTUUID=$signature-${root#*-}" ]; then root=$disk$((0x${root#*-})); fi
done
echo "root device: $root, named $named"
/bin/busybox mkdir -p /root
/bin/busybox mount -t ext4 -o "$access" "$root" /root || echo "trouble: no root"
for folder in proc sys dev; do /bin/busybox mount -o move /$folder /root/$folder; done
exec /bin/busybox switch_root /root /sbin/init
