package monitoring

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// One end of a connection: a pod, or an address outside of the cluster, which has no namespace.
type end struct {
	address   netip.Addr
	namespace string
	labels    labels.Set
	ports     []core.ContainerPort
}

// Whether policies let a connection be opened, as Kubernetes says of a NetworkPolicy: a pod that one selects for a direction
// may, in that direction, what any rule of those that select it allows; who is selected by none may all.
func allowed(t *testing.T, policies []networking.NetworkPolicy, from, to end, port int32, protocol core.Protocol) bool {
	t.Helper()
	leaves, enters := true, true
	for _, kind := range []networking.PolicyType{networking.PolicyTypeEgress, networking.PolicyTypeIngress} {
		selected, matched := false, false
		for _, policy := range policies {
			held, peer := from, to
			if kind == networking.PolicyTypeIngress {
				held, peer = to, from
			}
			if policy.Namespace != held.namespace || !slices.Contains(policy.Spec.PolicyTypes, kind) ||
				!selects(t, &policy.Spec.PodSelector, held.labels) {
				continue
			}
			selected = true
			if kind == networking.PolicyTypeEgress {
				for _, rule := range policy.Spec.Egress {
					matched = matched || takesPort(rule.Ports, to, port, protocol) && takesPeer(t, policy.Namespace, rule.To, peer)
				}
			} else {
				for _, rule := range policy.Spec.Ingress {
					matched = matched || takesPort(rule.Ports, to, port, protocol) && takesPeer(t, policy.Namespace, rule.From, peer)
				}
			}
		}
		if kind == networking.PolicyTypeEgress {
			leaves = !selected || matched
		} else {
			enters = !selected || matched
		}
	}
	return leaves && enters
}

func selects(t *testing.T, selector *meta.LabelSelector, set labels.Set) bool {
	t.Helper()
	parsed, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Matches(set)
}

// A name is that of a port of the pod which is connected to. No ports are all.
func takesPort(ports []networking.NetworkPolicyPort, to end, port int32, protocol core.Protocol) bool {
	if len(ports) == 0 {
		return true
	}
	return slices.ContainsFunc(ports, func(rule networking.NetworkPolicyPort) bool {
		if wanted := rule.Protocol; wanted != nil && *wanted != protocol || wanted == nil && protocol != core.ProtocolTCP {
			return false
		}
		switch {
		case rule.Port == nil:
			return true
		case rule.Port.Type == intstr.String:
			return slices.ContainsFunc(to.ports, func(named core.ContainerPort) bool {
				return named.Name == rule.Port.StrVal && named.ContainerPort == port
			})
		case rule.EndPort != nil:
			return rule.Port.IntVal <= port && port <= *rule.EndPort
		}
		return rule.Port.IntVal == port
	})
}

// No peers are all. A selector of pods alone means those of the policy's own namespace.
func takesPeer(t *testing.T, own string, peers []networking.NetworkPolicyPeer, peer end) bool {
	t.Helper()
	if len(peers) == 0 {
		return true
	}
	return slices.ContainsFunc(peers, func(rule networking.NetworkPolicyPeer) bool {
		if block := rule.IPBlock; block != nil {
			within := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(peer.address) }
			return within(block.CIDR) && !slices.ContainsFunc(block.Except, within)
		}
		if peer.namespace == "" {
			return false
		}
		if rule.NamespaceSelector == nil && peer.namespace != own {
			return false
		}
		named := labels.Set{"kubernetes.io/metadata.name": peer.namespace}
		return (rule.NamespaceSelector == nil || selects(t, rule.NamespaceSelector, named)) &&
			(rule.PodSelector == nil || selects(t, rule.PodSelector, peer.labels))
	})
}

// Who there is beside our pods.
func others(test labels.Set) map[string]end {
	outside := func(address string) end { return end{address: netip.MustParseAddr(address)} }
	pod := func(address, namespace string, set labels.Set) end {
		return end{address: netip.MustParseAddr(address), namespace: namespace, labels: set}
	}
	return map[string]end{
		"DNS":                   pod("10.64.0.10", "kube-system", labels.Set{"k8s-app": "kube-dns"}),
		"DNS on the node":       outside("169.254.20.10"),
		"the API server":        outside("10.100.0.1"),
		"AWS":                   outside("198.51.100.44"),
		"AWS by IPv6":           outside("2001:db8:a::44"),
		"Pod Identity":          outside("169.254.170.23"),
		"Pod Identity by IPv6":  outside("fd00:ec2::23"),
		"IMDS":                  outside("169.254.169.254"),
		"IMDS by IPv6":          outside("fd00:ec2::254"),
		"an instance":           outside("10.0.7.7"),
		"an instance by IPv6":   outside("2001:db8:1::7"),
		"another host":          outside("10.9.7.7"),
		"a client":              outside("203.0.113.7"),
		"another client":        outside("198.51.100.7"),
		"Prometheus":            pod("10.64.1.1", "monitoring", labels.Set{"app.kubernetes.io/name": "prometheus"}),
		"a collector":           pod("10.64.1.2", "observability", labels.Set{"app": "collector"}),
		"a stranger":            pod("10.64.1.3", "ops", labels.Set{"app": "stranger"}),
		"a stranger elsewhere":  pod("10.64.1.4", "team", labels.Set{"app": "stranger"}),
		"a false test":          pod("10.64.1.5", "team", test),
		"a false test's target": pod("10.64.1.6", "team", labels.Set{"app.kubernetes.io/component": "gateway"}),
	}
}

// What the chart's NetworkPolicies are to let through, and what not. A port is a number, or the name of one of the pod that
// is connected to.
type flow struct {
	from, to, port string
	allowed        bool
}

const yes, no = true, false

// What holds however the policies are set.
var always = []flow{
	// Our programs call names, the API server and AWS.
	{"controller", "DNS", "53/UDP", yes},
	{"controller", "DNS", "53", yes},
	{"controller", "DNS on the node", "53/UDP", yes},
	{"controller", "the API server", "443", yes},
	{"controller", "the API server", "6443", yes},
	{"controller", "AWS", "443", yes},
	{"controller", "AWS by IPv6", "443", yes},
	{"controller", "Pod Identity", "80", yes},
	{"controller", "Pod Identity by IPv6", "80", yes},
	{"gateway", "DNS", "53/UDP", yes},
	{"gateway", "DNS", "53", yes},
	{"gateway", "DNS on the node", "53/UDP", yes},
	{"gateway", "the API server", "443", yes},
	{"gateway", "the API server", "6443", yes},
	{"gateway", "AWS", "443", yes},
	{"gateway", "Pod Identity", "80", yes},
	{"gateway", "Pod Identity by IPv6", "80", yes},
	{"gateway", "an instance", "22", yes},
	// And nobody else: the controller no instance, the gateway none that is not named, and neither of them the other.
	{"controller", "AWS", "80", no},
	{"controller", "AWS", "22", no},
	{"controller", "AWS", "443/UDP", no},
	{"controller", "IMDS by IPv6", "80", no},
	{"controller", "an instance", "22", no},
	{"controller", "a stranger", "8080", no},
	{"controller", "gateway", "ssh", no},
	{"controller", "gateway", "metrics", no},
	{"gateway", "AWS", "80", no},
	{"gateway", "IMDS by IPv6", "80", no},
	{"gateway", "an instance", "3306", no},
	{"gateway", "an instance", "22/UDP", no},
	{"gateway", "another host", "22", no},
	{"gateway", "AWS", "22", no},
	{"gateway", "a stranger", "22", no},
	{"gateway", "controller", "metrics", no},
	{"gateway", "gateway", "metrics", no},
	// Who has no business with the metrics.
	{"a stranger", "controller", "metrics", no},
	{"a stranger", "gateway", "metrics", no},
	{"a stranger elsewhere", "controller", "metrics", no},
	{"a false test", "controller", "metrics", no},
	{"a false test", "gateway", "metrics", no},
	{"a client", "controller", "metrics", no},
	{"a client", "gateway", "metrics", no},
	{"Prometheus", "controller", "22", no},
	{"a client", "controller", "ssh", no},
	// helm test asks what it asks, and nothing else; nobody asks it.
	{"test", "DNS", "53/UDP", yes},
	{"test", "controller", "metrics", yes},
	{"test", "gateway", "metrics", yes},
	{"test", "gateway", "ssh", yes},
	{"test", "AWS", "443", no},
	{"test", "the API server", "443", no},
	{"test", "an instance", "22", no},
	{"test", "Pod Identity", "80", no},
	{"test", "a stranger", "8080", no},
	{"test", "a false test's target", "ssh", no},
	{"a stranger", "test", "8080", no},
	{"controller", "test", "443", no},
}

const toCollector = `[{"to":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"observability"}}}],` +
	`"ports":[{"port":4318,"protocol":"TCP"}]}]`

func TestTheNetworkPoliciesLetThroughWhatIsNeededAndNothingElse(t *testing.T) {
	for _, set := range []struct {
		values string
		more   []string
		flows  []flow
	}{
		// As they are by default: nobody is named yet.
		{"pod-identity", nil, []flow{
			{"Prometheus", "controller", "metrics", no},
			{"Prometheus", "gateway", "metrics", no},
			{"a client", "gateway", "ssh", yes},
			{"another client", "gateway", "ssh", yes},
			{"a stranger elsewhere", "gateway", "ssh", yes},
			{"gateway", "gateway", "ssh", no},
			{"controller", "IMDS", "80", no},
			{"gateway", "IMDS", "80", no},
			{"gateway", "an instance", "2222", no},
			{"gateway", "an instance by IPv6", "22", no},
			{"controller", "a collector", "4318", no},
			{"gateway", "a collector", "4318", no},
		}},
		// Prometheus, the instance metadata service, clients and more instances are named.
		{"everything", nil, []flow{
			{"Prometheus", "controller", "metrics", yes},
			{"Prometheus", "gateway", "metrics", yes},
			{"Prometheus", "gateway", "ssh", no},
			{"a client", "gateway", "ssh", yes},
			{"another client", "gateway", "ssh", no},
			{"a stranger", "gateway", "ssh", no},
			{"a false test", "gateway", "ssh", no},
			{"controller", "IMDS", "80", yes},
			{"gateway", "IMDS", "80", yes},
			{"gateway", "an instance", "2222", yes},
			{"gateway", "an instance by IPv6", "22", yes},
			{"gateway", "an instance by IPv6", "8443", no},
		}},
		// As docs/tracing.md says of a collector, both ways.
		{"pod-identity", []string{"--set=networkPolicy.tcpPorts={443,6443,4318}"}, []flow{
			{"controller", "a collector", "4318", yes},
			{"gateway", "a collector", "4318", yes},
			{"test", "a collector", "4318", no},
			{"controller", "a collector", "4317", no},
		}},
		{"pod-identity", []string{"--set-json=networkPolicy.egress=" + toCollector}, []flow{
			{"controller", "a collector", "4318", yes},
			{"gateway", "a collector", "4318", no},
			{"controller", "a stranger", "4318", no},
			{"controller", "AWS", "4318", no},
		}},
		{"pod-identity", []string{"--set-json=gateway.networkPolicy.egress=" + toCollector}, []flow{
			{"controller", "a collector", "4318", no},
			{"gateway", "a collector", "4318", yes},
			{"gateway", "an instance", "4318", no},
		}},
	} {
		objects := render(t, set.values, set.more...)
		policies, ends := policiesAndPods(t, objects)
		for name, other := range others(ends["test"].labels) {
			ends[name] = other
		}
		for _, flow := range append(slices.Clone(always), set.flows...) {
			from, known := ends[flow.from]
			to, knownToo := ends[flow.to]
			if !known || !knownToo {
				t.Fatalf("%+v: who is that?", flow)
			}
			port, protocol := portOf(t, to, flow.port)
			if allowed(t, policies, from, to, port, protocol) != flow.allowed {
				t.Errorf("%s %v: %s to %s, port %s: wanted %v", set.values, set.more, flow.from, flow.to, flow.port, flow.allowed)
			}
		}
	}
}

// The policies, and the pods that the workloads would make, with the labels and ports that these have.
func policiesAndPods(t *testing.T, objects []rendered) ([]networking.NetworkPolicy, map[string]end) {
	t.Helper()
	var policies []networking.NetworkPolicy
	ends := map[string]end{}
	add := func(template core.PodTemplateSpec) {
		const component = "app.kubernetes.io/component"
		address := netip.MustParseAddr(fmt.Sprintf("10.64.0.%d", 20+len(ends)))
		ends[template.Labels[component]] = end{address, "ops", template.Labels, template.Spec.Containers[0].Ports}
	}
	for _, object := range objects {
		switch object.Kind {
		case "NetworkPolicy":
			var policy networking.NetworkPolicy
			object.into(t, &policy)
			policies = append(policies, policy)
		case "StatefulSet":
			var set apps.StatefulSet
			object.into(t, &set)
			add(set.Spec.Template)
		case "Job":
			var job batch.Job
			object.into(t, &job)
			add(job.Spec.Template)
		}
	}
	if len(policies) != 3 || len(ends) != 3 {
		t.Fatalf("%d policies, and pods of %d kinds", len(policies), len(ends))
	}
	return policies, ends
}

// A port by its number or by its name in the pod, and its protocol. Of a name that the pod has not, as of SSH at the
// controller, it is the gateway's usual one.
func portOf(t *testing.T, to end, port string) (int32, core.Protocol) {
	t.Helper()
	protocol := core.ProtocolTCP
	if number, udp := strings.CutSuffix(port, "/UDP"); udp {
		port, protocol = number, core.ProtocolUDP
	}
	for _, named := range to.ports {
		if named.Name == port {
			return named.ContainerPort, protocol
		}
	}
	if port == "ssh" {
		return 2222, protocol
	}
	number, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int32(number), protocol
}
