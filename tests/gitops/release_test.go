package gitops

import (
	"bytes"
	"os"
	"strings"
	"testing"

	helm "github.com/fluxcd/helm-controller/api/v2"
	source "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/yaml"
)

// The example for Flux, read by Flux's own types: a field that they do not know is a mistake. What its controllers then do
// is not run here.
func TestTheHelmReleaseIsOneToFlux(t *testing.T) {
	text, err := os.ReadFile(docs + "flux-helmrelease.yaml")
	if err != nil {
		t.Fatal(err)
	}
	documents := bytes.Split(text, []byte("\n---\n"))
	if len(documents) != 2 {
		t.Fatalf("a source and a release, not %d documents", len(documents))
	}
	var repository source.GitRepository
	var release helm.HelmRelease
	for i, into := range []any{&repository, &release} {
		if err := yaml.UnmarshalStrict(documents[i], into); err != nil {
			t.Fatal(err)
		}
	}
	if repository.Kind != source.GitRepositoryKind || repository.APIVersion != source.GroupVersion.String() {
		t.Errorf("%s %s", repository.APIVersion, repository.Kind)
	}
	if release.Kind != helm.HelmReleaseKind || release.APIVersion != helm.GroupVersion.String() {
		t.Errorf("%s %s", release.APIVersion, release.Kind)
	}
	// What the page says of it.
	if name := release.GetReleaseName(); name != "instance-access" {
		t.Errorf("the release is called %s", name)
	}
	if namespace := release.GetReleaseNamespace(); namespace != "instance-access" {
		t.Errorf("its namespace is %s", namespace)
	}
	if !release.GetTest().Enable {
		t.Error("helm test does not run")
	}
	// Whatever fails, it goes on rather than back. It asks for a remediation only where there is no such retry.
	if release.GetInstall().GetRetry(false) == nil || release.GetUpgrade().GetRetry(false) == nil {
		t.Error("a failure leads to a rollback or an uninstall")
	}
	if retries := release.GetUpgrade().GetRemediation(); retries.GetRetries() != 0 || retries.MustRemediateLastFailure() {
		t.Errorf("a failed upgrade is rolled back: %+v", retries)
	}
	if !strings.Contains(string(release.Spec.Values.Raw), "gateway-host-key") {
		t.Errorf("the values were not read: %s", release.Spec.Values.Raw)
	}
	// The types refuse what they do not know, or all this says nothing.
	if err := yaml.UnmarshalStrict(append(documents[1], []byte("\n  valuse: {}\n")...), &release); err == nil {
		t.Error("a field that nobody knows was taken")
	}
}
