// The Prometheus operator, of which the tests take the CRDs; setup-prometheus-crds.sh fetches it. Nothing of it is built.
//
// The newest version that Go's module proxy has of the operator itself; its types have a module of their own, and newer
// versions, which tests/gitops reads our objects by.
module instanceaccess.dev/lab/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
