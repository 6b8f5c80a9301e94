// Package gitops asks the code that GitOps tools are built of what it makes of our objects.
//
// objects/ holds one object for each row of the design's table of conditions; the operator's own decisions made them. The
// scripts and expressions are read from the files in docs/gitops that users install.
package gitops

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	fluxstatus "github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
	"sigs.k8s.io/yaml"
)

// Set to write the table in docs/gitops/README.md anew.
const update = "UPDATE_DOCS"

const docs = "../../docs/gitops/"

// What each engine is to say of an object. kstatus is not ours to write: where it differs from what we want to be said,
// the page tells so. What no version makes yet has a situation in brackets, and is not on the page.
type row struct {
	object, situation     string
	argo, kstatus, checks string
}

var rows = []row{
	{"new", "just created, not looked at yet", "Progressing", "InProgress", "InProgress"},
	{"pending-approval", "waits for people: `PendingApproval`", "Suspended", "InProgress", "InProgress"},
	{"scheduled", "waits for its `startTime`", "Suspended", "InProgress", "InProgress"},
	{"granting", "granted, first push under way", "Progressing", "InProgress", "InProgress"},
	{"granted", "usable now", "Healthy", "Current", "Current"},
	{"granted-change-unseen", "usable, `revoke` just set and not seen yet", "Progressing", "InProgress", "InProgress"},
	{"expired", "over: `Expired`", "Healthy", "Current", "Current"},
	{"expired-before-grant", "over: `endTime` was past when it was created", "Healthy", "Current", "Current"},
	{"revoked", "over: `Revoked`", "Healthy", "Current", "Current"},
	{"released", "over: `Released`, the object about to go", "Progressing", "Terminating", "InProgress"},
	{"consumed", "over: `Consumed`, it had its grant before and was made anew", "Healthy", "Current", "Current"},
	{"denied-by-policy", "refused: `DeniedByPolicy`", "Degraded", "Failed", "Failed"},
	{"denied-invalid-spec", "refused: `InvalidSpec`", "Degraded", "Failed", "Failed"},
	{"denied-by-approver", "refused: `DeniedByApprover`", "Degraded", "Failed", "Failed"},
	{"denied-approval-timeout", "refused: `ApprovalTimeout`", "Degraded", "Failed", "Failed"},
	{"denied-limit-reached", "refused: `LimitReached`", "Degraded", "Failed", "Failed"},
	{"requester-unchecked", "refused: `RequesterUnchecked`", "Degraded", "Failed", "Failed"},
	{"instance-not-running", "cannot be served, may heal: `InstanceNotRunning`", "Progressing", "InProgress", "InProgress"},
	{"target-not-found-yet", "cannot be served, may heal: `TargetNotFound`", "Progressing", "InProgress", "InProgress"},
	{"aws-unavailable", "cannot be served, may heal: `AwsUnavailable`", "Progressing", "InProgress", "InProgress"},
	{"no-route", "cannot be served, may heal: `NoRoute`", "Progressing", "InProgress", "InProgress"},
	{"enforcement-missing", "waits for an administrator, goes on by itself: `EnforcementMissing`", "Progressing", "InProgress", "InProgress"},
	{"throttled", "granted, and the key fell out: `Throttled`", "Progressing", "InProgress", "InProgress"},
	{"audit-unavailable", "approved, and the trail takes no record: `AuditUnavailable`", "Progressing", "InProgress", "InProgress"},
	{"contact-lost", "granted, and the operator hears nothing: `ContactLost`", "Progressing", "InProgress", "InProgress"},
	{"instance-terminated", "cannot be served, will not heal: `InstanceTerminated`", "Degraded", "Failed", "Failed"},
	{"target-not-found", "cannot be served, will not heal: `TargetNotFound`", "Degraded", "Failed", "Failed"},
	{"target-ambiguous", "cannot be served, will not heal: `TargetAmbiguous`", "Degraded", "Failed", "Failed"},
	{"decision-unreadable", "somebody must act: `DecisionUnreadable`", "Degraded", "Failed", "Failed"},
	{"access-denied", "granted, and somebody must act: `AccessDenied`", "Degraded", "Failed", "Failed"},
	{"push-refused", "granted, and AWS refuses for good: `PushRefused`", "Degraded", "Failed", "Failed"},
	{"revocation-pending", "being taken back: `RevocationPending`", "Progressing", "InProgress", "InProgress"},
	{"deleting", "being deleted", "Progressing", "Terminating", "InProgress"},
	{"revocation-stalled", "(cannot be taken back)", "Degraded", "Failed", "Failed"},
	{"policy-new", "policy: not read yet", "Progressing", "InProgress", "InProgress"},
	{"policy-ready", "policy: `Ready`", "Healthy", "Current", "Current"},
	// To kstatus, Ready=False is not there yet; Stalled=True is what it fails by.
	{"policy-not-ready", "policy: not `Ready`, it has a mistake", "Degraded", "Failed", "Failed"},
}

func read(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// An object as the API server's clients have it: whole numbers are int64.
func object(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("objects", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	bytes, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(bytes); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return &object
}

// The engines, set up from the files in docs/gitops.
type engines struct {
	scripts map[string]string
	checks  map[string]*cel.StatusEvaluator
}

func theEngines(t *testing.T) engines {
	t.Helper()
	var settings struct {
		APIVersion string            `json:"apiVersion"`
		Kind       string            `json:"kind"`
		Metadata   map[string]string `json:"metadata"`
		Data       map[string]string `json:"data"`
	}
	read(t, docs+"argocd-cm.yaml", &settings)
	scripts := map[string]string{}
	for key, script := range settings.Data {
		// The key's form: operator-manual/health.md of Argo CD.
		kind, found := strings.CutPrefix(key, "resource.customizations.health.instanceaccess.dev_")
		if !found {
			t.Fatalf("argocd-cm.yaml: %s is not the health of one of our kinds", key)
		}
		scripts[kind] = script
	}

	var kustomization struct {
		Spec struct {
			HealthCheckExprs []kustomize.CustomHealthCheck `json:"healthCheckExprs"`
		} `json:"spec"`
	}
	text, err := os.ReadFile(docs + "flux.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &kustomization); err != nil {
		t.Fatal(err)
	}
	checks := map[string]*cel.StatusEvaluator{}
	for _, check := range kustomization.Spec.HealthCheckExprs {
		if check.APIVersion != "instanceaccess.dev/v1alpha1" {
			t.Fatalf("flux.yaml: %s is not our version", check.APIVersion)
		}
		evaluator, err := cel.NewStatusEvaluator(&check.HealthCheckExpressions)
		if err != nil {
			t.Fatalf("flux.yaml, %s: %v", check.Kind, err)
		}
		checks[check.Kind] = evaluator
	}
	for _, kind := range []string{"InstanceAccess", "InstanceAccessPolicy"} {
		if scripts[kind] == "" || checks[kind] == nil || len(scripts) != 2 || len(checks) != 2 {
			t.Fatalf("argocd-cm.yaml and flux.yaml must each judge %s, once", kind)
		}
	}
	return engines{scripts, checks}
}

func (engines engines) argo(object *unstructured.Unstructured) (argoHealth, error) {
	return argo(object, engines.scripts[object.GetKind()])
}

func (engines engines) flux(object *unstructured.Unstructured) (string, error) {
	result, err := engines.checks[object.GetKind()].Evaluate(context.Background(), object)
	if err != nil {
		return "", err
	}
	return result.Status.String(), nil
}

func TestEveryEngineSaysOfEveryObjectWhatThePageSays(t *testing.T) {
	engines := theEngines(t)
	for _, row := range rows {
		object := object(t, row.object)
		health, err := engines.argo(object)
		if err != nil || health.Status != row.argo || health.Message == "" {
			t.Errorf("%s: Argo CD says %+v (%v), wanted %s", row.object, health, err, row.argo)
		}
		plain, err := status.Compute(object)
		if err != nil || plain.Status.String() != row.kstatus {
			t.Errorf("%s: kstatus says %+v (%v), wanted %s", row.object, plain, err, row.kstatus)
		}
		fluxs, err := fluxstatus.Compute(object)
		if err != nil || fluxs.Status.String() != row.kstatus {
			t.Errorf("%s: Flux's and Helm's kstatus says %+v (%v), wanted %s", row.object, fluxs, err, row.kstatus)
		}
		checked, err := engines.flux(object)
		if err != nil || checked != row.checks {
			t.Errorf("%s: healthCheckExprs say %s (%v), wanted %s", row.object, checked, err, row.checks)
		}
	}
}

func TestEveryObjectIsInTheTable(t *testing.T) {
	files, err := filepath.Glob("objects/*.yaml")
	if err != nil || len(files) != len(rows) {
		t.Fatalf("%d objects, %d rows (%v)", len(files), len(rows), err)
	}
}

// A status in which something is missing, or is not known to us, is nobody's proof that all is well.
func TestWhatIsNotSaidIsNotHealthy(t *testing.T) {
	engines := theEngines(t)
	for _, name := range []string{"granted", "expired", "policy-ready"} {
		for what, change := range map[string]func(status map[string]any){
			"no conditions":         func(status map[string]any) { delete(status, "conditions") },
			"an empty list":         func(status map[string]any) { status["conditions"] = []any{} },
			"another generation":    func(status map[string]any) { status["observedGeneration"] = int64(7) },
			"conditions of others":  func(status map[string]any) { renamed(status, "type", "Other") },
			"conditions not known":  func(status map[string]any) { renamed(status, "status", "Unknown") },
			"conditions that fail":  func(status map[string]any) { renamed(status, "status", "False") },
			"only the generation":   func(status map[string]any) { only(status, "observedGeneration") },
			"nothing of it at all ": func(status map[string]any) { only(status) },
		} {
			object := object(t, name)
			change(object.Object["status"].(map[string]any))
			if health, err := engines.argo(object); err != nil || health.Status == "Healthy" || health.Message == "" {
				t.Errorf("%s, %s: Argo CD says %+v (%v)", name, what, health, err)
			}
			if checked, err := engines.flux(object); err != nil || checked == "Current" {
				t.Errorf("%s, %s: healthCheckExprs say %s (%v)", name, what, checked, err)
			}
		}
	}
	bare := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "instanceaccess.dev/v1alpha1", "kind": "InstanceAccess", "metadata": map[string]any{"name": "a"},
	}}
	// Flux alone cannot: its expressions need a status, which the CRD's default sees to.
	if health, err := engines.argo(bare); err != nil || health.Status != "Progressing" {
		t.Errorf("without status: Argo CD says %+v (%v)", health, err)
	}
}

func renamed(status map[string]any, field, value string) {
	for _, condition := range status["conditions"].([]any) {
		condition.(map[string]any)[field] = value
	}
}

func only(status map[string]any, kept ...string) {
	for field := range status {
		if len(kept) == 0 || field != kept[0] {
			delete(status, field)
		}
	}
}

// Argo CD asks no script about what is being deleted; should another version ask, the answer is the same.
func TestTheScriptsKnowADeletionThemselves(t *testing.T) {
	engines := theEngines(t)
	for _, row := range rows {
		object := object(t, row.object)
		metadata := object.Object["metadata"].(map[string]any)
		metadata["deletionTimestamp"] = "2026-03-01T08:00:00Z"
		health, err := runScript(object, engines.scripts[object.GetKind()])
		if err != nil || health.Status != "Progressing" {
			t.Errorf("%s, being deleted: the script says %+v (%v)", row.object, health, err)
		}
	}
}

func TestThePageShowsThisTable(t *testing.T) {
	const from, to = "<!-- generated: health -->\n", "<!-- end of health -->"
	var table strings.Builder
	table.WriteString("\n| situation | Argo CD | kstatus | `healthCheckExprs` |\n|---|---|---|---|\n")
	for _, row := range rows {
		if strings.HasPrefix(row.situation, "(") {
			continue
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", row.situation, row.argo, row.kstatus, row.checks)
	}
	table.WriteString("\n")
	path := docs + "README.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), from)
	stands, after, ended := strings.Cut(rest, to)
	if !found || !ended {
		t.Fatalf("%s has no part between %q and %q", path, from, to)
	}
	if os.Getenv(update) != "" {
		if err := os.WriteFile(path, []byte(before+from+table.String()+to+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if stands != table.String() {
		t.Fatalf("the table in %s is stale; run %s=1 make gitops", path, update)
	}
}
