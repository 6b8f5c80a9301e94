//! Who may ask.

use lab::standin::{Config, Credential};
use serde_json::json;

use super::client::{ID, authorization, push_body, world, world_with};

#[tokio::test]
async fn a_call_without_a_readable_signature_is_refused() {
    let world = world().await;
    let good = authorization("ec2", "us-west-2");
    let text = &good[0].1;
    for (authorization, ec2, eic) in [
        (None, "AuthFailure", "MissingAuthenticationTokenException"),
        (Some("Basic YTpi".to_owned()), "AuthFailure", "IncompleteSignatureException"),
        (Some(text.replace("SignedHeaders=host;", "SignedHeaders=")), "AuthFailure", "IncompleteSignatureException"),
        (Some(text.replace("/us-west-2/", "/")), "AuthFailure", "IncompleteSignatureException"),
        (Some(text.replace("/us-west-2/", "//")), "AuthFailure", "IncompleteSignatureException"),
        (Some(text.replace("Signature=00", "Signature=zz")), "AuthFailure", "IncompleteSignatureException"),
        (Some(text.replace("/ec2/", "/s3/")), "AuthFailure", "IncompleteSignatureException"),
    ] {
        let form = "Action=DescribeInstances&Version=2016-11-15";
        let mut query = world.http.post(world.url("/")).header("x-amz-date", &good[1].1).body(form);
        let mut push = world
            .http
            .post(world.url("/"))
            .header("x-amz-date", &good[1].1)
            .header("x-amz-target", "AWSEC2InstanceConnectService.SendSSHPublicKey")
            .body(push_body(json!({})).to_string());
        if let Some(text) = authorization {
            query = query.header("authorization", &text);
            push = push.header("authorization", text.replace("/ec2/", "/ec2-instance-connect/"));
        }
        let answer = world.send(query).await;
        assert_eq!((answer.status, answer.text("Code")), (401, Some(ec2)));
        assert_eq!(world.send(push).await.code().as_deref(), Some(eic));
    }
    assert!(world.stand_in.active_keys(ID, "ec2-user").is_empty());
}

#[tokio::test]
async fn an_unknown_access_key_is_refused_where_keys_are_listed() {
    let credential = Credential {
        access_key_id: "AKIAOTHER".into(),
        secret_access_key: "secret".into(),
        session_token: None,
        account_id: "123456789012".into(),
    };
    let world = world_with(Config { credentials: vec![credential], ..Config::default() }).await;
    assert_eq!(world.look_up(&[]).await.text("Code"), Some("AuthFailure"));
    assert_eq!(world.push(&push_body(json!({}))).await.code().as_deref(), Some("UnrecognizedClientException"));
    let answer = world.send(world.query("sts", &[("Action", "GetCallerIdentity")])).await;
    assert_eq!(answer.text("Code"), Some("InvalidClientTokenId"));
}

#[tokio::test]
async fn a_role_is_assumed_into_its_own_account() {
    let world = world().await;
    let answer = world.send(world.query("sts", &[("Action", "GetCallerIdentity")])).await;
    assert_eq!(answer.text("Account"), Some("123456789012"));
    let role = "arn:aws:iam::210987654321:role/path/broker";
    let parameters = [
        ("Action", "AssumeRoleWithWebIdentity"),
        ("RoleArn", role),
        ("RoleSessionName", "x"),
        ("WebIdentityToken", "t"),
    ];
    let mut form = form_urlencoded::Serializer::new("Version=2011-06-15".to_owned());
    form.extend_pairs(parameters);
    // this one call needs no signature: the token is the proof
    let answer = world.send(world.http.post(world.url("/")).body(form.finish())).await;
    assert_eq!(answer.text("Arn"), Some("arn:aws:sts::210987654321:assumed-role/broker/x"));
    assert!(answer.text("AccessKeyId").is_some_and(|it| it.starts_with("ASIA")));
    let bad = world.query("sts", &[("Action", "AssumeRole"), ("RoleArn", "broker"), ("RoleSessionName", "x")]);
    assert_eq!(world.send(bad).await.text("Code"), Some("ValidationError"));
}
