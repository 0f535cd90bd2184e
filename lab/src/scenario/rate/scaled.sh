# Two guests at once, at half the host's rate and at 1.7 times that, each in a folder of its own. They are
# watched for three seconds, and looked at once more after eight in which they rest: a second of them costs much less.
khz=$(dmesg | sed -n 's/.*tsc: .* \([0-9]*\)\.\([0-9]*\) MHz.*/\1\2/p' | tail -n 1)
echo "host $khz" >&2
scaled() {
    mkdir "$1"
    cd "$1" || exit
    ln -s ../keeptime ../kernel ../initrd .
    echo "rate $2" >told
    start "quiet mitigations=off witness=3+8" --tsc-khz "$2" 2>>told
    finish >said 2>>told
}
(scaled half $((khz / 2))) &
half=$!
(scaled fast $((khz / 10 * 17))) &
fast=$!
wait $half
half=$?
wait $fast
fast=$?
for name in half fast; do
    sed "s/^/$name /" $name/said
    sed "s/^/$name /" $name/told >&2
done
[ $half$fast = 00 ]
