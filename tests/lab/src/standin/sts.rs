//! STS: who am I, and becoming a role.

use std::collections::HashMap;
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};

use super::Shared;
use super::api::{Caller, Refusal};
use super::ec2::Form;
use super::xml::Xml;

/// Sessions kept: far more than any test makes.
const SESSIONS_MAX: usize = 10_000;

/// A role's temporary credentials.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) secret: String,
    pub(super) token: String,
    pub(super) account_id: String,
    pub(super) arn: String,
    pub(super) expires: Timestamp,
}

#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    pub(super) fn get(&self, access_key_id: &str) -> Option<Session> {
        self.0.lock().expect("no holder panics").get(access_key_id).cloned()
    }

    fn put(&self, access_key_id: String, session: Session) {
        let mut sessions = self.0.lock().expect("no holder panics");
        if sessions.len() >= SESSIONS_MAX {
            let now = Timestamp::now();
            sessions.retain(|_, it| it.expires > now);
        }
        if sessions.len() < SESSIONS_MAX {
            sessions.insert(access_key_id, session);
        }
    }
}

pub(super) fn is_action(action: &str) -> bool {
    matches!(action, "GetCallerIdentity" | "AssumeRole" | "AssumeRoleWithWebIdentity")
}

pub(super) fn needs_signature(action: &str) -> bool {
    action != "AssumeRoleWithWebIdentity"
}

pub(super) fn perform(shared: &Shared, form: &Form, caller: &Caller, request_id: &str) -> Result<String, Refusal> {
    let action = form.action();
    let mut xml = Xml::default();
    match action {
        "GetCallerIdentity" => {
            xml.leaf("Arn", &caller.arn);
            xml.leaf("UserId", &caller.access_key_id);
            xml.leaf("Account", &caller.account_id);
        }
        "AssumeRole" | "AssumeRoleWithWebIdentity" => assume(shared, form, &mut xml)?,
        other => {
            return Err(Refusal::new("InvalidAction", format!("Could not find operation {other}")));
        }
    }
    Ok(format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>{}</{action}Result>\
         <ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>",
        xml.0
    ))
}

fn assume(shared: &Shared, form: &Form, xml: &mut Xml) -> Result<(), Refusal> {
    let need = |name: &str| {
        form.get(name).filter(|it| !it.is_empty()).ok_or_else(|| {
            Refusal::new("ValidationError", format!("Value null at '{name}' failed to satisfy constraint"))
        })
    };
    let role = need("RoleArn")?;
    let name = need("RoleSessionName")?;
    if form.action() == "AssumeRoleWithWebIdentity" {
        need("WebIdentityToken")?;
    }
    let parts: Vec<&str> = role.splitn(6, ':').collect();
    let (account_id, role_name) = match parts[..] {
        ["arn", _, "iam", "", account, path] if account.len() == 12 && path.starts_with("role/") => {
            (account, path.rsplit('/').next().unwrap_or_default())
        }
        _ => {
            return Err(Refusal::new("ValidationError", format!("{role} is invalid")));
        }
    };
    let seconds: i64 = form.get("DurationSeconds").unwrap_or("3600").parse().unwrap_or(0);
    if !(900..=43_200).contains(&seconds) {
        return Err(Refusal::new("ValidationError", "DurationSeconds is not within 900..43200"));
    }
    let serial = uuid::Uuid::new_v4().simple().to_string();
    let access_key_id = format!("ASIA{}", serial[..16].to_uppercase());
    let session = Session {
        secret: uuid::Uuid::new_v4().simple().to_string(),
        token: uuid::Uuid::new_v4().simple().to_string(),
        account_id: account_id.into(),
        arn: format!("arn:aws:sts::{account_id}:assumed-role/{role_name}/{name}"),
        expires: Timestamp::now() + SignedDuration::from_secs(seconds),
    };
    xml.node("Credentials", |xml| {
        xml.leaf("AccessKeyId", &access_key_id);
        xml.leaf("SecretAccessKey", &session.secret);
        xml.leaf("SessionToken", &session.token);
        xml.leaf("Expiration", session.expires.strftime("%Y-%m-%dT%H:%M:%SZ"));
    });
    xml.node("AssumedRoleUser", |xml| {
        xml.leaf("AssumedRoleId", format_args!("AROA{}:{name}", serial[16..].to_uppercase()));
        xml.leaf("Arn", &session.arn);
    });
    shared.sessions.put(access_key_id, session);
    Ok(())
}
