//! The admission policies as the API server keeps them.

use instance_access::admission::{self, Standing};
use serde::Deserialize;
use serde_json::Value;

use super::world::{standings, world};
use crate::common::{kubectl, writers};

#[tokio::test]
async fn the_api_server_keeps_the_policies_as_they_are_written() {
    let world = world().await;
    let yaml = admission::yaml(&writers(), true);
    let mut seen = 0;
    for ours in serde_yaml::Deserializer::from_str(&yaml) {
        let ours = Value::deserialize(ours).unwrap();
        let (kind, name) = (ours["kind"].as_str().unwrap(), ours["metadata"]["name"].as_str().unwrap());
        let live = kubectl(world.lab, "admin", &["get", kind, name, "-o", "json"]).await.unwrap();
        let live: Value = serde_json::from_str(&live).unwrap();
        // No default is left to the server, so that whoever compares the two needs to know none.
        assert_eq!(live["spec"], ours["spec"], "{kind} {name}");
        seen += 1;
    }
    assert_eq!(seen, 12, "six policies, six bindings");
}

#[tokio::test]
async fn an_untouched_install_stands_whole() {
    let world = world().await;
    let standings = standings(&world.operator).await;
    let kinds: std::collections::BTreeSet<_> =
        standings.iter().filter_map(|(title, _)| title.split(' ').next()).collect();
    assert_eq!(kinds.len(), 5, "{standings:?}");
    for (title, standing) in standings {
        assert!(matches!(standing, Standing::Sound { changed_time: Some(_), .. }), "{title}: {standing:?}");
    }
}

#[tokio::test]
async fn every_change_of_what_guards_requests_is_counted_by_one_and_nothing_else_is() {
    crate::counts::counts(world().await.admin.client(), true).await;
}
