//! Git applies the same manifests again and again, to requests in whatever state: nothing changes, nobody is refused, and
//! nobody fights over what others filled in.

use std::path::Path;

use serde_json::{Value, json};

use super::world::{World, owners, world};
use crate::common::{Object, Person, file, kubectl, kubectl_with, request};

/// Argo CD's field manager, where it applies on the server.
const ARGO: &str = "argocd-controller";
/// Flux's.
const FLUX: &str = "kustomize-controller";

/// An object of `tests/gitops/objects`.
struct Fixture {
    name: String,
    object: Value,
}

fn fixtures() -> Vec<Fixture> {
    let read = |path: &Path| {
        let object = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Fixture { name: path.file_stem().unwrap().to_string_lossy().into_owned(), object }
    };
    let entries = std::fs::read_dir(file("tests/gitops/objects")).unwrap();
    let mut all: Vec<_> = entries.map(|entry| read(&entry.unwrap().path())).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all.retain(|fixture| fixture.object["metadata"].get("deletionTimestamp").is_none());
    assert!(all.len() > 20, "{}", all.len());
    all
}

fn fixture(name: &str) -> Fixture {
    fixtures().into_iter().find(|fixture| fixture.name == name).unwrap_or_else(|| panic!("no object {name}"))
}

impl Fixture {
    /// What stands in Git: no requester, no revoke, no status.
    fn manifest(&self, name: &str) -> Object {
        let mut spec = self.object["spec"].clone();
        for field in ["requester", "revoke"] {
            spec.as_object_mut().unwrap().remove(field);
        }
        Object(json!({
            "apiVersion": self.object["apiVersion"],
            "kind": self.object["kind"],
            "metadata": {"name": name, "labels": {"app.kubernetes.io/instance": "access"}},
            "spec": spec,
        }))
    }

    /// Brings what was applied to where this object is: revoked by its requester, judged by the operator.
    async fn comes_about(&self, world: &World, manifest: &Object) -> Value {
        if let Some(revoke) = self.object["spec"].get("revoke") {
            world.alice.patch(manifest, &json!({"spec": {"revoke": revoke}})).await.unwrap();
        }
        let judged = manifest.clone().with("/status", self.object["status"].clone());
        world.operator.replace_status(&judged).await.unwrap();
        world.alice.get(manifest).await.unwrap()
    }
}

/// PUTs the manifest where a revocation stands that the manifest does not know.
///
/// The API server takes the field out, and its owner with it; admission puts back the field alone, and nobody owns it.
/// So much changes once, and nothing else.
async fn replaced_once(who: &Person, manifest: &Object, before: &Value) -> Value {
    let mut after = who.replace(manifest).await.unwrap();
    let stored = after.clone();
    for field in ["managedFields", "resourceVersion"] {
        after["metadata"][field] = before["metadata"][field].clone();
    }
    assert_eq!(&after, before, "{}", manifest.name());
    stored
}

/// Asserts that the same wish, by whatever way, is admitted and changes nothing, dry or not.
async fn changes_nothing(who: &Person, manifest: &Object, manager: &str, before: &Value) {
    for person in [who.dry_run(), who.clone()] {
        let name = manifest.name();
        assert_eq!(&person.apply(manifest, manager).await.unwrap(), before, "{name} applied by {manager}");
        assert_eq!(&person.replace(manifest).await.unwrap(), before, "{name} replaced");
    }
    assert_eq!(&who.get(manifest).await.unwrap(), before);
}

#[tokio::test]
async fn an_unchanged_manifest_changes_nothing_whatever_the_request_came_to() {
    let world = world().await;
    for fixture in fixtures() {
        let is_policy = fixture.object["kind"] == "InstanceAccessPolicy";
        let name = format!("{}-{}", world.namespace, fixture.name);
        let (manifest, who) = (fixture.manifest(&name), if is_policy { &world.admin } else { &world.alice });
        for manager in [ARGO, FLUX] {
            who.apply(&manifest, manager).await.unwrap();
        }
        let mut before = fixture.comes_about(&world, &manifest).await;
        assert_eq!(before["status"], fixture.object["status"], "{name}");
        if before["spec"].get("revoke").is_some() {
            before = replaced_once(who, &manifest, &before).await;
        }
        for manager in [ARGO, FLUX] {
            changes_nothing(who, &manifest, manager, &before).await;
        }
    }
}

/// Runs kubectl in the world's namespace as alice, with the manifest on its standard input.
async fn run(world: &World, args: &[&str], manifest: &Object) -> String {
    let args = [&["--namespace", &world.namespace], args].concat();
    kubectl_with(world.lab, "alice", &args, &manifest.0.to_string()).await.unwrap()
}

#[tokio::test]
async fn kubectl_shows_no_difference_and_calls_it_unchanged() {
    let world = world().await;
    let diff = ["--namespace", &world.namespace, "diff", "--filename=-"];
    for name in ["granted", "revoked", "expired", "denied-by-policy"] {
        let fixture = fixture(name);
        // As Argo CD does by default: a three-way merge against what was last applied.
        let manifest = fixture.manifest(name);
        run(&world, &["apply", "--filename=-"], &manifest).await;
        let before = fixture.comes_about(&world, &manifest).await;
        // kubectl's diff fails if there is a difference, and prints it.
        let other = manifest.clone().with("/metadata/labels", json!({"app.kubernetes.io/instance": "other"}));
        let difference = kubectl_with(world.lab, "alice", &diff, &other.0.to_string()).await.unwrap_err().to_string();
        assert!(difference.contains("+    app.kubernetes.io/instance: other"), "{difference}");
        assert_eq!(run(&world, &["diff", "--filename=-"], &manifest).await, "");
        let said = run(&world, &["apply", "--filename=-"], &manifest).await;
        assert!(said.ends_with(" unchanged\n"), "{said}");
        assert_eq!(world.alice.get(&manifest).await.unwrap(), before);

        let name = format!("{name}-by-server");
        let manifest = fixture.manifest(&name);
        let manager = format!("--field-manager={ARGO}");
        let apply = ["apply", "--server-side", "--force-conflicts", &manager, "--filename=-"];
        run(&world, &apply, &manifest).await;
        let before = fixture.comes_about(&world, &manifest).await;
        assert_eq!(run(&world, &["diff", "--server-side", &manager, "--filename=-"], &manifest).await, "");
        run(&world, &[&apply[..], &["--dry-run=server"]].concat(), &manifest).await;
        run(&world, &apply, &manifest).await;
        run(&world, &["replace", "--dry-run=server", "--filename=-"], &manifest).await;
        assert_eq!(world.alice.get(&manifest).await.unwrap(), before);
    }
}

#[tokio::test]
async fn a_gitops_controller_and_people_do_not_fight_over_what_was_filled_in() {
    let world = world().await;
    let account = format!("{}/application-controller", world.namespace);
    let argo = world.service_account(&account).await;
    let who = format!("--serviceaccount={}", account.replace('/', ":"));
    let bind = [
        "create",
        "clusterrolebinding",
        &format!("{}-argo", world.namespace),
        "--clusterrole=instance-access-requester",
    ];
    kubectl(world.lab, "admin", &[&bind[..], &[&who]].concat()).await.unwrap();

    // What Argo CD made is Argo CD's, whoever applies it later; and the other way round.
    let its = request("of-argo");
    let stored = argo.apply(&its, ARGO).await.unwrap();
    let username = format!("system:serviceaccount:{}:application-controller", world.namespace);
    assert_eq!(stored["spec"]["requester"]["username"], username);
    let adopted = request("of-alice");
    world.alice.create(&adopted).await.unwrap();
    for manifest in [&its, &adopted] {
        let requester = world.alice.get(manifest).await.unwrap()["spec"]["requester"].clone();
        for (person, manager) in [(&world.alice, "kubectl"), (&argo, ARGO)] {
            let stored = person.apply(manifest, manager).await.unwrap();
            assert_eq!(stored["spec"]["requester"], requester);
            assert_eq!(owners(&stored, &["spec", "requester"]), [""; 0]);
            assert_eq!(owners(&stored, &["metadata", "finalizers"]), [""; 0]);
        }
        // A revocation that Git does not know is neither undone nor seen as a difference.
        world.alice.patch(manifest, &json!({"spec": {"revoke": {"reason": "done"}}})).await.unwrap();
        let before = world.alice.get(manifest).await.unwrap();
        assert_eq!(argo.apply(manifest, ARGO).await.unwrap(), before);
        let before = replaced_once(&argo, manifest, &before).await;
        changes_nothing(&argo, manifest, ARGO, &before).await;
        assert_eq!(before["spec"]["revoke"], json!({"reason": "done"}));
        assert_eq!(before["metadata"]["finalizers"], json!([instance_access::api::FINALIZER]));
    }
}

#[tokio::test]
async fn a_revocation_in_git_ends_it_and_taking_it_out_of_git_changes_nothing() {
    let world = world().await;
    let manifest = request("by-commit");
    let revoked = manifest.clone().with("/spec/revoke", json!({"reason": "the incident is over"}));
    for manager in [ARGO, FLUX] {
        world.alice.apply(&manifest, manager).await.unwrap();
        let stored = world.alice.apply(&revoked, manager).await.unwrap();
        assert_eq!(stored["spec"]["revoke"], json!({"reason": "the incident is over"}));
        let reverted = world.alice.apply(&manifest, manager).await.unwrap();
        assert_eq!(reverted["spec"]["revoke"], stored["spec"]["revoke"]);
        changes_nothing(&world.alice, &manifest, manager, &reverted).await;
    }
}

/// Whether `kubectl wait` finds the condition there; it is not waited for.
async fn there(world: &World, condition: &str, name: &str) -> bool {
    let mut kubectl = world.lab.kubectl("alice").unwrap();
    let wait = format!("--for=condition={condition}");
    let object = format!("instanceaccess/{name}");
    kubectl.args(["--namespace", &world.namespace, "wait", &wait, "--timeout=0s", &object]);
    let output = lab::ssh::run(&mut kubectl).await.unwrap();
    assert!(output.success() || output.stderr.contains("condition not met"), "{output:?}");
    output.success()
}

#[tokio::test]
async fn kubectl_wait_tells_the_states_of_a_request_apart() {
    let world = world().await;
    // Of each state, what can be waited for; what is not named is not met.
    let conditions = ["Active", "Active=False", "Ended", "Ended=False", "Denied", "Approved", "Stalled", "Reconciling"];
    for (name, met) in [
        ("new", &[][..]),
        ("pending-approval", &["Active=False", "Reconciling"]),
        ("granted", &["Active", "Ended=False", "Approved"]),
        ("expired", &["Active=False", "Ended", "Approved"]),
        ("denied-by-policy", &["Active=False", "Ended", "Denied", "Stalled"]),
        ("instance-not-running", &["Active=False", "Reconciling"]),
        ("access-denied", &["Active=False", "Approved", "Stalled"]),
    ] {
        let fixture = fixture(name);
        let manifest = fixture.manifest(name);
        world.alice.create(&manifest).await.unwrap();
        fixture.comes_about(&world, &manifest).await;
        for condition in conditions {
            assert_eq!(there(&world, condition, name).await, met.contains(&condition), "{name}: {condition}");
        }
    }
}
