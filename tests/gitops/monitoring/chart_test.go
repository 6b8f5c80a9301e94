package monitoring

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sigs.k8s.io/yaml"
)

const chart = "../../../charts/instance-access"

// helm, as the tests of the chart have it: built once.
var helm = sync.OnceValues(func() (string, error) {
	setup := exec.Command("../../lab/setup-go-tool.sh", "helm")
	var said bytes.Buffer
	setup.Stderr = &said
	built, err := setup.Output()
	if err != nil {
		return "", fmt.Errorf("setup-go-tool.sh helm: %w: %s", err, said.String())
	}
	return filepath.Join(strings.TrimSpace(string(built)), "helm"), nil
})

// What identifies an object, and the object as it was rendered.
type rendered struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name string `json:"name"`
	} `json:"metadata"`
	text []byte
}

// Reads the object into a type of somebody's, who knows each field of it.
func (object rendered) into(t *testing.T, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(object.text, into); err != nil {
		t.Errorf("%s %s: %v", object.Kind, object.Metadata.Name, err)
	}
}

// What the chart renders of the values in its folder ci, and of more, as release "access" in namespace "ops".
func render(t *testing.T, values string, more ...string) []rendered {
	t.Helper()
	program, err := helm()
	if err != nil {
		t.Fatal(err)
	}
	arguments := []string{"template", "access", chart, "--namespace", "ops", "--values", chart + "/ci/" + values + "-values.yaml"}
	command := exec.Command(program, append(arguments, more...)...)
	var said bytes.Buffer
	command.Env, command.Stderr = []string{"HOME=" + t.TempDir()}, &said
	text, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var objects []rendered
	for _, document := range strings.Split(string(text), "\n---\n") {
		object := rendered{text: []byte(document)}
		if err := yaml.Unmarshal(object.text, &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind != "" {
			objects = append(objects, object)
		}
	}
	return objects
}
