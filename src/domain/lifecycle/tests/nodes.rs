//! Requests by the name of a Kubernetes node.

use proptest::prelude::*;

use super::histories::{Turn, any_turn, cases, happen};
use super::*;
use crate::domain::node::Node;

const GRANTED: &str = "Approved=True Active=True/Granted Ended=False/Granted";
const WAITING: &str = "Active=False/TargetNotFound Reconciling=True";

fn node(provider_id: &str) -> Node {
    Node {
        name: "ip-10-0-1-7".into(),
        provider_id: (!provider_id.is_empty()).then(|| provider_id.to_owned()),
        labels: [("role".to_owned(), "worker".to_owned())].into(),
    }
}

fn own() -> Node {
    node(&format!("aws:///us-west-2a/{INSTANCE}"))
}

impl Life {
    fn has(&mut self, node: Option<Node>) {
        self.nodes.by_name.clear();
        if let Some(node) = node {
            self.nodes.by_name.insert(node.name.clone(), Arc::new(node));
        }
    }
}

/// A request by node, in a cluster that has this one.
fn by_node(node: Option<Node>) -> Life {
    let mut life = world().with(|request| {
        request.spec.target = Target {
            instance_id: None,
            node_name: Some("ip-10-0-1-7".into()),
            tags: None,
            region: None,
            account_id: None,
        };
    });
    life.has(node);
    life
}

#[test]
fn a_node_leads_to_its_instance_in_its_own_region() {
    let life = by_node(Some(own())).settled();
    life.shows(GRANTED);
    assert_eq!(life.status().instance.unwrap().instance_id, INSTANCE);
    // The operator needs no region of its own for it.
    let mut life = by_node(Some(own()));
    life.settings = Settings::default();
    life.settled().shows(GRANTED);
}

fn elsewhere(request: &mut InstanceAccess) {
    request.spec.target.region = Some("eu-central-1".into());
}

#[test]
fn a_region_that_is_not_the_nodes_is_refused_without_naming_the_nodes() {
    let life = by_node(Some(own())).with(elsewhere).settled();
    life.says(
        ConditionType::Denied,
        "spec.target.region: node ip-10-0-1-7 is not in eu-central-1; leave the region out",
    );
    assert!(!serde_json::to_string(&life.status()).unwrap().contains("us-west-2"));
    assert_eq!(life.look_ups, 0);
}

#[test]
fn who_is_admitted_nowhere_does_not_learn_whether_the_node_is_in_a_region() {
    let said = |life: Life| {
        let life = life.under(|policy| policy.subjects.clear()).settled();
        life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
        life.message(ConditionType::Denied)
    };
    let right = by_node(Some(own())).with(|request| request.spec.target.region = Some("us-west-2".into()));
    let (right, wrong) = (said(right), said(by_node(Some(own())).with(elsewhere)));
    assert_eq!((&right, &right), (&wrong, &said(by_node(None).with(elsewhere))));
}

#[test]
fn a_node_that_is_no_instance_yet_is_waited_for_and_told_why() {
    for (there, why) in [
        (None, "there is no node ip-10-0-1-7; check spec.target.nodeName with kubectl get nodes"),
        (Some(node("")), "has no spec.providerID yet"),
        (
            Some(node("kind://docker/kind/x")),
            "has the spec.providerID kind://docker/kind/x, which names no EC2 instance",
        ),
    ] {
        let life = by_node(there).settled();
        life.shows(WAITING);
        life.says(ConditionType::Active, why);
        assert_eq!(life.look_ups, 0);
        let mut life = life.until(60);
        assert_eq!(life.writes, 1);
        life.has(Some(own()));
        life.settle();
        life.shows(GRANTED);
    }
    let life = by_node(None).until(400);
    life.shows("Active=False/TargetNotFound Stalled=True");
    assert!(life.plans < 60, "{} plans", life.plans);
}

#[test]
fn who_is_admitted_nowhere_learns_nothing_of_nodes() {
    let life = by_node(Some(node("kind://secret"))).under(|policy| policy.subjects.clear()).settled();
    life.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    assert!(!life.message(ConditionType::Denied).contains("secret"));
}

#[test]
fn whom_no_policy_admits_to_a_nodes_instance_learns_not_which_it_is() {
    let prod = |instance: &mut Instance| drop(instance.tags.insert("env".into(), "prod".into()));
    let denied = by_node(Some(own())).on(prod).settled();
    denied.shows("Denied=True/DeniedByPolicy Active=False/Denied Ended=True/Denied Stalled=True");
    denied
        .says(ConditionType::Denied, "no policy admits alice as ec2-user on the instance of node ip-10-0-1-7; nearest");
    assert_eq!(denied.records[0].1.instance_id.as_deref(), Some(INSTANCE));
    let dead = by_node(Some(own())).on(|instance| instance.state = InstanceState::Terminated).settled();
    dead.says(ConditionType::Active, "the instance of node ip-10-0-1-7 is terminated; ask for another instance");
    for life in [denied, dead] {
        let status = serde_json::to_string(&life.status()).unwrap();
        assert!(!status.contains(INSTANCE), "{status}");
    }
}

#[test]
fn a_grant_ends_when_its_node_goes_or_is_another_instance() {
    for (changed, why) in [
        (None, "there is no node ip-10-0-1-7"),
        (
            Some(node("aws:///us-west-2a/i-0fffffffffffffff0")),
            "node ip-10-0-1-7 is i-0fffffffffffffff0 now, and i-0123456789abcdef0 was granted",
        ),
        (Some(node("aws:///nowhere")), "which names no EC2 instance"),
    ] {
        let mut life = by_node(Some(own())).until(100);
        life.shows(GRANTED);
        let landed = life.landed();
        life.has(changed);
        life.settle();
        life.shows("Approved=True Active=True/RevocationPending Reconciling=True");
        life.says(ConditionType::Active, why);
        life.has(Some(own()));
        let life = life.until(200);
        life.shows("Approved=True Active=False/Revoked Ended=True/Revoked");
        assert_eq!(life.landed(), landed);
    }
}

#[test]
fn a_node_that_became_another_instance_before_the_grant_is_looked_up_again() {
    let mut life = by_node(Some(own()));
    life.look_delay = seconds(1);
    life.reconcile();
    // The answer to the first look is still out.
    let mut other = instance();
    other.id = InstanceId::parse("i-0fffffffffffffff0").unwrap();
    life.has(Some(node("aws:///us-west-2a/i-0fffffffffffffff0")));
    let mut life = life.until(1);
    assert!(life.status().grant.is_none(), "granted what the node no longer is");
    life.instances = vec![Arc::new(other)];
    let life = life.until(20);
    life.shows(GRANTED);
    assert_eq!(life.status().instance.unwrap().instance_id, "i-0fffffffffffffff0");
}

#[test]
fn before_the_nodes_were_listed_nothing_is_decided() {
    let mut life = by_node(Some(own()));
    life.nodes.seen = false;
    life.settle();
    life.shows("");
    life.nodes.seen = true;
    life.settle();
    life.shows(GRANTED);
    let landed = life.landed();
    life.crash();
    life.nodes.seen = false;
    let mut life = life.until(300);
    assert_eq!((life.landed(), life.status().revocation), (landed, None));
    life.nodes.seen = true;
    life.settle();
    assert!(life.landed() > landed);
    // Its clock goes on.
    life.crash();
    life.nodes.seen = false;
    life.until(600).shows("Approved=True Active=False/Expired Ended=True/Expired");
}

#[test]
fn without_a_word_of_nodes_those_by_node_wait_and_the_others_go_on() {
    let unheard = |life: &mut Life, seen: bool| {
        life.nodes.seen = seen;
        life.nodes.watch_failed(life.now);
    };
    let mut life = by_node(None);
    unheard(&mut life, false);
    life.settle();
    life.shows("Active=False/ContactLost Stalled=True");
    life.says(ConditionType::Active, "let it list and watch them");
    let mut others = world();
    unheard(&mut others, false);
    others.settled().shows(GRANTED);
    // A short outage closes nobody's access; a long one does, and it heals.
    let mut life = by_node(Some(own())).until(100);
    unheard(&mut life, true);
    let mut life = life.until(130);
    unheard(&mut life, true);
    let mut life = life.until(160);
    life.shows(GRANTED);
    let landed = life.landed();
    for second in [161, 191, 221, 251] {
        life = life.until(second);
        unheard(&mut life, true);
    }
    let mut life = life.until(280);
    assert_eq!(life.landed(), landed);
    life.shows("Approved=True Active=False/ContactLost Reconciling=True");
    // Quiet for longer than it waits between two tries: it is well.
    life = life.until(300);
    life.shows(GRANTED);
}

#[test]
fn while_nodes_are_unheard_of_what_ends_a_grant_still_ends_it() {
    let ending = "Approved=True Active=True/RevocationPending Reconciling=True";
    type Change = fn(&mut Life);
    let rows: [(&str, Change); 5] = [
        ("no longer admits this: it allows osUsers none", |life| life.policies[0].spec.os_users.clear()),
        ("policy developers was deleted", |life| life.policies.clear()),
        ("no longer admits this: it allows at most ttlSeconds 300", |life| {
            life.policies[0].spec.ttl = Some(PolicyTtl { default_seconds: 300, max_seconds: 300 });
        }),
        ("policy freeze denies this", |life| {
            let mut freeze = policy("freeze", PolicyEffect::Deny);
            freeze.spec.targets.instance_tags = None;
            freeze.spec.targets.instance_ids = Some(vec!["*".into()]);
            life.policies.push(freeze);
        }),
        ("alice revoked it: as said", |life| life.decide(&alice(), DecisionKind::Revoke)),
    ];
    for (why, change) in rows {
        let mut life = by_node(Some(own())).until(100);
        for second in [110, 140, 171] {
            life = life.until(second);
            life.nodes.watch_failed(life.now);
        }
        life.settle();
        life.shows(GRANTED);
        let landed = life.landed();
        change(&mut life);
        life.settle();
        life.shows(ending);
        life.says(ConditionType::Active, why);
        assert_eq!(life.until(300).landed(), landed);
    }
    // What only the node could tell is open: the label may be there still.
    let mut life = by_node(Some(own()))
        .under(|policy| policy.targets.node_labels = policy.targets.instance_tags.take().map(|_| selector("worker")))
        .until(100);
    for second in [110, 140, 171] {
        life = life.until(second);
        life.nodes.watch_failed(life.now);
    }
    life.settle();
    life.shows(GRANTED);
}

#[test]
fn a_grant_by_node_needs_no_region_of_the_operator_while_nodes_are_unheard_of() {
    let mut life = by_node(Some(own()));
    life.settings.region = None;
    let mut life = life.until(100);
    for second in [110, 140, 171] {
        life = life.until(second);
        life.nodes.watch_failed(life.now);
    }
    life.settle();
    life.shows(GRANTED);
    life.until(300).shows(GRANTED);
}

#[test]
fn labels_of_the_node_that_change_end_what_they_admitted() {
    let mut life = by_node(Some(own()))
        .under(|policy| policy.targets.node_labels = policy.targets.instance_tags.take().map(|_| selector("worker")))
        .until(100);
    life.shows(GRANTED);
    let mut relabelled = own();
    relabelled.labels.insert("role".into(), "db".into());
    life.has(Some(relabelled));
    life.settle();
    life.says(
        ConditionType::Active,
        "no longer admits this: it selects nodes, by spec.target.nodeName, with the labels role=worker",
    );
    life.until(200).shows("Approved=True Active=False/Revoked Ended=True/Revoked");
}

fn selector(role: &str) -> TagSelector {
    TagSelector { match_labels: Some([("role".to_owned(), role.to_owned())].into()), match_expressions: None }
}

/// Something that happens where nodes are asked for.
#[derive(Clone, Debug)]
enum NodeTurn {
    Any(Turn),
    /// The node is this instance now, or gone.
    Is(Option<&'static str>),
    Unheard,
    Heard,
    CrashBeforeNodesAreListed,
}

fn any_node_turn() -> impl Strategy<Value = NodeTurn> {
    let ids = vec![Some(INSTANCE), Some(INSTANCE), Some("i-0fffffffffffffff0"), None];
    prop_oneof![
        12 => any_turn().prop_map(NodeTurn::Any),
        3 => prop::sample::select(ids).prop_map(NodeTurn::Is),
        2 => Just(NodeTurn::Unheard),
        2 => Just(NodeTurn::Heard),
        1 => Just(NodeTurn::CrashBeforeNodesAreListed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases() / 2, max_shrink_iters: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_nodes_the_invariants_hold(turns in prop::collection::vec(any_node_turn(), 1..40)) {
        let mut life = by_node(Some(own()));
        for turn in &turns {
            match turn {
                NodeTurn::Any(Turn::State(_) | Turn::Tag(_)) if life.instances.is_empty() => {}
                NodeTurn::Any(turn) => happen(&mut life, turn),
                NodeTurn::Is(id) => {
                    life.has(id.map(|id| node(&format!("aws:///us-west-2a/{id}"))));
                    life.settle();
                }
                NodeTurn::Unheard => life.nodes.watch_failed(life.now),
                NodeTurn::Heard => (life.nodes.seen, life.nodes.failing) = (true, None),
                NodeTurn::CrashBeforeNodesAreListed => {
                    life.crash();
                    life.nodes.seen = false;
                }
            }
        }
        life.crash_after = None;
        life.heals_and_ends();
    }
}
