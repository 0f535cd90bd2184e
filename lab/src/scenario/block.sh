set -e
# The disks are made in the host: their holes are then the host's own.
for image in disk many; do
    dd if=/dev/zero of="$image" bs=512 count=0 seek="$sectors" 2>/dev/null
done
mkfifo keys
launch <keys >console &
launcher=$!
exec 3>keys
until_it_says filled
before=$(taken)
filled=$(sed -n 's/^filled: \([0-9]*\) MiB.*/\1/p' console)
echo go >&3
until_it_says freed
# Linux reports what has been free for two seconds, in pieces of 2 MiB and more: not all of it.
for _ in $(seq 30); do
    [ "$(taken)" -gt $((before - filled * 1024 / 2)) ] && kill -0 "$launcher" || break
    sleep 1
done
echo "host filled: $before"
echo "host freed: $(taken)"
echo go >&3
status=0
wait "$launcher" || status=$?
cat console
sum() { dd if="$1" bs=1M count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1; }
echo "on the host: $(sum disk)"
echo "many on the host: $(sum many)"
echo "other on the host: $(head -c 9 other)"
exit "$status"
