#!/usr/bin/env bash
# Shows the main job on a lab of its own: a request applied with kubectl, a login with stock ssh, a session through the
# gateway, and the end of both.
# Leaves nothing running, however it ends.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${CARGO_TARGET_DIR:-target}/debug"
lab="$target/lab"
operator="$target/instance-access"
work=$(mktemp -d "${TMPDIR:-/tmp}/instance-access-demo.XXXXXX")
export LAB_DIR="$work/lab"
controller=""
gateway=""
session=""
watcher=""

bold=""; plain=""
if [ -t 1 ]; then bold=$(printf '\033[1m'); plain=$(printf '\033[0m'); fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
run() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; "$@"; }

cleanup() {
	status=$?
	trap - EXIT INT TERM
	for process in $watcher $session $gateway $controller; do
		kill "$process" 2>/dev/null || true
		wait "$process" 2>/dev/null || true
	done
	for part in controller gateway; do
		if [ "$status" -ne 0 ] && [ -f "$work/$part.log" ]; then
			echo "-- the $part's last words" >&2
			tail -n 15 "$work/$part.log" >&2
		fi
	done
	"$lab" down 2>/dev/null || true
	rm -rf "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say "A lab: a real API server, a stand-in for AWS, real sshds"
"$lab" up
. "$LAB_DIR/env"
kube() { local person=$1; shift; KUBECONFIG=$("$lab" kubeconfig "$person") kubectl "$@"; }
# NAME ID STATE PRIVATE PUBLIC PORT TAGS
field() { "$lab" instance list | awk -v name="$1" -v field="$2" '$1 == name { print $field }'; }
web=$(field web-1 2)
db=$(field db-1 2)
port=$(field web-1 6) # 22 for root, another for an ordinary user

say "Install: resources, admission policies, the operator's rights"
kube admin create namespace team >/dev/null
"$operator" crds | kube admin apply -f - | sed 's/^/  /'
kube admin wait --for condition=Established crd/instanceaccesses.instanceaccess.dev crd/instanceaccesspolicies.instanceaccess.dev crd/instanceaccessdecisions.instanceaccess.dev crd/instanceaccessledgerentries.instanceaccess.dev >/dev/null
"$operator" admission --operator-service-account instance-access/operator --gateway-service-account instance-access/gateway | kube admin apply -f - | sed 's/^/  /'
kube admin apply -f examples/operator-rbac.yaml -f examples/user-rbac.yaml | sed 's/^/  /'

say "The controller, under its own service account, with ordinary AWS settings"
KUBECONFIG=$("$lab" kubeconfig --service-account instance-access/operator) \
	"$operator" controller --audit-file "$work/audit.jsonl" --gateway-service-account instance-access/gateway --listen 127.0.0.1:0 2>"$work/controller.log" &
controller=$!
echo "  instance-access controller --audit-file $work/audit.jsonl --gateway-service-account instance-access/gateway (process $controller)"

say "The gateway, a jump host, under an account that may read requests, write its own entry of status.sessions, and nothing else"
kube admin apply -f examples/gateway-rbac.yaml | sed 's/^/  /'
# The lab's instances have loopback addresses, which a gateway dials only if it is told what not to dial instead.
KUBECONFIG=$("$lab" kubeconfig --service-account instance-access/gateway) \
	"$operator" gateway --host-key-file "$work/host_key" --audit-file "$work/sessions.jsonl" --ports "$port" \
	--ssh-listen 127.0.0.1:0 --listen 127.0.0.1:0 --never-dial 127.0.0.1/32,::1/128 2>"$work/gateway.log" &
gateway=$!
echo "  instance-access gateway --host-key-file $work/host_key --audit-file $work/sessions.jsonl (process $gateway)"

say "A policy: developers may log in to dev instances as ec2-user, for an hour at most"
cat >"$work/policy.yaml" <<YAML
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccessPolicy
metadata: {name: developers}
spec:
  effect: Allow
  subjects: [{kind: Group, name: developers}]
  namespaces: [team]
  targets: {instanceTags: {matchLabels: {env: dev}}}
  osUsers: [ec2-user]
  ttl: {defaultSeconds: 1800, maxSeconds: 3600}
  reason: {required: true}
YAML
run cat "$work/policy.yaml"
kube admin apply -f "$work/policy.yaml"

say "alice asks for two minutes on $web, and names nobody: the API server knows her"
ssh-keygen -q -t ed25519 -N '' -C alice -f "$work/id_alice"
request() { # name, instance, seconds
	cat <<YAML
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccess
metadata: {name: $1, namespace: team}
spec:
  target: {instanceId: $2}
  osUser: ec2-user
  sshPublicKey: $(cat "$work/id_alice.pub")
  connection: {port: $port}
  ttlSeconds: $3
  reason: "INC-4711: look at the logs"
YAML
}
request look "$web" 120 >"$work/request.yaml"
# New resources and admission policies are in force some seconds after they are stored; controller and gateway say when.
ready() { # part
	for _ in $(seq 300); do
		listen=$(sed -n 's/.* started .*\blisten=//p' "$work/$1.log")
		[ -n "$listen" ] && curl -sf "http://$listen/readyz" >/dev/null && return
		sleep 0.1
	done
	echo "the $1 was not ready within 30 s" >&2
	exit 1
}
ready controller
run cat "$work/request.yaml"
# Shows each change of status as it happens, beside what follows. kubectl is the watcher itself, so that it can be ended.
KUBECONFIG=$("$lab" kubeconfig alice) kubectl -n team get instanceaccess --watch --output-watch-events \
	> >(sed -u 's/^/  watch | /') 2>/dev/null &
watcher=$!
kube alice apply -f "$work/request.yaml"
kube alice -n team wait --for condition=Active --timeout 60s instanceaccess/look >/dev/null
run kube alice -n team get instanceaccess look
kube alice -n team get instanceaccess look -o json | jq '.spec.requester | {username, groups}'

say "She logs in with stock ssh, by the command that status gives"
command=$(kube alice -n team get instanceaccess look -o jsonpath='{.status.connection.command}')
login() { # shellcheck disable=SC2086
	$command -i "$work/id_alice" -F none -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile="$LAB_DIR/known_hosts" "$@"
}
printf '%s$ %s -i id_alice "id -un; hostname"%s\n' "$bold" "$command" "$plain"
login 'echo "  logged in as $(id -un)"'

say "And through the gateway, by the instance's name: this session stays open, and prints the time every twenty seconds"
ready gateway
jump=$(sed -n 's/.* started ssh_listen=127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/gateway.log")
"$operator" host-key --host-key-file "$work/host_key" "[127.0.0.1]:$jump" >"$work/known_hosts"
cat >"$work/ssh_config" <<CONFIG
Host gateway
  HostName 127.0.0.1
  Port $jump
Host i-*
  ProxyJump gateway
  User ec2-user
  Port $port
Host *
  IdentityFile $work/id_alice
  IdentitiesOnly yes
  BatchMode yes
  UserKnownHostsFile $work/known_hosts $LAB_DIR/known_hosts
CONFIG
printf '%s$ ssh %s%s\n' "$bold" "$web" "$plain"
# What the terminal shows is kept as well: that it says why it ended is looked at below.
ssh -n -F "$work/ssh_config" "$web" 'while date -u "+session | %H:%M:%S, logged in as $(id -un)"; do sleep 20; done' \
	> >(tee "$work/session.out" | sed -u 's/^/  /') 2>"$work/session.err" &
session=$!
for _ in $(seq 100); do
	grep -q 'logged in as ec2-user' "$work/session.out" 2>/dev/null && break
	sleep 0.1
done
grep -q 'logged in as ec2-user' "$work/session.out"
echo "  another instance by the same way:"
if ssh -F "$work/ssh_config" "$db" true 2>"$work/elsewhere"; then
	echo "the gateway led to an instance that was not granted: that is a bug" >&2
	exit 1
fi
sed 's/^/  /' "$work/elsewhere"
grep -q "is none of your grants' instances" "$work/elsewhere"
kube alice -n team wait --for 'jsonpath={.status.sessions[0].open}=1' --timeout 30s instanceaccess/look >/dev/null
run kube alice -n team get instanceaccess look

say "What policy refuses: a production instance, and three hours"
request prod "$db" 600 | kube alice apply -f -
request long "$web" 10800 | kube alice apply -f -
kube alice -n team wait --for condition=Denied --timeout 60s instanceaccess/prod instanceaccess/long >/dev/null
for name in prod long; do
	kube alice -n team get instanceaccess "$name" -o jsonpath='  {.metadata.name}: {.status.conditions[?(@.type=="Denied")].message}{"\n"}'
done

say "A forged requester never gets past the API server"
if request forged "$web" 600 | sed 's/^spec:/spec:\n  requester: {username: bob}/' | kube alice apply -f - 2>"$work/forged"; then
	echo "the forged requester was taken: that is a bug" >&2
	exit 1
fi
sed 's/^/  /' "$work/forged"
grep -q 'must be your own' "$work/forged"

say "Where it matters, a colleague has to say yes: production takes one of the leads or developers"
cat >"$work/prod.yaml" <<YAML
apiVersion: instanceaccess.dev/v1alpha1
kind: InstanceAccessPolicy
metadata: {name: prod-with-approval}
spec:
  effect: Allow
  subjects: [{kind: Group, name: developers}]
  namespaces: [team]
  targets: {instanceIds: [$db]}
  osUsers: [ec2-user]
  ttl: {defaultSeconds: 600, maxSeconds: 600}
  approval: {count: 1, approvers: [{kind: Group, name: leads}, {kind: Group, name: developers}], deadlineSeconds: 600}
YAML
run kube admin apply -f "$work/prod.yaml"
kube admin wait --for condition=Ready --timeout 60s instanceaccesspolicy/prod-with-approval >/dev/null
request vault "$db" 600 | kube alice apply -f -
kube alice -n team wait --for 'jsonpath={.status.conditions[?(@.type=="Active")].reason}=PendingApproval' --timeout 60s instanceaccess/vault >/dev/null
kube alice -n team get instanceaccess vault -o jsonpath='  {.status.conditions[?(@.type=="Active")].message}{"\n"}'
decide() { # person
	kube "$1" -n team get instanceaccess vault -o go-template='{"apiVersion":"{{.apiVersion}}","kind":"InstanceAccessDecision","metadata":{"generateName":"{{.metadata.name}}-","namespace":"{{.metadata.namespace}}"},"spec":{"decision":"Approve","requestRef":{"name":"{{.metadata.name}}","uid":"{{.metadata.uid}}","specDigest":"{{.status.specDigest}}"}}}' | kube "$1" create -f -
}
echo "  alice says yes to herself, which counts for nothing; then erin, a lead, does"
decide alice
decide erin
kube alice -n team wait --for 'jsonpath={.status.grant.id}' --timeout 60s instanceaccess/vault >/dev/null
run kube alice -n team get instanceaccess vault -o wide
approvers=$(kube alice -n team get instanceaccess vault -o jsonpath='{.status.approvers}')
[ "$approvers" = erin ] || { echo "granted on the word of $approvers: that is a bug" >&2; exit 1; }

expiration=$(kube alice -n team get instanceaccess look -o jsonpath='{.status.grant.expirationTime}')
say "The grant ends at $expiration"
kube alice -n team wait --for condition=Ended --timeout 180s instanceaccess/look >/dev/null
kill "$watcher" 2>/dev/null || true
watcher=""
date -u '+  ended in status, it is now %Y-%m-%dT%H:%M:%SZ'
say "The session was cut, and its terminal says why"
if wait "$session"; then
	echo "the session ended by itself: that is a bug" >&2
	exit 1
fi
session=""
sed 's/^/  /' "$work/session.err"
grep -q 'the grant of look.team has ended: its time is over' "$work/session.err"
say "And no new login"
printf '%s$ %s -i id_alice%s\n' "$bold" "$command" "$plain"
if login true 2>"$work/refused"; then
	echo "the login still works: that is a bug" >&2
	exit 1
fi
sed 's/^/  /' "$work/refused"
grep -q 'Permission denied (publickey)' "$work/refused"

say "The final status"
kube alice -n team get instanceaccess look -o json | jq .status

say "The audit trail, and its chain"
jq -c '{sequence, time, kind: .record.kind, who: .record.requester.username, request: .record.request.name, instance: .record.instanceId, requestId: .record.requestId, cause: .record.cause} | with_entries(select(.value != null))' "$work/audit.jsonl"
head=$(kube alice -n team get instanceaccess look -o json | jq -r '.status.audit | "\(.sequence):\(.digest)"')
for _ in $(seq 100); do
	grep -q SessionEnded "$work/sessions.jsonl" && break
	sleep 0.1
done
echo "  and the gateway's:"
jq -c '{sequence, time, kind: .record.kind, who: .record.requester, instance: .record.instanceId, asked: .record.asked, cause: .record.cause, bytesFromInstance: .record.bytesFromInstance} | with_entries(select(.value != null))' "$work/sessions.jsonl"
jq -es '.[-1].record | .kind == "SessionEnded" and .cause == "Expired"' "$work/sessions.jsonl" >/dev/null
run "$operator" audit verify --head "$head" "$work/audit.jsonl" --trail "$work/sessions.jsonl"

say "Done; the lab goes away"
