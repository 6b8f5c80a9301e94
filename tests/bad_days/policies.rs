//! Who may not, and rules with mistakes in them.

use instance_access::api::InstanceAccessPolicy;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::days;
use crate::stand::{Ask, Day, Outcome, Special, Stand, apply, shared};

pub fn days() -> Vec<(&'static str, Day)> {
    days![
        without_a_policy_nobody_gets_in_and_learns_nothing_of_our_instances,
        a_deny_wins_over_every_allow,
        a_broken_pattern_is_told_in_the_policys_status_and_the_others_go_on,
        a_condition_that_could_burn_a_core_is_told_and_the_others_go_on,
        without_the_right_to_nodes_those_who_ask_by_node_are_told_and_the_others_served,
        a_policy_that_names_no_such_policy_is_told,
        policies_that_change_all_the_time_hold_up_nobodys_answer,
    ]
}

/// A policy about carol alone, so that its mistakes are nearest to nobody else's requests.
fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: instanceaccess.dev/v1alpha1\nkind: InstanceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         subjects: [{{kind: User, name: carol}}]\n  namespaces: [team]\n{rest}"
    )
}

async fn without_a_policy_nobody_gets_in_and_learns_nothing_of_our_instances() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    stand.create("mallory", &Ask::new("stranger").instance(&id)).await?;
    let words = ["no policy admits mallory as ec2-user", "no policy is for this requester in namespace team", "ask"];
    let object = stand.until_denied("stranger", "DeniedByPolicy", &words).await?;
    let status = object.status.expect("it is denied");
    anyhow::ensure!(status.instance.is_none(), "a stranger learnt {:?}", status.instance);
    anyhow::ensure!(stand.calls(lab::standin::Api::Ec2, &id).is_empty(), "a stranger cost a look-up");
    // The right person, as somebody whom no policy lets in.
    stand.ask(Ask::new("as-root").instance(&id).with("osUser", json!("root"))).await?;
    let words = ["no policy admits alice as root", "nearest is developers, which allows osUsers ec2-user"];
    stand.until_denied("as-root", "DeniedByPolicy", &words).await?;
    anyhow::ensure!(stand.pushes(&id).is_empty(), "something was pushed");
    Ok(())
}

async fn a_deny_wins_over_every_allow() -> Outcome {
    let stand = shared().await?;
    let (open, shut) = (stand.running(), stand.running());
    let rest = format!("  effect: Deny\n  targets: {{instanceIds: [{shut}]}}\n  osUsers: ['*']\n");
    apply(&stand.lab, &policy("frozen", &rest)).await?;
    stand.until_policy("frozen", "True").await?;
    stand.create("carol", &Ask::new("denied-there").instance(&shut)).await?;
    stand.create("carol", &Ask::new("allowed-here").instance(&open)).await?;
    let words = ["policy frozen denies carol as ec2-user", &shut];
    stand.until_denied("denied-there", "DeniedByPolicy", &words).await?;
    stand.until_granted("allowed-here").await?;
    anyhow::ensure!(stand.pushes(&shut).is_empty(), "a denied key was pushed");
    Ok(())
}

async fn a_broken_pattern_is_told_in_the_policys_status_and_the_others_go_on() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let allow = "  effect: Allow\n  priority: 1000\n  targets: {instanceIds: ['*']}\n  osUsers: [ops]\n  \
                 ttl: {defaultSeconds: 600, maxSeconds: 600}\n";
    apply(&stand.lab, &policy("broken", &format!("{allow}  reason: {{pattern: '^INC-([0-9]+'}}\n"))).await?;
    let (reason, message) = stand.until_policy("broken", "False").await?;
    anyhow::ensure!(reason == "InvalidPattern", "{reason}");
    anyhow::ensure!(message.contains("spec.reason.pattern") && message.contains("unclosed group"), "{message}");
    // What only the broken one could admit is refused, and told why.
    let ask = |name: &str, user: &str| {
        Ask::new(name).instance(&id).with("osUser", json!(user)).with("reason", json!("INC-1"))
    };
    stand.create("carol", &ask("by-broken", "ops")).await?;
    let words = ["broken, which has a mistake", "spec.reason.pattern"];
    stand.until_denied("by-broken", "DeniedByPolicy", &words).await?;
    // The others go on, beside it.
    stand.create("carol", &ask("by-another", "ec2-user")).await?;
    stand.until_granted("by-another").await?;
    // Mended, it is in force.
    apply(&stand.lab, &policy("broken", &format!("{allow}  reason: {{pattern: '^INC-[0-9]+'}}\n"))).await?;
    stand.until_policy("broken", "True").await?;
    stand.create("carol", &ask("by-mended", "ops")).await?;
    stand.until_granted("by-mended").await?;
    Ok(())
}

async fn a_condition_that_could_burn_a_core_is_told_and_the_others_go_on() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    let nested =
        (0..8).rev().fold("true".to_owned(), |inner, level| format!("[0,1,2,3,4,5,6,7,8,9].all(v{level}, {inner})"));
    let hostile = [
        (nested, "steps on the largest request"),
        ("subject.groups.all(a, subject.groups.all(b, a != b))".to_owned(), "steps on the largest request"),
        ("subject.groups.map(a, subject.groups.map(b, a + b)).size() > 0".to_owned(), "larger than a MiB"),
        (format!("{}1{} == 1", "[".repeat(1000), "]".repeat(1000)), "recursion limit"),
        (format!("1{} == 1", "+1".repeat(1000)), "nested deeper than"),
        ("request.reason.matches('((a{99}){99}){99}')".to_owned(), "exceeds size limit"),
        ("request.reson == ''".to_owned(), "there is no field reson; request has name"),
    ];
    let allow = "  effect: Allow\n  targets: {instanceIds: ['*']}\n  osUsers: [tester]\n  \
                 ttl: {defaultSeconds: 600, maxSeconds: 600}\n";
    for (number, (expression, _)) in hostile.iter().enumerate() {
        let condition = format!("  conditions: [{{expression: {}, message: refused}}]\n", json!(expression));
        // About requests that nobody makes: a mistake is near to every other refusal.
        let burning = policy(&format!("burning-{number}"), &format!("{allow}{condition}"));
        apply(&stand.lab, &burning.replace("namespaces: [team]", "namespaces: [nowhere]")).await?;
    }
    for (number, (_, words)) in hostile.iter().enumerate() {
        let (reason, message) = stand.until_policy(&format!("burning-{number}"), "False").await?;
        anyhow::ensure!(reason == "InvalidCondition", "{reason}");
        anyhow::ensure!(message.contains("spec.conditions") && message.contains(words), "{message}");
    }
    // The dearest that is let pass is asked, and comes to an end.
    let dear = "  conditions: [{expression: '[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, \
                [0,1,2,3,4,5,6,7,8,9].all(c, a + b + c >= 0))) && request.reason.matches(\"^(0*1?){40}x\")', \
                message: begin with many ones}]\n";
    apply(&stand.lab, &policy("a-dear", &format!("{allow}{dear}"))).await?;
    stand.until_policy("a-dear", "True").await?;
    let ask = |name: &str| Ask::new(name).instance(&id).with("osUser", json!("tester"));
    stand.create("carol", &ask("by-burning").with("reason", json!("1".repeat(1000)))).await?;
    let words = ["a-dear, which has a condition that does not hold: begin with many ones"];
    stand.until_denied("by-burning", "DeniedByPolicy", &words).await?;
    stand.create("carol", &ask("by-dear").with("reason", json!("1111x"))).await?;
    stand.until_granted("by-dear").await?;
    // And so are the others, who have nothing to do with it.
    stand.ask(Ask::new("beside-burning").instance(&id)).await?;
    stand.until_granted("beside-burning").await?;
    // Their look-ups would go on, among other tests' faults.
    stand.delete("carol", "by-dear").await?;
    stand.delete("alice", "beside-burning").await?;
    let policies: Api<InstanceAccessPolicy> = Api::all(stand.client("admin").await?);
    for number in 0..hostile.len() {
        let _ = policies.delete(&format!("burning-{number}"), &DeleteParams::default()).await?;
    }
    Ok(())
}

async fn without_the_right_to_nodes_those_who_ask_by_node_are_told_and_the_others_served() -> Outcome {
    let rbac: fn(&str) -> String = |rights| rights.replace("resources: [nodes]", "resources: [no-nodes]");
    let stand = Stand::own(Special { rbac: Some(rbac), ..Special::default() }).await?;
    let id = stand.running();
    stand.ask(Ask::new("by-node").with("target", json!({"nodeName": "node-1"}))).await?;
    let words = ["the operator does not hear of nodes", "let it list and watch them"];
    stand.until("by-node", "ContactLost", &words).await?;
    stand.ask(Ask::new("by-id").instance(&id)).await?;
    stand.until_granted("by-id").await?;
    // Given the right, it goes on by itself.
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-1}}\nspec: {{providerID: 'aws:///us-west-2a/{id}'}}\n"
    );
    apply(&stand.lab, &node).await?;
    apply(&stand.lab, include_str!("../../examples/operator-rbac.yaml")).await?;
    stand.until_granted("by-node").await?;
    Ok(())
}

async fn a_policy_that_names_no_such_policy_is_told() -> Outcome {
    let stand = shared().await?;
    let id = stand.running();
    stand.ask(Ask::new("by-no-such").instance(&id).with("policyName", json!("no-such"))).await?;
    let words = ["spec.policyName names no-such", "leave it out to let the operator choose"];
    stand.until_denied("by-no-such", "DeniedByPolicy", &words).await?;
    Ok(())
}

async fn policies_that_change_all_the_time_hold_up_nobodys_answer() -> Outcome {
    const ASKED: usize = 100;
    let stand = Stand::own(Special::default()).await?;
    let id = stand.running();
    let allow = "  effect: Allow\n  targets: {instanceIds: ['*']}\n  osUsers: [tester]\n  \
                 ttl: {defaultSeconds: 600, maxSeconds: 600}\n";
    apply(&stand.lab, &policy("restless", allow)).await?;
    let policies: Api<InstanceAccessPolicy> = Api::all(stand.client("admin").await?);
    // As fast as the API server takes them, until everybody has an answer.
    let edits = async {
        for priority in 0.. {
            let patch = json!({"spec": {"priority": priority % 1000}});
            policies.patch("restless", &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        anyhow::Ok(())
    };
    let answers = async {
        let names: Vec<_> = (0..ASKED).map(|number| format!("stranger-{number}")).collect();
        let asks: Vec<_> = names.iter().map(|name| Ask::new(name).instance(&id)).collect();
        futures::future::try_join_all(asks.iter().map(|ask| stand.create("mallory", ask))).await?;
        for name in &names {
            stand.until_denied(name, "DeniedByPolicy", &["no policy admits mallory"]).await?;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        edited = edits => edited?,
        answered = answers => answered?,
    }
    let restless = stand.controller.metric("instance_access_restless_turns_total").await?;
    anyhow::ensure!(restless == 0.0, "{restless} turns came to no rest:\n{}", stand.controller.log_of("come to rest"));
    Ok(())
}
