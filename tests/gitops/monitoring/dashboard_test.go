// Package monitoring holds what the chart renders for others to watch us by to those others' own types: Grafana's of a
// dashboard, the Prometheus operator's of its objects, Kubernetes' of a NetworkPolicy.
package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/grafana/grafana-foundation-sdk/go/units"
)

const dashboardFile = "../../../charts/instance-access/files/monitoring/dashboard.json"

// What panels and queries of ours are made of. Of a kind that is not here, Grafana's types would read the options as anything.
func init() {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
}

// The values that Grafana's schema has for each enumeration that the dashboard uses. Its generated types are texts and
// numbers that take any.
var enumerations = map[reflect.Type][]any{}

func takes[T comparable](values ...T) {
	for _, value := range values {
		enumerations[reflect.TypeFor[T]()] = append(enumerations[reflect.TypeFor[T]()], value)
	}
}

func init() {
	takes(dashboard.DashboardCursorSyncOff, dashboard.DashboardCursorSyncCrosshair, dashboard.DashboardCursorSyncTooltip)
	takes(dashboard.VariableTypeQuery, dashboard.VariableTypeDatasource)
	takes(dashboard.VariableHideDontHide, dashboard.VariableHideHideLabel, dashboard.VariableHideHideVariable)
	takes(dashboard.VariableRefreshNever, dashboard.VariableRefreshOnDashboardLoad, dashboard.VariableRefreshOnTimeRangeChanged)
	takes(dashboard.VariableSortDisabled, dashboard.VariableSortAlphabeticalAsc, dashboard.VariableSortAlphabeticalDesc)
	takes(dashboard.FieldColorModeIdThresholds, dashboard.FieldColorModeIdPaletteClassic, dashboard.FieldColorModeIdFixed)
	takes(dashboard.ThresholdsModeAbsolute, dashboard.ThresholdsModePercentage)
	takes(dashboard.MappingTypeValueToText, dashboard.MappingTypeRangeToText, dashboard.MappingTypeSpecialValue)
	takes(common.BigValueGraphModeNone, common.BigValueGraphModeLine, common.BigValueGraphModeArea)
	takes(common.BigValueColorModeValue, common.BigValueColorModeBackground, common.BigValueColorModeNone)
	takes(common.BigValueJustifyModeAuto, common.BigValueJustifyModeCenter)
	takes(common.BigValueTextModeAuto, common.BigValueTextModeValue, common.BigValueTextModeValueAndName)
	takes(common.PercentChangeColorModeStandard, common.PercentChangeColorModeInverted)
	takes(common.VizOrientationAuto, common.VizOrientationVertical, common.VizOrientationHorizontal)
	takes(common.LegendDisplayModeList, common.LegendDisplayModeTable, common.LegendDisplayModeHidden)
	takes(common.LegendPlacementBottom, common.LegendPlacementRight)
	takes(common.TooltipDisplayModeSingle, common.TooltipDisplayModeMulti, common.TooltipDisplayModeNone)
	takes(common.SortOrderAscending, common.SortOrderDescending, common.SortOrderNone)
	takes(common.GraphDrawStyleLine, common.GraphDrawStyleBars, common.GraphDrawStylePoints)
	takes(common.VisibilityModeAuto, common.VisibilityModeNever, common.VisibilityModeAlways)
	takes(common.StackingModeNone, common.StackingModeNormal, common.StackingModePercent)
	takes(common.GraphThresholdsStyleModeOff, common.GraphThresholdsStyleModeLine, common.GraphThresholdsStyleModeArea)
}

// Whether something is wrong. A strict reading answers with a list also when nothing is.
func wrong(err error) bool {
	var list cog.BuildErrors
	return err != nil && !(errors.As(err, &list) && len(list) == 0)
}

// Everything that Grafana's types find wrong with a dashboard.
func findings(text []byte) []error {
	var found []error
	say := func(where string, err error) {
		if wrong(err) {
			found = append(found, fmt.Errorf("%s: %w", where, err))
		}
	}
	// Each field is known, of its type, and there if it must be. Where a list of mistakes is empty nothing is kept, so the
	// dashboard is read once more.
	say("dashboard", new(dashboard.Dashboard).UnmarshalJSONStrict(text))
	var read dashboard.Dashboard
	if err := json.Unmarshal(text, &read); err != nil {
		return append(found, err)
	}
	say("dashboard", read.Validate())
	walk("dashboard", reflect.ValueOf(read), say)

	// The strict reading of a panel passes its fieldConfig by.
	var raw struct {
		Panels []struct {
			Title       string
			Type        string
			FieldConfig json.RawMessage
		}
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return append(found, err)
	}
	for _, panel := range raw.Panels {
		if panel.Type == "row" {
			continue
		}
		if _, known := cog.ConfigForPanelcfgVariant(panel.Type); !known {
			say(panel.Title, fmt.Errorf("a panel of the type %q, which this test does not read", panel.Type))
		}
		say(panel.Title, new(dashboard.FieldConfigSource).UnmarshalJSONStrict(panel.FieldConfig))
	}
	return found
}

// Holds each value of an enumeration to those of Grafana's schema. An optional one that is not set is none.
func walk(path string, value reflect.Value, say func(string, error)) {
	switch value.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !value.IsNil() {
			walk(path, value.Elem(), say)
		}
	case reflect.Struct:
		for i := range value.NumField() {
			walk(path+"."+value.Type().Field(i).Name, value.Field(i), say)
		}
	case reflect.Slice:
		for i := range value.Len() {
			walk(fmt.Sprintf("%s[%d]", path, i), value.Index(i), say)
		}
	case reflect.Map:
		for _, key := range value.MapKeys() {
			walk(fmt.Sprintf("%s[%v]", path, key), value.MapIndex(key), say)
		}
	case reflect.String, reflect.Int64:
		ours := strings.HasPrefix(value.Type().PkgPath(), "github.com/grafana/")
		if ours && !slices.Contains(enumerations[value.Type()], value.Interface()) {
			say(path, fmt.Errorf("%v is no %v that this test knows", value, value.Type()))
		}
	}
}

func TestGrafanasTypesTakeTheDashboard(t *testing.T) {
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range findings(text) {
		t.Error(found)
	}
	// Units are texts to the types, and have names of their own.
	known := []string{units.NoUnit, units.Seconds, units.BytesIEC, units.BytesPerSecondSI, units.OpsPerSecond, units.PercentUnit}
	var read dashboard.Dashboard
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	panels := 0
	for _, panel := range read.Panels {
		if panel.Panel == nil {
			continue
		}
		panels++
		title := *panel.Panel.Title
		if unit := panel.Panel.FieldConfig.Defaults.Unit; unit == nil || !slices.Contains(known, *unit) {
			t.Errorf("%s: which unit is that?", title)
		}
		for _, target := range panel.Panel.Targets {
			if _, ours := target.(*prometheus.Dataquery); !ours {
				t.Errorf("%s: a query of the kind %s", title, target.DataqueryType())
			}
		}
	}
	if panels < 30 {
		t.Errorf("only %d panels were read", panels)
	}
}

// The types refuse what they do not know, at every place that the dashboard has, or the test above says nothing.
func TestGrafanasTypesRefuseWhatIsWrong(t *testing.T) {
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]struct{ from, to string }{
		"a field of the dashboard":   {`"graphTooltip": 1`, `"graphTooltips": 1`},
		"a cursor":                   {`"graphTooltip": 1`, `"graphTooltip": 7`},
		"a month":                    {`"fiscalYearStartMonth": 0`, `"fiscalYearStartMonth": 12`},
		"a variable's field":         {`"includeAll": true`, `"includesAll": true`},
		"a variable's type":          {`"type": "datasource"`, `"type": "data source"`},
		"a panel's type":             {`"type": "stat"`, `"type": "state"`},
		"a panel's field":            {`"description": "One controller leads`, `"text": "One controller leads`},
		"a width":                    {`"w": 3`, `"w": 25`},
		"an option":                  {`"colorMode": "background"`, `"colourMode": "background"`},
		"an option's value":          {`"colorMode": "background"`, `"colorMode": "black"`},
		"a field's default":          {`"unit": "none"`, `"units": "none"`},
		"a threshold's field":        {`"color": "red"`, `"colour": "red"`},
		"a series' style":            {`"drawStyle": "line"`, `"drawStyle": "lines"`},
		"a series' field":            {`"fillOpacity": 10`, `"fill": 10`},
		"a query's field":            {`"legendFormat": "__auto"`, `"legend": "__auto"`},
		"a query that is not a text": {`"refId": "A",`, `"refId": 1,`},
	} {
		changed := strings.Replace(string(text), change.from, change.to, 1)
		if changed == string(text) {
			t.Errorf("%s: the dashboard has no %s", what, change.from)
		} else if len(findings([]byte(changed))) == 0 {
			t.Errorf("%s: %s was taken", what, change.to)
		}
	}
}
