//! The gateway's trail when its file is full.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;

use crate::client::Client;
use crate::controller::PROGRAM;
use crate::jump::{Jump, both};
use crate::long_trail::{files, lengthen};

pub async fn a_full_file_is_closed_under_a_session_and_the_trail_goes_on_over_a_kill() {
    let (stand, _) = both().await;
    let name = "full";
    let dir = stand.lab.dir().join(name);
    fs::create_dir_all(&dir).unwrap();
    let audit = dir.join("audit.jsonl");
    lengthen(&audit).await.unwrap();
    let flags = ["--audit-file-max-mebibytes", "1"];
    let jump = Jump::start(stand, name, &flags).await;
    let instance = stand.instance("full").await;
    let request = stand.request("alice", "full").on(&instance).with(json!({"ttlSeconds": 600})).applied().await;
    request.becomes("Granted").await;
    let live = Client::of(&request, &jump).stays(&instance.id).await;
    assert_eq!(jump.metric("instance_access_gateway_audit_files_closed_total").await, 1.0);
    assert_eq!(jump.records(&request.uid, "SessionOpened").len(), 1, "it stands in the new file");
    drop(jump); // as kill -9 does
    drop(live);
    lengthen(&audit).await.unwrap();
    let jump = Jump::start(stand, name, &flags).await;
    Client::of(&request, &jump).gets_in(&[&instance.id]).await;
    jump.ended(&request.uid).await;
    let all = files(&audit).unwrap();
    assert_eq!(all.len(), 3, "{all:?}");
    for closed in all.iter().filter(|path| **path != audit) {
        assert_eq!(fs::metadata(closed).unwrap().permissions().mode() & 0o222, 0, "{closed:?} may be written");
    }
    let verify =
        |files: &[std::path::PathBuf]| Command::new(PROGRAM).args(["audit", "verify"]).args(files).output().unwrap();
    let verified = verify(&all);
    assert!(verified.status.success(), "{verified:?}");
    let alone = verify(&[audit]);
    assert!(
        !alone.status.success() && String::from_utf8_lossy(&alone.stderr).contains("what came before was cut off"),
        "{alone:?}"
    );
}
