set -e
# The memories are made in the host, whose files they stay.
dd if=/dev/zero of=memory bs=1M count=0 seek=16 2>/dev/null
mkfifo keys-pmem
launch <keys-pmem >console &
launcher=$!
exec 3>keys-pmem
until_it_says done
kill -9 "$launcher"
wait "$launcher" || echo "the launcher's status: $?"
cat console
echo "on the host: $(dd if=memory bs=1M count=8 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
echo "other on the host: $(head -c 9 memory-other)"
# A file that becomes shorter while a guest has it. Busy, since the guest says it within a second.
dd if=/dev/zero of=memory-cut bs=1M count=0 seek=2 2>/dev/null
cut_short >said 2>errors &
until grep -q '^ready$' said; do kill -0 $! || break; done
truncate -s 4096 memory-cut
printf '\001' | dd of=memory-cut conv=notrunc 2>/dev/null
wait $! || echo "the status where a file was cut short: $?"
sed 's/^/cut short: /' said errors
