set -e
# A network of its own, which goes with it.
if [ -z "$within" ]; then within=yes exec unshare --net sh ./interrupted; fi
./busybox tunctl -t tap-interrupted >/dev/null
./busybox ip link set tap-interrupted up
truncate -s $len image
truncate -s $len other
truncate -s 2M memory
mkfifo input
# Every other call of a kind that each thread makes, from its first one on, is interrupted before it does anything.
strace -f -qq --seccomp-bpf -o calls -e "trace=$calls" -e "inject=$calls:error=EINTR:when=1+2" \
    $launch <input >output 2>errors &
tracer=$!
exec 3>input
until_says() { while ! grep -q "^$1\$" output; do kill -0 "$tracer" || { cat errors >&2; exit 1; }; done; }
ask() {
    curl --silent --show-error --fail-with-body --unix-socket api --request "$1" \
        "http://localhost/$2" ${3:+--data "$3"} >>answers
}
until_says ready
echo >&3
for pause in 1 2 3; do
    ask PATCH vm '{"state":"Paused"}'
    ask GET ''
    ask PATCH vm '{"state":"Resumed"}'
done
until_says 'ready again'
# Who comes to the guest's socket, where nobody serves: it is not heard, and not waited for.
for program in 1 2 3; do
    curl --silent --unix-socket socket http://localhost/ >/dev/null || echo "program $program: not served"
done
echo >&3
until_says flushed
# The first call is one of its first thread.
kill -9 "$(head -n 1 calls | cut -d ' ' -f 1)"
wait "$tracer" || echo "the launcher's status: $?"
cmp image full && cmp other full && echo 'nothing flushed is lost'
cat output
echo "paused: $(grep -o '"state":"Paused"' answers | wc -l)"
sed 's/^/log: /' errors
sed -n 's/^[0-9]* *\([a-z0-9_]*\)(.*(INJECTED)$/\1/p' calls | sort | uniq -c | sed 's/^ */interrupted: /'
