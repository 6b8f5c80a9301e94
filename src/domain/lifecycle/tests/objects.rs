//! The objects that GitOps engines are asked about, one for each row of the design's table of conditions, as files.
//!
//! `tests/gitops` shows them to Argo CD's and Flux's own code. What this version makes is made by `next`, through
//! [`Life`]; what only a later one will make is put together here by the table, and its file says so.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::*;

/// Set to write `tests/gitops/objects` anew.
const UPDATE: &str = "UPDATE_OBJECTS";

/// One object: the name of its file, its conditions in one line, and itself as YAML.
struct Object {
    name: &'static str,
    line: String,
    yaml: String,
}

fn object(name: &'static str, conditions: &[Condition], note: &str, object: &impl Serialize) -> Object {
    let mut line = Vec::new();
    for condition in conditions {
        line.push(format!("{:?}={:?}/{}", condition.type_, condition.status, condition.reason));
    }
    let yaml = serde_yaml::to_string(object).unwrap();
    let yaml = format!("# {note} {UPDATE}=1 cargo test --lib objects writes it anew.\n{yaml}");
    let line = if line.is_empty() { "nothing".to_owned() } else { line.join(" ") };
    Object { name, line, yaml }
}

/// The request as it now stands in the store.
fn made(name: &'static str, life: &Life) -> Object {
    stored(name, life.object.as_ref().expect("the request is there"))
}

/// Without a gateway's entry, which is the same in all of them.
fn without_sessions(mut request: InstanceAccess) -> InstanceAccess {
    request.status.iter_mut().for_each(|status| status.sessions.clear());
    request
}

fn stored(name: &'static str, request: &InstanceAccess) -> Object {
    let request = &without_sessions(request.clone());
    let conditions = request.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    object(name, conditions, "Made by the operator's own decisions;", request)
}

/// A request with conditions that this version does not make yet: (type, status, reason).
fn by_table(
    name: &'static str,
    mut request: InstanceAccess,
    rows: &[(ConditionType, ConditionStatus, &str)],
) -> Object {
    let condition = |(type_, status, reason): &(_, _, &str)| Condition {
        type_: *type_,
        status: *status,
        reason: (*reason).to_owned(),
        message: "as a later version will say".to_owned(),
        observed_generation: 1,
        last_transition_time: Time(at(0)),
    };
    let mut status = request.status.take().unwrap_or_default();
    status.observed_generation = Some(1);
    status.conditions = rows.iter().map(condition).collect();
    let conditions = status.conditions.clone();
    request.status = Some(status);
    object(
        name,
        &conditions,
        "Put together by the design's table, no version makes it yet;",
        &without_sessions(request),
    )
}

fn a_policy(name: &'static str, change: impl FnOnce(&mut InstanceAccessPolicy), is_seen: bool) -> Object {
    let mut object_ = developers();
    change(&mut object_);
    let mut status = InstanceAccessPolicyStatus { observed_generation: Some(-1), ..Default::default() };
    if is_seen {
        let policy = Policy::compile(&object_);
        let problem = policy.problem().map(|problem| (problem.reason, problem.message.as_str()));
        condition::set_policy(&mut status.conditions, problem, 1, at(0));
        status.observed_generation = Some(1);
    }
    let conditions = status.conditions.clone();
    object_.status = Some(status);
    object(name, &conditions, "Made by the operator's own decisions;", &object_)
}

/// A life whose pushes all fail that way.
fn failing(class: FailureClass, until: i64) -> Life {
    let mut life = world();
    life.fate = Fate::Fails(class);
    life.until(until)
}

fn objects() -> Vec<Object> {
    use ConditionStatus::True;
    use ConditionType::{Active, Approved, Stalled};

    let scheduled = world().with(|request| request.spec.start_time = Some(Time(at(7200)))).settled();
    let mut granting = world();
    granting.fate = Fate::Lands { queue: seconds(0), flight: seconds(2) };
    let granting = granting.until(1);
    let granted = world().settled();
    let mut unseen = world().settled();
    unseen.revoke();

    let mut pending = world().until(100);
    pending.revoke();
    let pending = pending.settled();
    let revoked = {
        let mut life = world().until(100);
        life.revoke();
        life.until(300)
    };
    let mut deleting = world().until(100);
    deleting.delete();
    let mut deleting = deleting.settled();
    let going = made("deleting", &deleting);
    // The object goes in the same moment; another's finalizer would keep it as it is here.
    let mut released = deleting.object.clone().unwrap();
    deleting.run_until(at(300));
    assert_eq!(deleting.object, None);
    released.status.clone_from(&deleting.last_status);

    let mut consumed = world().until(100);
    consumed.delete();
    consumed.run_until(at(300));
    consumed.make_again(|_| {});
    let consumed = consumed.settled();

    let over = world().until(600);
    let too_late = world().with(|request| request.spec.end_time = Some(Time(at(-1)))).settled();
    let refused = world().under(|policy| policy.subjects.clear()).settled();
    // It passes the CRD's pattern; a length inside of it is a lie.
    let invalid = world().with(|request| request.spec.ssh_public_key = ED25519.replace("AAAAIF", "AAAAJF")).settled();

    let stopped = world().on(|instance| instance.state = InstanceState::Stopped).settled();
    let terminated = world().on(|instance| instance.state = InstanceState::Terminated).settled();
    let mut absent = world();
    absent.instances.clear();
    let absent = absent.settled();
    let not_found = made("target-not-found-yet", &absent);
    let lost = absent.until(400);

    let ask = || world().under(|policy| policy.approval = Some(people::one_lead())).settled();
    let asking = ask();
    let mut denied = ask();
    denied.decide(&erin(), DecisionKind::Deny);
    let denied = denied.settled();
    let unheard = ask().until(3700);
    // Not Reconciling as well: of the two, kstatus believes the one that is listed first.
    let unconfirmed = [
        (Approved, True, "AdmittedByPolicy"),
        (Active, True, "RevocationPending"),
        (Stalled, True, "RevocationPending"),
    ];
    let held = granted.object.clone().unwrap();

    let mut unguarded = world();
    unguarded.enforcement =
        Enforcement::Missing("ValidatingAdmissionPolicy requests.instanceaccess.dev is missing; apply it".into());
    let unguarded = unguarded.settled();
    let mut unchecked = world();
    unchecked.enforcement = Enforcement::Stands { since_time: at(60) };
    let unchecked = unchecked.settled();
    let mut deaf = world().until(100);
    deaf.sight.contact_lost_time = Some(at(100));
    let deaf = deaf.until(300);
    let mut unrecorded = world();
    unrecorded.audit_works = false;
    let unrecorded = unrecorded.settled();
    let mut unreachable = world().on(|instance| instance.public_ip = None);
    unreachable.endpoints.clear();
    let unreachable = unreachable.settled();
    let mut ambiguous = world().with(|request| {
        request.spec.target.instance_id = None;
        request.spec.target.tags = Some([("env".into(), "dev".into())].into());
    });
    let other = Instance { id: InstanceId::parse("i-00000000000000001").unwrap(), ..instance() };
    ambiguous.instances.push(Arc::new(other));
    let ambiguous = ambiguous.settled();
    let mut unanswered = world();
    unanswered.look_failure = Some(failure(FailureClass::Retry));
    let unanswered = unanswered.settled();
    let mut unreadable = world();
    unreadable.unreadable = vec!["fix-web-1-7x2kq".into()];
    let unreadable = unreadable.settled();
    vec![
        stored("new", &request()),
        made("pending-approval", &asking),
        made("scheduled", &scheduled),
        made("granting", &granting),
        made("granted", &granted),
        made("granted-change-unseen", &unseen),
        made("expired", &over),
        made("expired-before-grant", &too_late),
        made("revoked", &revoked),
        stored("released", &released),
        made("consumed", &consumed),
        made("denied-by-policy", &refused),
        made("denied-invalid-spec", &invalid),
        made("denied-by-approver", &denied),
        made("denied-approval-timeout", &unheard),
        made("denied-limit-reached", &limits::full()),
        made("instance-not-running", &stopped),
        not_found,
        made("throttled", &failing(FailureClass::Throttled, 61)),
        made("instance-terminated", &terminated),
        made("target-not-found", &lost),
        made("access-denied", &failing(FailureClass::Refused, 61)),
        made("push-refused", &failing(FailureClass::Invalid, 61)),
        made("revocation-pending", &pending),
        going,
        by_table("revocation-stalled", held, &unconfirmed),
        made("requester-unchecked", &unchecked),
        made("enforcement-missing", &unguarded),
        made("contact-lost", &deaf),
        made("audit-unavailable", &unrecorded),
        made("aws-unavailable", &unanswered),
        made("no-route", &unreachable),
        made("target-ambiguous", &ambiguous),
        made("decision-unreadable", &unreadable),
        a_policy("policy-new", |_| {}, false),
        a_policy("policy-ready", |_| {}, true),
        a_policy(
            "policy-not-ready",
            |policy| policy.spec.reason = Some(PolicyText { required: None, pattern: Some("(".into()) }),
            true,
        ),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gitops/objects")
}

#[test]
fn the_objects_that_gitops_engines_are_asked_about_are_what_this_version_makes() {
    let mut names = Vec::new();
    for object in objects() {
        let path = folder().join(format!("{}.yaml", object.name));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &object.yaml).unwrap();
        }
        let stands = std::fs::read_to_string(&path).unwrap_or_default();
        let name = object.name;
        assert!(
            stands == object.yaml,
            "{name}.yaml is stale; run {UPDATE}=1 cargo test --lib objects, then make gitops"
        );
        names.push(format!("{name}.yaml"));
    }
    names.sort();
    let mut there: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    assert_eq!(there, names, "each file is one of the objects above");
}

#[test]
fn every_row_of_the_table_of_conditions_has_its_object() {
    let lines: Vec<String> = objects().into_iter().map(|object| format!("{}: {}", object.name, object.line)).collect();
    let expected = [
        "new: nothing",
        "pending-approval: Approved=Unknown/PendingApproval Active=False/PendingApproval Reconciling=True/PendingApproval",
        "scheduled: Approved=True/AdmittedByPolicy Active=False/Scheduled Reconciling=True/Scheduled",
        "granting: Approved=True/AdmittedByPolicy Active=False/Granting Reconciling=True/Granting",
        "granted: Approved=True/AdmittedByPolicy Active=True/Granted Ended=False/Granted",
        "granted-change-unseen: Approved=True/AdmittedByPolicy Active=True/Granted Ended=False/Granted",
        "expired: Approved=True/AdmittedByPolicy Active=False/Expired Ended=True/Expired",
        "expired-before-grant: Active=False/Expired Ended=True/Expired",
        "revoked: Approved=True/AdmittedByPolicy Active=False/Revoked Ended=True/Revoked",
        "released: Approved=True/AdmittedByPolicy Active=False/Released Ended=True/Released",
        "consumed: Active=False/Consumed Ended=True/Consumed",
        "denied-by-policy: Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True/Denied",
        "denied-invalid-spec: Denied=True/InvalidSpec Active=False/Denied Ended=True/Denied Stalled=True/Denied",
        "denied-by-approver: Active=False/Denied Denied=True/DeniedByApprover Ended=True/Denied Stalled=True/Denied",
        "denied-approval-timeout: Active=False/Denied Denied=True/ApprovalTimeout Ended=True/Denied Stalled=True/Denied",
        "denied-limit-reached: Denied=True/LimitReached Active=False/Denied Ended=True/Denied Stalled=True/Denied",
        "instance-not-running: Active=False/InstanceNotRunning Reconciling=True/InstanceNotRunning",
        "target-not-found-yet: Active=False/TargetNotFound Reconciling=True/TargetNotFound",
        "throttled: Approved=True/AdmittedByPolicy Active=False/Throttled Reconciling=True/Throttled",
        "instance-terminated: Active=False/InstanceTerminated Stalled=True/InstanceTerminated",
        "target-not-found: Active=False/TargetNotFound Stalled=True/TargetNotFound",
        "access-denied: Approved=True/AdmittedByPolicy Active=False/AccessDenied Stalled=True/AccessDenied",
        "push-refused: Approved=True/AdmittedByPolicy Active=False/PushRefused Stalled=True/PushRefused",
        "revocation-pending: Approved=True/AdmittedByPolicy Active=True/RevocationPending Reconciling=True/RevocationPending",
        "deleting: Approved=True/AdmittedByPolicy Active=True/RevocationPending Reconciling=True/RevocationPending",
        "revocation-stalled: Approved=True/AdmittedByPolicy Active=True/RevocationPending Stalled=True/RevocationPending",
        "requester-unchecked: Denied=True/RequesterUnchecked Active=False/Denied Ended=True/Denied Stalled=True/Denied",
        "enforcement-missing: Active=False/EnforcementMissing Reconciling=True/EnforcementMissing",
        "contact-lost: Approved=True/AdmittedByPolicy Active=False/ContactLost Reconciling=True/ContactLost",
        "audit-unavailable: Approved=True/AdmittedByPolicy Active=False/AuditUnavailable Reconciling=True/AuditUnavailable",
        "aws-unavailable: Active=False/AwsUnavailable Reconciling=True/AwsUnavailable",
        "no-route: Active=False/NoRoute Reconciling=True/NoRoute",
        "target-ambiguous: Active=False/TargetAmbiguous Stalled=True/TargetAmbiguous",
        "decision-unreadable: Active=False/DecisionUnreadable Stalled=True/DecisionUnreadable",
        "policy-new: nothing",
        "policy-ready: Ready=True/Understood",
        "policy-not-ready: Ready=False/InvalidPattern Stalled=True/InvalidPattern",
    ];
    assert_eq!(lines, expected);
}
