set -e
./keeptime --api-sock api.socket --id debian >console &
launcher=$!
# What clients are told goes to standard error, but for what the host says.
ask() {
    ./loader --library-path . ./curl --silent --show-error --fail-with-body \
        --unix-socket api.socket --request "$1" "http://localhost/$2" ${3:+--data "$3"}
}
api() { ask "$@" >&2; }
until_told() { until ask GET balloon/statistics | grep -q "$1"; do kill -0 "$launcher" || break; sleep 1; done; }
until [ -S api.socket ]; do sleep 1; done
api PUT boot-source "$boot_source"
api PUT machine-config "$machine"
api PUT balloon '{"amount_mib":0,"deflate_on_oom":false,"stats_polling_interval_s":1,"free_page_hinting":true}'
api PUT actions '{"action_type":"InstanceStart"}'
for pause in 1 2 3; do
    api PATCH vm '{"state":"Paused"}'; api GET ''; sleep 1
    api PATCH vm '{"state":"Resumed"}'; sleep 1
done
until_it_says touched
echo "host before: $(taken)"
api PATCH balloon "{\"amount_mib\":$balloon}"
until_it_says 'with a balloon'
total=$(sed -n 's/^with a balloon: \([0-9]*\) kB.*/\1/p' console)
until_told "\"actual_mib\":$balloon,.*\"total_memory\":$((total * 1024))"
echo "host with a balloon: $(taken)"
echo "host statistics: $(ask GET balloon/statistics)"
# The guest names the pages that are free, and has them back at the end.
api PATCH balloon/hinting/start
until ask GET balloon/hinting/status | grep -q '"host_cmd":1[,}]'; do kill -0 "$launcher" || break; sleep 1; done
echo "host hinting: $(ask GET balloon/hinting/status)"
echo "host without what is free: $(taken)"
api PATCH balloon '{"amount_mib":0}'
status=0
wait "$launcher" || status=$?
cat console
exit "$status"
