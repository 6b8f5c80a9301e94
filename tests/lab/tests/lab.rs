//! What the lab promises to the tests that stand on it.

use std::time::Duration;

use lab::{Lab, Launch, Options, ssh};

const BOUND: Duration = Duration::from_secs(30);

fn only(launch: Launch) -> Options {
    Options::aws_only().instances([launch])
}

#[tokio::test]
async fn a_login_needs_a_key_that_the_metadata_offers() {
    let lab = Lab::start(only(Launch::new("web-1"))).await.unwrap();
    let web = lab.instance("web-1");
    let key = lab.new_key("alice").await.unwrap();

    let refused = lab.ssh_login(&key, &web, "id -un").await.unwrap();
    assert_eq!(refused.status, Some(255), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied (publickey)"), "{refused:?}");

    lab.push_key(&web, "ec2-user", &key).await.unwrap();
    let shell = lab.ssh_login(&key, &web, "id -un; pwd; touch here; exit 7").await.unwrap();
    assert_eq!(shell.status, Some(7), "{shell:?}");
    let mut lines = shell.stdout.lines();
    assert_eq!(lines.next(), Some("ec2-user"));
    assert!(lines.next().unwrap().ends_with("/web-1/ec2-user"));
    lab.shutdown().await.unwrap();
}

#[tokio::test]
async fn two_labs_stand_side_by_side() {
    let (one, two) = tokio::join!(Lab::start(Options::default()), Lab::start(Options::default()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.instance("web-1").id, two.instance("web-1").id);
    let both = [&one, &two];
    for lab in both {
        let mut whoami = lab.kubectl("alice").unwrap();
        let whoami = ssh::run(whoami.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"]));
        let whoami = whoami.await.unwrap();
        assert_eq!(whoami.stdout, "alice [\"developers\",\"system:authenticated\"]", "{whoami:?}");
    }
    let dir = one.dir().to_owned();
    one.shutdown().await.unwrap();
    assert!(!dir.exists());
    let key = two.new_key("alice").await.unwrap();
    two.push_key(&two.instance("web-1"), "ec2-user", &key).await.unwrap();
    let shell = two.ssh_login(&key, &two.instance("web-1"), "true").await.unwrap();
    assert!(shell.success(), "{shell:?}");
}
