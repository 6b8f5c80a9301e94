//! People's decisions: a colleague's yes and no, and whatever is none. Each test has a policy and a namespace of its own.

use std::fs;

use serde_json::{Value, json};

use crate::history::{condition, stage, text};
use crate::request::{Request, TWO_PUSHES};
use crate::stand::{BOUND, Stand, kinds, merge, policy, shared};

const WAITING: &str = "PendingApproval";

/// Under a policy that asks for so many of the leads and developers.
async fn asked(stand: &Stand, namespace: &str, count: i32) {
    stand.namespace(namespace).await;
    let named = json!([{"kind": "Group", "name": "leads"}, {"kind": "Group", "name": "developers"}]);
    let approval = json!({"count": count, "approvers": named, "deadlineSeconds": 600});
    stand.policy(&policy(namespace, namespace, json!({"approval": approval}))).await;
}

async fn waiting<'a>(stand: &'a Stand, namespace: &str) -> Request<'a> {
    let request = stand.request("alice", "look").within(namespace).applied().await;
    request.becomes(WAITING).await;
    request
}

/// A decision about a request as it stands, in the namespace of the request.
fn decision(request: &Request<'_>, name: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessDecision",
        "metadata": {"name": name, "namespace": request.namespace},
        "spec": {
            "decision": kind,
            "requestRef": {
                "name": request.name,
                "uid": request.uid,
                "specDigest": text(&request.newest(), "/status/specDigest"),
            },
            "reason": "I looked at it",
        },
    })
}

async fn decides(stand: &Stand, who: &str, more: &[&str], object: &Value) {
    let manifest = stand.manifest(object);
    stand.kubectl_ok(who, &[&["create", "-f", &manifest], more].concat()).await;
}

/// Whose decisions counted, by name: those of one second stand in no order.
fn approvers(object: &Value) -> Vec<&str> {
    let told = object.pointer("/status/approvals").and_then(Value::as_array);
    let mut names: Vec<&str> = told.into_iter().flatten().map(|told| text(told, "/approver")).collect();
    names.sort_unstable();
    names
}

/// Types what a page tells to type, for this request.
async fn types_from(stand: &Stand, who: &str, page: &str, begin: &str, request: &Request<'_>) {
    let script = stand.lab.dir().join(format!("{who}.{}.{}.sh", request.namespace, request.name));
    fs::write(&script, command_of(page, begin, request)).unwrap();
    let mut shell = tokio::process::Command::new("sh");
    let path = format!("{}:{}", stand.programs().display(), std::env::var("PATH").unwrap());
    shell.arg("-e").arg(&script).current_dir(stand.lab.dir()).env("PATH", path);
    shell.env("KUBECONFIG", stand.kubeconfig_in(who, &request.namespace));
    let typed = lab::ssh::run(&mut shell).await.unwrap();
    assert!(typed.success(), "{typed:?}");
}

fn command_of(page: &str, begin: &str, request: &Request<'_>) -> String {
    let page = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let block = page.split("```sh\n").find(|block| block.starts_with(begin)).unwrap();
    let block = block.split("```").next().unwrap();
    block.replace("web-1", &request.name)
}

pub async fn a_colleague_approves_by_the_pages_command_and_may_end_it_by_another_decision() {
    let stand = shared().await;
    asked(stand, "approved", 1).await;
    // Long enough for a second push; it is revoked after that.
    let longer = json!({"ttlSeconds": TWO_PUSHES});
    let request = stand.request("alice", "look").with(longer).within("approved").applied().await;
    request.becomes(WAITING).await;
    let pending = request.newest();
    let (status, reason, message) = condition(&pending, "Approved").unwrap();
    assert_eq!((status, reason), ("Unknown", WAITING));
    for part in ["Group leads", "until ", "alice may not", &request.uid, text(&pending, "/status/specDigest")] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert!(request.pushes().is_empty() && pending.pointer("/status/instance/privateIp").is_none());

    types_from(stand, "erin", "docs/approving.md", "kubectl get instanceaccess web-1 -o yaml >", &request).await;

    let granted = request.becomes("Granted").await;
    request.gets_in().await;
    assert_eq!(approvers(&granted), ["erin"]);
    let wide = request.kubectl(&["get", "instanceaccess", &request.name, "-o", "wide"]).await;
    assert!(wide.contains("APPROVERS") && wide.contains("erin"), "{wide}");
    let intended = stand.record(&request.uid, "GrantIntended", BOUND).await;
    assert_eq!(text(&intended, "/record/approvals/0/approver"), "erin");

    // What was decided stays decided, also where the object goes and erin is an approver no more; then she is heard no more.
    stand.kubectl_ok("admin", &["-n", "approved", "delete", "instanceaccessdecisions", "--all"]).await;
    decides(stand, "mallory", &[], &decision(&request, "not-mine", "Revoke")).await;
    request.is_pushed(2, BOUND).await;
    assert_eq!((stage(&request.newest()), approvers(&request.newest())), ("Granted", vec!["erin"]));
    let intended = |records: &[Value]| kinds(records).iter().filter(|kind| **kind == "GrantIntended").count();
    assert_eq!(intended(&request.records()), 1);

    decides(stand, "erin", &[], &decision(&request, "enough", "Revoke")).await;
    let ended = request.ends("Revoked").await;
    assert!(condition(&ended, "Ended").unwrap().2.contains("erin revoked it: I looked at it"), "{ended}");
    request.is_locked_out().await;
    let records = request.records();
    assert_eq!(kinds(&records)[records.len() - 2..], ["EndIntended", "Ended"]);
    assert_eq!(text(records.last().unwrap(), "/record/approvals/1/decision"), "Revoke");

    // And what is over stays over, with its end deleted and a yes in its place: whoever comes after that yes is heard.
    stand.kubectl_ok("admin", &["-n", "approved", "delete", "instanceaccessdecisions", "--all"]).await;
    decides(stand, "erin", &[], &decision(&request, "yes-again", "Approve")).await;
    let next = stand.request("alice", "next").within("approved").applied().await;
    next.becomes(WAITING).await;
    decides(stand, "erin", &[], &decision(&next, "next", "Approve")).await;
    next.becomes("Granted").await;
    assert_eq!((stage(&request.newest()), intended(&request.records())), ("Revoked", 1));
    request.keeps_its_promises().await;
}

pub async fn a_yes_from_before_the_request_counts_for_nothing() {
    let stand = shared().await;
    asked(stand, "foretold", 2).await;
    // What alice will ask is known, to the last byte: she asked it before.
    let request = waiting(stand, "foretold").await;
    let foretold = decision(&request, "to-another", "Approve");
    request.delete().await;
    request.goes().await;
    let named = |name: &str, reference: Value| {
        let mut named = foretold.clone();
        named["metadata"]["name"] = json!(name);
        merge(&mut named["spec"]["requestRef"], reference);
        named
    };
    let nobody = "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c002";
    decides(stand, "erin", &[], &foretold).await;
    decides(stand, "erin", &[], &named("to-nobody", json!({"name": "nobody", "uid": nobody}))).await;
    decides(stand, "erin", &[], &named("to-its-name", json!({"uid": nobody}))).await;

    let again = json!({"sshPublicKey": request.manifest["spec"]["sshPublicKey"]});
    let mut again = stand.request("alice", "look").with(again).within("foretold").applied().await;
    let pending = again.becomes(WAITING).await;
    assert_eq!(text(&pending, "/status/specDigest"), text(&foretold, "/spec/requestRef/specDigest"));
    assert_eq!(approvers(&pending), [""; 0]);
    // Heard after all of those: one of two.
    decides(stand, "bob", &[], &decision(&again, "bob", "Approve")).await;
    let one = again.until("counts bob", BOUND, |object| !approvers(object).is_empty()).await;
    assert_eq!((stage(&one), approvers(&one)), (WAITING, vec!["bob"]));
    decides(stand, "erin", &[], &decision(&again, "erin", "Approve")).await;
    let granted = again.becomes("Granted").await;
    assert_eq!(approvers(&granted), ["bob", "erin"]);
    again.key = request.key;
    again.revoke("seen").await;
    again.keeps_its_promises().await;
}

pub async fn a_no_is_final() {
    let stand = shared().await;
    asked(stand, "denied", 1).await;
    let request = waiting(stand, "denied").await;
    let mut no = decision(&request, "no", "Deny");
    no["spec"]["requestRef"].as_object_mut().unwrap().remove("specDigest");
    decides(stand, "erin", &[], &no).await;
    let message = request.is_denied("DeniedByApprover").await;
    assert_eq!(message, "erin denied it: I looked at it");
    stand.kubectl_ok("admin", &["-n", "denied", "delete", "instanceaccessdecisions", "--all"]).await;
    decides(stand, "bob", &[], &decision(&request, "yes", "Approve")).await;
    // Whoever comes after it is served, and it is still denied.
    let next = stand.request("alice", "next").within("denied").applied().await;
    next.becomes(WAITING).await;
    types_from(stand, "bob", "README.md", "kubectl get instanceaccess web-1 -o yaml >", &next).await;
    next.becomes("Granted").await;
    assert_eq!(stage(&request.newest()), "Denied");
    // Its own requester may end it by a decision, too.
    decides(stand, "alice", &[], &decision(&next, "mine", "Revoke")).await;
    next.ends("Revoked").await;
    request.keeps_its_promises().await;
    next.keeps_its_promises().await;
}

pub async fn nothing_but_two_others_words_on_this_very_request_lets_alice_in() {
    let stand = shared().await;
    asked(stand, "attacked", 2).await;
    stand.namespace("attacked-elsewhere").await;
    let request = waiting(stand, "attacked").await;
    let bent = |name: &str, pointer: &str, value: &str| {
        let mut bent = decision(&request, name, "Approve");
        *bent.pointer_mut(pointer).unwrap() = json!(value);
        bent
    };
    // Herself, whom the policy names: as she is, and by a second name of the same principal.
    decides(stand, "alice", &[], &decision(&request, "own", "Approve")).await;
    let as_another = ["--as=alice-admin", "--as-group=leads"];
    decides(stand, "admin", &as_another, &decision(&request, "own-again", "Approve")).await;
    // A service account that she may mint tokens for, and whose groups nobody names.
    let robot = stand.service_account("attacked", "robot").await;
    let manifest = stand.manifest(&decision(&request, "robot", "Approve"));
    let mut kubectl = tokio::process::Command::new(stand.programs().join("kubectl"));
    kubectl.env("KUBECONFIG", robot).args(["create", "-f", &manifest]);
    let created = lab::ssh::run(&mut kubectl).await.unwrap();
    assert!(created.success(), "{created:?}");
    // Somebody whom nobody asked; another uid, another digest, another namespace.
    decides(stand, "mallory", &[], &decision(&request, "mallory", "Approve")).await;
    decides(stand, "erin", &[], &bent("uid", "/spec/requestRef/uid", "5a3f6a0e-5f0f-4b43-9c1a-0d4f3ad1c001")).await;
    decides(stand, "erin", &[], &bent("digest", "/spec/requestRef/specDigest", &"0".repeat(64))).await;
    decides(stand, "erin", &[], &bent("namespace", "/metadata/namespace", "attacked-elsewhere")).await;
    // One person, many times.
    for number in 0..6 {
        decides(stand, "bob", &[], &decision(&request, &format!("bob-{number}"), "Approve")).await;
    }
    // Heard after all of those, and so they were heard: one of two.
    let one = request.until("counts bob", BOUND, |object| !approvers(object).is_empty()).await;
    assert_eq!((stage(&one), approvers(&one)), (WAITING, vec!["bob"]));

    // Deleted and made again under its name, for longer: nobody has approved that.
    request.delete().await;
    request.goes().await;
    let wider = stand.request("alice", "look").with(json!({"ttlSeconds": 3600})).within("attacked").applied().await;
    let pending = wider.becomes(WAITING).await;
    assert_eq!(approvers(&pending), [""; 0]);
    // And what it asks for stays what it is.
    let edit = json!({"spec": {"osUser": "root"}}).to_string();
    let edit = ["-n", "attacked", "patch", "instanceaccess", "look", "--type", "merge", "-p", &edit];
    let refused = stand.kubectl("alice", &edit).await;
    assert!(!refused.success() && refused.stderr.contains("is immutable"), "{refused:?}");

    decides(stand, "bob", &[], &decision(&wider, "wider-bob", "Approve")).await;
    let one = wider.until("counts bob", BOUND, |object| !approvers(object).is_empty()).await;
    assert_eq!(stage(&one), WAITING);
    assert!(wider.pushes().is_empty() && request.pushes().is_empty());
    decides(stand, "erin", &[], &decision(&wider, "wider-erin", "Approve")).await;
    let granted = wider.becomes("Granted").await;
    assert_eq!(approvers(&granted), ["bob", "erin"]);
    wider.revoke("seen").await;
    request.keeps_its_promises().await;
    wider.keeps_its_promises().await;
}

/// So many junk decisions of each kind; ten thousand take minutes to make, and are no other question.
const JUNK: usize = 150;

pub async fn a_flood_of_junk_is_neither_kept_nor_in_anybodys_way() {
    let stand = shared().await;
    asked(stand, "flooded", 1).await;
    let request = waiting(stand, "flooded").await;
    let uid = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
    let digest = |number: usize| format!("{number:064}");
    let list = |items: Vec<Value>| json!({"apiVersion": "v1", "kind": "List", "metadata": {"name": "x", "namespace": text(&items[0], "/metadata/name")}, "items": items});
    let junk = |name: &str, bend: &dyn Fn(usize, &mut Value)| {
        let items = (0..JUNK).map(|number| {
            let mut one = decision(&request, &format!("{name}-{number}"), "Approve");
            bend(number, &mut one);
            one
        });
        list(items.collect())
    };
    // By one who is no approver; by one who is, for what is not there, and for what was not seen.
    decides(stand, "mallory", &[], &junk("mallory", &|_, _| {})).await;
    decides(stand, "erin", &[], &junk("nowhere", &|n, it| it["spec"]["requestRef"]["uid"] = json!(uid(n)))).await;
    decides(stand, "erin", &[], &junk("unseen", &|n, it| it["spec"]["requestRef"]["specDigest"] = json!(digest(n))))
        .await;
    assert_eq!(stage(&request.newest()), WAITING);
    decides(stand, "bob", &[], &decision(&request, "bob", "Approve")).await;
    request.becomes("Granted").await;
    // Four of erin's about this request at most, and bob's; those for nobody go within a minute and a sweep.
    lab::poll::until("the junk to be dropped", BOUND + BOUND, || async {
        let kept = stand.metric("instance_access_decisions_kept").await;
        if kept <= 100.0 { Ok(()) } else { Err(anyhow::anyhow!("{kept} are kept")) }
    })
    .await
    .unwrap();
    request.revoke("seen").await;
    request.keeps_its_promises().await;
}
