//! What helm renders of the chart, and what there is to find in it.

#[path = "../common/helm.rs"]
mod common;

use serde_json::Value;

pub use common::*;

/// An image's name, which no default has.
pub const IMAGE: &str = "image.repository=registry.example/instance-access";

/// `helm template` of the release `access` in the namespace `ops`; the error is helm's words.
pub fn template(arguments: &[&str]) -> Result<String, String> {
    template_in("ops", arguments)
}

/// What `helm template` renders with an image's name and these values, as objects.
#[track_caller]
pub fn rendered(arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["--set", IMAGE];
    all.extend(arguments);
    objects(&template(&all).unwrap_or_else(|error| panic!("{arguments:?}: {error}")))
}

/// The objects of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// The only object of one kind.
#[track_caller]
pub fn the<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}: {found:?}");
    found[0]
}

/// The names of the objects of one kind.
pub fn names(objects: &[Value], kind: &str) -> Vec<String> {
    of_kind(objects, kind).iter().map(|it| it["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// The controller's workload.
#[track_caller]
pub fn controller(objects: &[Value]) -> &Value {
    let found = of_kind(objects, "StatefulSet")
        .into_iter()
        .filter(|it| it["metadata"]["labels"]["app.kubernetes.io/component"] == "controller");
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

/// The controller's container.
#[track_caller]
pub fn container(objects: &[Value]) -> &Value {
    &controller(objects)["spec"]["template"]["spec"]["containers"][0]
}

/// A variable of the controller's environment.
pub fn variable(objects: &[Value], name: &str) -> Option<String> {
    let all = container(objects)["env"].as_array().expect("an environment");
    let found = all.iter().find(|it| it["name"] == name)?;
    Some(found["value"].as_str().unwrap_or_else(|| panic!("{name} is no text: {found}")).to_owned())
}

/// What turns the gateways on, and nothing besides.
pub const GATEWAY: &str =
    "gateway.enabled=true,gateway.hostKey.secretName=gateway-host-key,settings.gatewayAddress=gateway.example.com:2222";

/// What is rendered with gateways, and these values.
#[track_caller]
pub fn with_gateway(arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["--set", GATEWAY];
    all.extend(arguments);
    rendered(&all)
}

/// The only object of one kind that is the gateways'.
#[track_caller]
pub fn of_gateway<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let ours = |object: &&Value| object["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway";
    let found: Vec<&Value> = of_kind(objects, kind).into_iter().filter(ours).collect();
    assert_eq!(found.len(), 1, "{kind}: {found:?}");
    found[0]
}

/// The object of one kind and name.
#[track_caller]
pub fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = of_kind(objects, kind).into_iter().find(|it| it["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("{kind} {name}: there are {:?}", names(objects, kind)))
}
