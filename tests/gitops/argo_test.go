package gitops

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

// What a health script of Argo CD answers with.
type argoHealth struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

// Argo CD's health of an object: being deleted comes before any script (gitops-engine, pkg/health/health.go).
func argo(object *unstructured.Unstructured, script string) (argoHealth, error) {
	if object.GetDeletionTimestamp() != nil {
		return argoHealth{Status: "Progressing", Message: "Pending deletion"}, nil
	}
	return runScript(object, script)
}

// Runs a health script as Argo CD 3.5 does (util/lua/lua.go): base, package and table are open and nothing else, since a
// script of argocd-cm has no useOpenLibs; `obj` is the object; one second; the last value returned is a table. Argo CD
// also offers os.time and os.date, which are not offered here: our health depends on no clock.
func runScript(object *unstructured.Unstructured, script string) (argoHealth, error) {
	var health argoHealth
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return health, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", toLua(state, object.Object))
	if err := state.DoString(script); err != nil {
		return health, err
	}
	answer := state.Get(-1)
	if answer.Type() != lua.LTTable {
		return health, fmt.Errorf("the script returned a %s, and must return a table", answer.Type())
	}
	bytes, err := luajson.Encode(answer)
	if err != nil {
		return health, err
	}
	if err := json.Unmarshal(bytes, &health); err != nil {
		return health, err
	}
	switch health.Status {
	case "Healthy", "Suspended", "Progressing", "Missing", "Degraded", "Unknown":
		return health, nil
	}
	return health, fmt.Errorf("Argo CD knows no health %q", health.Status)
}

// A JSON value in Lua: numbers become Lua's numbers, null and what is absent become nil.
func toLua(state *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case string:
		return lua.LString(value)
	case int64:
		return lua.LNumber(value)
	case float64:
		return lua.LNumber(value)
	case []any:
		table := state.NewTable()
		for _, item := range value {
			table.Append(toLua(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for name, field := range value {
			table.RawSetString(name, toLua(state, field))
		}
		return table
	default:
		return lua.LNil
	}
}
