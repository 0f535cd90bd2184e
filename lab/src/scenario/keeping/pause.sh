# Three stops of ten seconds: frozen, advanced, and one that nobody planned. Between them the witness looks.
# The guest's page passes on what the kernel says of its clock, whom nobody keeps here.
./witness keep
start "witness=40 $OPTIONS"
sums 5
ctl put /time '{"policy": "freeze"}'
mark freeze-before; ctl pause; mark freeze-paused
sleep 10
mark freeze-resuming; ctl resume; mark freeze-after
sums 9
ctl put /time '{"policy": "advance"}'
mark advance-before; ctl pause; mark advance-paused
sleep 10
mark advance-resuming; ctl resume; mark advance-after
sums 13
mark stop-before; kill -STOP $launcher; mark stop-stopped
sleep 10
mark stop-continuing; kill -CONT $launcher; mark stop-after
finish
