//! A request from Git: a service account, by a real token, asks for alice. Each test has a policy and a namespace of its own.

use std::path::{Path, PathBuf};

use lab::ssh::{self, Output};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::history::{condition, stage, text, time};
use crate::request::{Draft, ENDS_IN, EXPIRATION, Request, whole_second_in};
use crate::stand::{BOUND, Stand, policy, shared};

const ROBOT: &str = "application-controller";
/// The longest window that the policies here give.
const WINDOW_SECONDS: i64 = 600;

/// A namespace in which robots may ask, and a policy by which this one may ask for alice.
async fn robots(stand: &Stand, namespace: &str, more: Value) -> PathBuf {
    stand.namespace(namespace).await;
    let robot = robot(stand, namespace, ROBOT).await;
    stand.policy(&delegating(namespace, more)).await;
    robot
}

fn delegating(namespace: &str, more: Value) -> Value {
    let mut delegating = policy(namespace, namespace, more);
    let spec = &mut delegating["spec"];
    // Bob is in the group.
    spec["subjects"] = json!([{"kind": "Group", "name": "developers"}, {"kind": "User", "name": "alice"}]);
    let account = json!({"namespace": namespace, "name": ROBOT});
    spec["delegates"] = json!([{"serviceAccount": account, "maxWindowSeconds": WINDOW_SECONDS}]);
    delegating
}

/// The kubeconfig of a service account that may ask, and decide.
async fn robot(stand: &Stand, namespace: &str, name: &str) -> PathBuf {
    let kubeconfig = stand.service_account(namespace, name).await;
    let who = format!("--serviceaccount={namespace}:{name}");
    let bind = ["-n", namespace, "create", "rolebinding", &format!("{name}-asks"), &who];
    stand.kubectl_ok("admin", &[&bind[..], &["--clusterrole=instance-access-requester"]].concat()).await;
    kubeconfig
}

async fn kubectl(stand: &Stand, robot: &Path, arguments: &[&str]) -> Output {
    let mut kubectl = Command::new(stand.programs().join("kubectl"));
    ssh::run(kubectl.env("KUBECONFIG", robot).args(arguments)).await.unwrap()
}

/// As Argo CD and Flux apply.
async fn sync(stand: &Stand, robot: &Path, manifest: &Value) -> Value {
    let manifest = stand.manifest(manifest);
    let apply =
        ["apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-o", "json", "-f"];
    let done = kubectl(stand, robot, &[&apply[..], &[&manifest]].concat()).await;
    assert!(done.success(), "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

/// What stands in Git, for alice and for a while; `more` overrides fields of its spec.
fn in_git<'a>(stand: &'a Stand, namespace: &str, name: &str, more: Value) -> Draft<'a> {
    let end = whole_second_in(WINDOW_SECONDS - 60).to_string();
    let asked = json!({"subject": {"username": "alice"}, "endTime": end});
    stand.request("alice", name).within(namespace).with(asked).with(more)
}

async fn synced<'a>(stand: &'a Stand, robot: &Path, namespace: &str, name: &str, more: Value) -> Request<'a> {
    let (manifest, key) = in_git(stand, namespace, name, more).manifest().await;
    let uid = text(&sync(stand, robot, &manifest).await, "/metadata/uid").to_owned();
    Request { stand, who: "alice", name: name.to_owned(), namespace: namespace.to_owned(), uid, key, manifest }
}

pub async fn alice_gets_in_by_a_request_from_git_until_its_end_time_and_never_by_the_same_again() {
    let stand = shared().await;
    let robot = robots(stand, "git", json!({})).await;
    let end = whole_second_in(ENDS_IN);
    let more = json!({"endTime": end.to_string(), "ttlSeconds": 3600});
    let request = synced(stand, &robot, "git", "from-git", more).await;
    let granted = request.becomes("Granted").await;
    assert_eq!(time(&granted, EXPIRATION), Some(end));
    let username = format!("system:serviceaccount:git:{ROBOT}");
    assert_eq!(text(&granted, "/spec/requester/username"), username);
    let (_, _, approved) = condition(&granted, "Approved").unwrap();
    assert!(
        approved.starts_with(&format!("policy git admits alice (asked for by {username}) for 3600 s")),
        "{approved}"
    );
    request.gets_in().await;
    let row = request.kubectl(&["get", "instanceaccess", "from-git", "--no-headers"]).await;
    assert_eq!(row.split_whitespace().nth(2), Some("alice"), "{row}");
    sync(stand, &robot, &request.manifest).await;

    let ended = request.ends("Expired").await;
    request.is_locked_out().await;
    for line in request.records() {
        assert_eq!(text(&line, "/record/subject"), "alice", "{line}");
        assert_eq!(text(&line, "/record/requester/username"), username, "{line}");
    }
    sync(stand, &robot, &request.manifest).await;
    assert_eq!(request.newest()["status"], ended["status"]);
    request.keeps_its_promises().await;

    // Self-heal makes it anew, and its time is over.
    request.delete().await;
    request.goes().await;
    let pushes = request.pushes().len();
    let anew = sync(stand, &robot, &request.manifest).await;
    let anew = Request { uid: text(&anew, "/metadata/uid").to_owned(), ..request };
    let ended = anew.ends("Expired").await;
    assert_eq!((text(&ended, "/status/grant/id"), anew.pushes().len()), ("", pushes));
}

/// A decision about a request as it stands.
fn approval(request: &Request<'_>, name: &str) -> Value {
    let digest = text(&request.newest(), "/status/specDigest").to_owned();
    json!({
        "apiVersion": "instanceaccess.dev/v1alpha1",
        "kind": "InstanceAccessDecision",
        "metadata": {"name": name, "namespace": request.namespace},
        "spec": {
            "decision": "Approve",
            "requestRef": {"name": request.name, "uid": request.uid, "specDigest": digest},
        },
    })
}

pub async fn who_asks_for_others_gets_nobody_in_beyond_what_a_policy_and_people_say() {
    let stand = shared().await;
    // Everybody is named who should not be able to say yes, and erin.
    let account = format!("bounded/{ROBOT}");
    let approvers = json!([
        {"kind": "Group", "name": "leads"},
        {"kind": "User", "name": "alice"},
        {"kind": "ServiceAccount", "name": account},
    ]);
    let approval_asked = json!({"approval": {"count": 1, "approvers": approvers, "deadlineSeconds": 600}});
    let argo = robots(stand, "bounded", approval_asked.clone()).await;
    let other = robot(stand, "bounded", "other").await;
    let for_whom = |username: &str| json!({"subject": {"username": username}});
    // By hours, since the rows before it take their time, and what counts is when it was made.
    let too_long = json!({"endTime": whole_second_in(WINDOW_SECONDS + 3 * 3600).to_string()});
    let rows: &[(&str, &Path, Value, &str)] = &[
        ("stranger", &argo, for_whom("mallory"), "and not for this spec.subject"),
        ("by-group", &argo, for_whom("bob"), "and not for this spec.subject"),
        ("a-group", &argo, for_whom("developers"), "and not for this spec.subject"),
        ("everybody", &argo, for_whom("*"), "and not for this spec.subject"),
        ("endless", &argo, json!({"endTime": null}), "requires spec.endTime of its delegates"),
        ("too-long", &argo, too_long, "(maxWindowSeconds)"),
        ("for-itself", &argo, json!({"subject": null}), "no policy is for this requester"),
        ("no-delegate", &other, json!({}), "no policy names who asks in spec.delegates, for namespace bounded"),
    ];
    for (name, robot, more, part) in rows {
        let request = synced(stand, robot, "bounded", name, more.clone()).await;
        let message = request.is_denied("DeniedByPolicy").await;
        assert!(message.contains(part), "{name}: {message:?} lacks {part:?}");
        request.keeps_its_promises().await;
    }
    // Somebody who is called like the robot, and is none: the API server lets them in by that name.
    let (manifest, key) = in_git(stand, "bounded", "called-like-it", json!({})).manifest().await;
    let username = format!("--as=system:serviceaccount:bounded:{ROBOT}");
    let create = ["create", "-o", "jsonpath={.metadata.uid}", "-f", &stand.manifest(&manifest)];
    let uid = stand.kubectl_ok("admin", &[&create[..], &[&username, "--as-group=developers"]].concat()).await;
    let (name, namespace) = ("called-like-it".to_owned(), "bounded".to_owned());
    let called = Request { stand, who: "alice", name, namespace, uid, key, manifest };
    let message = called.is_denied("InvalidSpec").await;
    assert!(message.contains("may not ask for alice; only a service account"), "{message}");

    // Within its bounds, and neither the robot nor alice may say yes.
    let request = synced(stand, &argo, "bounded", "look", json!({})).await;
    let waits = request.becomes("PendingApproval").await;
    let (_, _, message) = condition(&waits, "Active").unwrap();
    assert!(message.contains(&format!("neither alice nor system:serviceaccount:bounded:{ROBOT} may")), "{message}");
    let own = stand.manifest(&approval(&request, "own"));
    let done = kubectl(stand, &argo, &["create", "-f", &own]).await;
    assert!(done.success(), "{done:?}");
    stand.kubectl_ok("alice", &["create", "-f", &stand.manifest(&approval(&request, "alice"))]).await;
    let mut forged = approval(&request, "forged");
    forged["spec"]["approver"] = json!({"username": "erin", "groups": ["leads", "system:authenticated"]});
    let refused = kubectl(stand, &argo, &["create", "-f", &stand.manifest(&forged)]).await;
    assert!(refused.stderr.contains("spec.approver.username must be your own"), "{refused:?}");
    // Erin's comes last: with hers the others were heard.
    stand.kubectl_ok("erin", &["create", "-f", &stand.manifest(&approval(&request, "erin"))]).await;
    let granted = request.becomes("Granted").await;
    assert_eq!(text(&granted, "/status/approvers"), "erin");
    request.gets_in().await;

    // The delegate taken out of the policy takes its grant along.
    let mut without = delegating("bounded", approval_asked);
    without["spec"]["delegates"] = json!([]);
    stand.apply(&without).await;
    let ended = request.until("is taken back", BOUND, |object| stage(object) == "RevocationPending").await;
    assert_eq!(text(&ended, "/status/revocation/cause"), "PolicyChanged");
    request.ends("Revoked").await;
    request.is_locked_out().await;
    request.keeps_its_promises().await;
}
