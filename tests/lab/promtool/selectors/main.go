// Tells what PromQL expressions ask for, and whether Prometheus reads a page or takes rules.
//
// Without an argument: the series, the labels that they are picked by, and those that they are joined and
// grouped by. Reads a JSON list of expressions from standard input, and prints a list of findings in the same order.
//
// With the argument `page`: reads a metrics page in the OpenMetrics format, and prints how many series it has.
//
// With the argument `rules`: reads a JSON list of the specs of PrometheusRules, and prints a list of what the Prometheus
// operator would say of each: what is wrong with it, as a list, which is empty for one that it takes. Its admission webhook
// and the operator itself judge so (pkg/operator/rules.go, ValidateRule): by Prometheus' own validator, without unknown
// fields, with names of labels as they were before UTF-8.
//
// The parser is Prometheus' own: a second one in the tests would be tested by nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql/parser"
)

type matcher struct {
	Label string `json:"label"`
	Op    string `json:"op"`
	Value string `json:"value"`
}

type selector struct {
	Metric   string    `json:"metric"`
	Matchers []matcher `json:"matchers"`
}

type finding struct {
	Error     string     `json:"error,omitempty"`
	Selectors []selector `json:"selectors"`
	Labels    []string   `json:"labels"`
}

func page() error {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	parser := textparse.NewOpenMetricsParser(text, labels.NewSymbolTable())
	for series := 0; ; {
		entry, err := parser.Next()
		switch {
		case errors.Is(err, io.EOF):
			fmt.Println(series)
			return nil
		case err != nil:
			return err
		case entry == textparse.EntrySeries:
			series++
		}
	}
}

// How long the text of a PrometheusRule may be: half of a Secret's size. Longer ones the operator drops.
const rulesBytesMax = 512 * 1024

func rules() error {
	var specs []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&specs); err != nil {
		return fmt.Errorf("standard input is no JSON list: %w", err)
	}
	parse := parser.NewParser(parser.Options{})
	findings := make([][]string, 0, len(specs))
	for _, spec := range specs {
		found := []string{}
		if len(spec) > rulesBytesMax {
			found = append(found, fmt.Sprintf("%d bytes are more than %d", len(spec), rulesBytesMax))
		}
		// JSON is YAML.
		_, errs := rulefmt.Parse(spec, false, model.LegacyValidation, parse, slog.New(slog.DiscardHandler))
		for _, err := range errs {
			found = append(found, err.Error())
		}
		findings = append(findings, found)
	}
	return json.NewEncoder(os.Stdout).Encode(findings)
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "rules" {
		if err := rules(); err != nil {
			fmt.Fprintln(os.Stderr, "selectors:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "page" {
		if err := page(); err != nil {
			fmt.Fprintln(os.Stderr, "selectors: not a page that Prometheus reads:", err)
			os.Exit(1)
		}
		return
	}
	var expressions []string
	if err := json.NewDecoder(os.Stdin).Decode(&expressions); err != nil {
		fmt.Fprintln(os.Stderr, "selectors: standard input is no JSON list of texts:", err)
		os.Exit(1)
	}
	parse := parser.NewParser(parser.Options{})
	findings := make([]finding, 0, len(expressions))
	for _, text := range expressions {
		found := finding{Selectors: []selector{}, Labels: []string{}}
		expression, err := parse.ParseExpr(text)
		if err != nil {
			found.Error = err.Error()
			findings = append(findings, found)
			continue
		}
		parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
			switch node := node.(type) {
			case *parser.VectorSelector:
				one := selector{Metric: node.Name, Matchers: []matcher{}}
				for _, given := range node.LabelMatchers {
					if given.Name != labels.MetricName {
						one.Matchers = append(one.Matchers, matcher{given.Name, given.Type.String(), given.Value})
					}
				}
				found.Selectors = append(found.Selectors, one)
			case *parser.AggregateExpr:
				found.Labels = append(found.Labels, node.Grouping...)
			case *parser.BinaryExpr:
				if node.VectorMatching != nil {
					found.Labels = append(found.Labels, node.VectorMatching.MatchingLabels...)
					found.Labels = append(found.Labels, node.VectorMatching.Include...)
				}
			}
			return nil
		})
		findings = append(findings, found)
	}
	if err := json.NewEncoder(os.Stdout).Encode(findings); err != nil {
		fmt.Fprintln(os.Stderr, "selectors:", err)
		os.Exit(1)
	}
}
