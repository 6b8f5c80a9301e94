//! The metrics pages of both programs at work: whoever watches them finds what the rules and the dashboard ask for.

use lab::poll;

use crate::client::Client;
use crate::jump::both;
use crate::monitoring::{every_series_is_there, series_that_prometheus_reads};
use crate::stand::BOUND;

pub async fn what_the_alerts_and_the_dashboard_ask_for_is_served_and_names_nobody() {
    let (stand, jump) = both().await;
    let instance = stand.instance("counted").await;
    let request = stand.request("alice", "counted").on(&instance).applied().await;
    request.becomes("Granted").await;
    Client::of(&request, jump).gets_in(&[&instance.id]).await;
    request.ends("Expired").await;
    let pages = async || (stand.metrics().await, jump.get("/metrics").await.unwrap().1);
    let (controller, gateway) = pages().await;
    for page in [&controller, &gateway] {
        assert!(series_that_prometheus_reads(page) > 50, "{page}");
    }
    every_series_is_there(&[&controller, &gateway]);

    let value = |page: &str, sample: &str| -> f64 {
        page.lines()
            .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
            .unwrap_or_else(|| panic!("no {sample} in\n{page}"))
    };
    for (sample, least) in [
        ("instance_access_leader", 1.0),
        ("instance_access_api_server_heard", 1.0),
        ("instance_access_audit_open", 1.0),
        ("instance_access_expects_gateway", 1.0),
        ("instance_access_grant_latency_seconds_count", 1.0),
        ("instance_access_end_lateness_seconds_count", 1.0),
        ("instance_access_lookup_calls_total{outcome=\"answered\"}", 1.0),
        ("instance_access_pushes_total{outcome=\"delivered\"}", 1.0),
        ("process_resident_memory_bytes", 1e6),
    ] {
        assert!(value(&controller, sample) >= least, "{sample} in\n{controller}");
    }
    for (sample, least) in [
        ("instance_access_gateway_api_server_heard", 1.0),
        ("instance_access_gateway_audit_records_total{outcome=\"appended\"}", 2.0),
        ("instance_access_gateway_bytes_total{direction=\"from_instance\"}", 1.0),
        ("instance_access_gateway_bytes_total{direction=\"to_instance\"}", 1.0),
        ("process_start_time_seconds", 1.5e9),
    ] {
        assert!(value(&gateway, sample) >= least, "{sample} in\n{gateway}");
    }
    // Grants of other tests end, and none stays overdue.
    let overdue = async || match value(&stand.metrics().await, "instance_access_end_overdue_seconds") {
        overdue if overdue < 1.0 => Ok(()),
        overdue => Err(overdue),
    };
    poll::until("no overdue end", BOUND, overdue).await.unwrap();
    for page in [&controller, &gateway] {
        for name in ["alice", "counted", "team", instance.id.as_str(), request.uid.as_str(), "ec2-user"] {
            assert!(!page.contains(name), "{name} stands on a page of metrics:\n{page}");
        }
    }
    request.keeps_its_promises().await;
}
