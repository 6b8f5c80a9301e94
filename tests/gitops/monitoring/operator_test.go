package monitoring

import (
	"testing"

	operator "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
)

// The newest types of the Prometheus operator. An older version's CRDs judge in tests/chart, in a real API server.
func TestTheOperatorsTypesTakeWhatIsRendered(t *testing.T) {
	rules, monitors := 0, 0
	for _, object := range render(t, "everything") {
		if object.APIVersion != operator.SchemeGroupVersion.String() {
			continue
		}
		switch object.Kind {
		case operator.PrometheusRuleKind:
			var rule operator.PrometheusRule
			object.into(t, &rule)
			for _, group := range rule.Spec.Groups {
				rules += len(group.Rules)
			}
		case operator.ServiceMonitorsKind:
			var monitor operator.ServiceMonitor
			object.into(t, &monitor)
			monitors += len(monitor.Spec.Endpoints)
		default:
			t.Errorf("%s %s: which type of the operator's is that?", object.Kind, object.Metadata.Name)
		}
	}
	if rules < 40 || monitors != 2 {
		t.Errorf("%d rules and %d endpoints were read", rules, monitors)
	}
}
