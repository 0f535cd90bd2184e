# Two guests whose threads are moved between two CPUs while the TSCs of these come to disagree: `kept`, and `bare`,
# which has no timekeeper.
guest() {
    name=$1
    shift
    mkdir "$name"
    cd "$name" || exit
    ln -s ../keeptime ../kernel ../initrd .
    start "quiet mitigations=off witness=60" --tsc-domain off "$@"
    cd ..
}
# Each on a CPU of its own for its boot, so that nobody has measured the two CPUs against each other before.
taskset -p 1 $$ >/dev/null
guest kept
kept=$launcher
taskset -p 2 $$ >/dev/null
guest bare --test-without-timekeeper
bare=$launcher
taskset -p 3 $$ >/dev/null
# threads GUEST PROCESS: notes its vCPUs' threads.
threads() {
    for task in /proc/"$2"/task/*; do
        read -r thread <"$task/comm"
        case $thread in vcpu[01]) eval "$1_$thread=${task##*/}" ;; esac
    done
}
# put GUEST VCPU CPU
put() { eval "taskset -p $(($3 + 1)) \$$1_vcpu$2" >/dev/null; }
# within_reason CONDITION ...: waits for it, for ten seconds at most.
within_reason() {
    tries=0
    until "$@" || [ $tries -ge 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
}
told_more() { [ "$(grep -c '^w sum' "$1/serial")" -gt "$2" ]; }
# tell PHASE GUEST ...: the next sum of each, and the host's time then.
tell() {
    phase=$1
    shift
    for name in "$@"; do eval "told_$name=$(grep -c '^w sum' "$name/serial")"; done
    for name in "$@"; do
        eval "within_reason told_more $name \$told_$name"
        echo "phase $phase $name $(grep '^w sum' "$name/serial" | tail -n 1) at $(cut -d ' ' -f 1 /proc/uptime)" >&2
    done
}
counted() { [ "$(tr -d ' \n' <kept/report.json | sed 's/.*"restarts":\([0-9]*\).*/\1/')" -ge "$1" ]; }
told_skews() { [ "$(tr -d ' \n' <kept/report.json | grep -o '"what":"skew"' | wc -l)" -ge "$1" ]; }
distrusted() { grep -q kernel_mark kept/report.json; }
# to_and_fro GUEST ...: the two vCPUs of each are on the CPUs 1 0, 1 1, 0 1 and 0 0 by turns: apart, and together.
to_and_fro() {
    for turn in 1 2; do
        for place in "0 1" "1 1" "0 0" "1 0"; do
            for name in "$@"; do put "$name" $place; done
        done
    done
}
until told_more kept 0 && told_more bare 0; do sleep 0.1; done
threads kept $kept
threads bare $bare
put bare 0 0
put bare 1 0
# seen_on CPU: as far as was seen, the first vCPU of `kept` is there.
seen_on() { tr -d ' \n' <kept/report.json | grep -q "\"vcpu\":0,\"cpu\":$1,"; }
# near PHASE TICKS: half a microsecond, less than a move takes. Nobody is on CPU 1 before and after, which is seen, too:
# who goes elsewhere and back between two looks has not left.
skews=0
near() {
    ./unrest skew 1 "$2"
    to_and_fro kept bare
    put kept 0 1
    put bare 0 1
    skews=$((skews + 1))
    within_reason told_skews $skews
    within_reason seen_on 1
    put kept 0 0
    put bare 0 0
    tell "$1" kept bare
    within_reason seen_on 0
}
near ahead 100
near behind -100
echo "near $(tr -d '\n' <kept/report.json)" >&2
# Forward only from here on: no CPU that a vCPU comes to is behind the one that it was on.
./unrest skew 1 20000
put kept 0 1
put bare 0 1
within_reason counted 1
tell apart kept bare
tell later kept bare
put kept 1 1
put bare 1 1
# Nobody is on CPU 0.
./unrest skew 0 600020000
put kept 0 0
put bare 0 0
within_reason counted 2
tell far kept bare
# Whoever closes a vCPU's last descriptor loads that vCPU.
for task in /proc/"$bare"/task/*; do taskset -p 1 "${task##*/}" >/dev/null; done
kill -9 "$bare"
wait "$bare"
# And back.
put kept 0 1
within_reason distrusted
tell back kept
put kept 0 0
put kept 1 0
for ticks in 600000000 -600000000 20000 -20000; do
    # Nobody is on CPU 1.
    ./unrest skew 1 $((600020000 + ticks))
    to_and_fro kept
    tell "by$ticks" kept
done
kill "$kept"
wait "$kept"
for cpu in 0 1; do ./unrest skew $cpu 0; done
echo "report $(tr -d '\n' <kept/report.json)" >&2
for name in kept bare; do cat $name/serial; done
