//! A request that Git holds: applied again and again, and made anew when it is gone.

use serde_json::json;

use crate::history::{text, time};
use crate::request::{ENDS_IN, EXPIRATION, Request, whole_second_in};
use crate::stand::shared;

pub async fn a_request_that_git_makes_anew_after_its_end_time_is_over_at_once_and_never_pushed() {
    let stand = shared().await;
    let end = whole_second_in(ENDS_IN);
    let request = stand
        .request("alice", "from-git")
        .with(json!({"endTime": end.to_string(), "ttlSeconds": 3600}))
        .applied()
        .await;
    let manifest = stand.manifest(&request.manifest);
    // As Argo CD and Flux apply.
    let sync = ["apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", &manifest];
    let granted = request.becomes("Granted").await;
    assert_eq!(time(&granted, EXPIRATION), Some(end));
    for _ in 0..2 {
        stand.kubectl_ok("alice", &sync).await;
    }
    request.gets_in().await;
    let ended = request.ends("Expired").await;
    stand.kubectl_ok("alice", &sync).await;
    assert_eq!(request.newest()["status"], ended["status"]);
    request.keeps_its_promises().await;
    request.delete().await;
    request.goes().await;
    let pushes = request.pushes().len();

    // Self-heal.
    stand.kubectl_ok("alice", &sync).await;
    let uid = request.kubectl(&["get", "instanceaccess", "from-git", "-o", "jsonpath={.metadata.uid}"]).await;
    assert_ne!(uid, request.uid);
    let anew = Request { uid, ..request };
    let ended = anew.ends("Expired").await;
    assert_eq!(text(&ended, "/status/grant/id"), "");
    assert_eq!(anew.pushes().len(), pushes);
}
