# Stops of ten seconds: frozen, advanced, and without $PLANNED one that nobody planned; with $CGROUP a shorter one after
# them, in which the launcher's cgroup is frozen. Between them the witness looks, for some $SUMS seconds.
# The guest's page passes on what the kernel says of its clock, whom nobody keeps here.
./witness keep
start "witness=90 $OPTIONS"
looked=$SUMS
sums $looked
ctl put /time '{"policy": "freeze"}'
mark freeze-before; ctl pause; mark freeze-begun
sleep 10
mark freeze-ending; ctl resume; mark freeze-after
looked=$((looked + SUMS - 1))
sums $looked
ctl put /time '{"policy": "advance"}'
mark advance-before; ctl pause; mark advance-begun
sleep 10
mark advance-ending; ctl resume; mark advance-after
if [ -z "$PLANNED" ]; then
    looked=$((looked + SUMS - 1))
    sums $looked
    mark SIGSTOP-before; kill -STOP $launcher; mark SIGSTOP-begun
    sleep 10
    mark SIGSTOP-ending; kill -CONT $launcher; mark SIGSTOP-after
fi
if [ -n "$CGROUP" ]; then
    looked=$((looked + SUMS - 1))
    sums $looked
    mkdir "$CGROUP"
    mount -t cgroup2 cgroup2 "$CGROUP"
    mkdir "$CGROUP/guest"
    echo $launcher >"$CGROUP/guest/cgroup.procs"
    # The file's write does not wait until all threads have stopped (Documentation/admin-guide/cgroup-v2.rst).
    mark cgroup-before; echo 1 >"$CGROUP/guest/cgroup.freeze"
    until grep -q '^frozen 1$' "$CGROUP/guest/cgroup.events"; do :; done
    mark cgroup-begun
    sleep 6
    mark cgroup-ending; echo 0 >"$CGROUP/guest/cgroup.freeze"; mark cgroup-after
fi
# Its page tells of the last stop after the launcher's next beat.
sums $((looked + SUMS))
enough
finish
