# Three stops of ten seconds: frozen, advanced, and one that nobody planned. Between them the witness looks, for some
# $SUMS seconds.
# The guest's page passes on what the kernel says of its clock, whom nobody keeps here.
./witness keep
start "witness=$SECONDS_IN_ALL $OPTIONS"
looked=$SUMS
sums $looked
ctl put /time '{"policy": "freeze"}'
mark freeze-before; ctl pause; mark freeze-paused
sleep 10
mark freeze-resuming; ctl resume; mark freeze-after
looked=$((looked + SUMS - 1))
sums $looked
ctl put /time '{"policy": "advance"}'
mark advance-before; ctl pause; mark advance-paused
sleep 10
mark advance-resuming; ctl resume; mark advance-after
looked=$((looked + SUMS - 1))
sums $looked
mark stop-before; kill -STOP $launcher; mark stop-stopped
sleep 10
mark stop-continuing; kill -CONT $launcher; mark stop-after
finish
