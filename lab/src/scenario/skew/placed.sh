# A guest that is placed by itself, on a host whose two TSCs disagree; and then by how much they do changes.
./unrest skew 1 20000
start "quiet mitigations=off witness=60" --tsc-domain auto
sums 1
home=$(tr -d ' \n' <report.json | sed 's/.*"placement":{"mode":"auto","cpus":\[\([01]\)\].*/\1/')
other=$((1 - home)) was=$((home * 20000))
echo "home $home" >&2
# after TICKS: the guest's next sum since the other CPU's TSC is so many ticks ahead of the home CPU's.
after() {
    ./unrest skew $other $((was + $1))
    sums $(($(grep -c '^w sum' serial) + 1))
    echo "phase $1 $(grep '^w sum' serial | tail -n 1)" >&2
}
# A neighbour on the home CPU, so that the scheduler would like the vCPUs elsewhere.
taskset $((home + 1)) sh -c 'while :; do :; done' &
neighbour=$!
for ticks in 100 -100 20000 -20000; do after $ticks; done
kill $neighbour
after 600000000
# Whether a guest follows its offset is tried with another guest, and then the clocks are read and set by a thread that
# somebody moves to the other CPU meanwhile, 3 s ahead.
ctl put /time '{"policy": "freeze"}'
taskset -p $((home + 1)) $launcher >/dev/null
ctl pause
taskset -p $((other + 1)) $launcher >/dev/null
ctl resume
sums $(($(grep -c '^w sum' serial) + 2))
echo "frozen $(grep '^w sum' serial | tail -n 1)" >&2
taskset -p 3 $launcher >/dev/null
after -600000000
kill $launcher
wait $launcher
./unrest skew 0 0
./unrest skew 1 0
echo "report $(tr -d '\n' <report.json)" >&2
cat serial
