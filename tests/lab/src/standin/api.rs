//! From a request to an answer: which service, who asks, what goes wrong on demand, what is written down.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::{Bytes, Incoming};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::bucket::Lane;
use super::ec2::Form;
use super::eic::Push;
use super::fault::{FaultKind, Mishap};
use super::http::Conn;
use super::journal::{Api, Entry, Outcome};
use super::sigv4::{self, Flaw, Signature};
use super::xml::Xml;
use super::{Shared, control, ec2, eic, keys, sts, tunnel};

/// Far more than 200 filter values or a key of 4 KiB need.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Who asks, and of which region.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) access_key_id: String,
    pub(super) account_id: String,
    pub(super) arn: String,
    pub(super) region: String,
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: String,
    pub(super) message: String,
    pub(super) status: u16,
}

impl Refusal {
    /// With the HTTP status that goes with the code.
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        let status = match code {
            "AuthFailure" => 401,
            "UnauthorizedOperation"
            | "AccessDenied"
            | "SignatureDoesNotMatch"
            | "InvalidClientTokenId"
            | "MissingAuthenticationToken"
            | "ExpiredToken" => 403,
            "InternalError" | "InternalFailure" | "ServiceException" => 500,
            "RequestLimitExceeded" | "Unavailable" | "ServiceUnavailable" => 503,
            _ => 400,
        };
        Self { code: code.into(), message: message.into(), status }
    }

    fn throttled(api: Api) -> Self {
        match api {
            Api::Ec2 => Self::new("RequestLimitExceeded", "Request limit exceeded."),
            Api::Eic => Self::new("ThrottlingException", "Rate exceeded"),
            Api::Sts => Self::new("Throttling", "Rate exceeded"),
            Api::Tunnel | Api::Metadata => Self { status: 429, ..Self::new("TooManyRequests", "Rate exceeded") },
        }
    }

    fn broken(api: Api, status: u16) -> Self {
        let it = match api {
            Api::Ec2 if status == 503 => {
                Self::new("Unavailable", "The service is unavailable. Please try again shortly.")
            }
            Api::Ec2 => Self::new("InternalError", "An internal error has occurred"),
            Api::Eic => Self::new("ServiceException", "The service encountered an error. Try again."),
            Api::Sts => Self::new("InternalFailure", "The request processing has failed."),
            Api::Tunnel | Api::Metadata => Self::new("InternalError", "Internal error"),
        };
        Self { status, ..it }
    }

    fn denied(api: Api, caller: &Caller, action: &str) -> Self {
        let text = format!("User: {} is not authorized to perform: {action}", caller.arn);
        match api {
            Api::Ec2 => Self::new("UnauthorizedOperation", "You are not authorized to perform this operation."),
            Api::Eic => Self::new("AccessDeniedException", text),
            Api::Sts | Api::Tunnel | Api::Metadata => Self::new("AccessDenied", text),
        }
    }

    fn expired(api: Api) -> Self {
        let text = "The security token included in the request is expired";
        match api {
            Api::Ec2 => Self::new("RequestExpired", "Request has expired."),
            Api::Eic => Self::new("ExpiredTokenException", text),
            Api::Sts | Api::Tunnel | Api::Metadata => Self::new("ExpiredToken", text),
        }
    }

    fn unknown_key(api: Api) -> Self {
        let text = "The security token included in the request is invalid.";
        match api {
            Api::Ec2 => Self::auth_failure(),
            Api::Eic => Self::new("UnrecognizedClientException", text),
            Api::Sts | Api::Tunnel | Api::Metadata => Self::new("InvalidClientTokenId", text),
        }
    }

    fn auth_failure() -> Self {
        Self::new("AuthFailure", "AWS was not able to validate the provided access credentials")
    }

    fn flawed(api: Api, flaw: Flaw) -> Self {
        let mismatch = "The request signature we calculated does not match the signature you provided. Check your AWS \
                        Secret Access Key and signing method. Consult the service documentation for details.";
        let text = match &flaw {
            Flaw::Missing => "Missing Authentication Token".to_owned(),
            Flaw::Malformed(text) | Flaw::Old(text) | Flaw::Young(text) => text.clone(),
            Flaw::Mismatch => mismatch.to_owned(),
        };
        let code = match (api, flaw) {
            (Api::Ec2, Flaw::Old(_)) => {
                return Self::new("RequestExpired", format!("Request has expired. {text}"));
            }
            (Api::Ec2, _) => return Self::auth_failure(),
            (Api::Eic, Flaw::Missing) => "MissingAuthenticationTokenException",
            (Api::Eic, Flaw::Malformed(_)) => "IncompleteSignatureException",
            (Api::Eic, Flaw::Old(_) | Flaw::Young(_) | Flaw::Mismatch) => "InvalidSignatureException",
            (Api::Sts | Api::Tunnel | Api::Metadata, Flaw::Missing) => "MissingAuthenticationToken",
            (Api::Sts | Api::Tunnel | Api::Metadata, Flaw::Malformed(_)) => "IncompleteSignature",
            (Api::Sts | Api::Tunnel | Api::Metadata, Flaw::Old(_) | Flaw::Young(_) | Flaw::Mismatch) => {
                "SignatureDoesNotMatch"
            }
        };
        Self::new(code, text)
    }
}

/// What becomes of the connection.
pub(super) enum Verdict {
    Answer(Response<Body>),
    Reset,
}

/// Answers one request on the API's port.
pub(super) async fn answer(shared: Arc<Shared>, conn: Arc<Conn>, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/openTunnel" {
        return tunnel::answer(shared, conn, parts).await;
    }
    let Ok(body) = to_bytes(Body::new(body), BODY_BYTES_MAX).await else {
        return respond(StatusCode::PAYLOAD_TOO_LARGE, "text/plain", "the body is too large or was cut".into());
    };
    if parts.uri.path().starts_with("/_lab/") {
        return control::answer(&shared, &conn, &parts, &body);
    }
    // a task of its own: what a client has sent is done, whether or not the client waits for it
    let work = tokio::spawn(work(shared, parts, body));
    match work.await {
        Ok(Verdict::Answer(response)) => response,
        Ok(Verdict::Reset) => match conn.reset().await {},
        Err(_) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "the stand-in failed".into()),
    }
}

/// A call, read but not judged.
enum Call {
    Ec2(Form),
    Sts(Form),
    Eic(String, Push),
}

async fn work(shared: Arc<Shared>, parts: Parts, body: Bytes) -> Verdict {
    let target = parts.headers.get("x-amz-target").and_then(|it| it.to_str().ok());
    let call = if let Some(target) = target {
        let action = target.strip_prefix(eic::TARGET_PREFIX).unwrap_or(target);
        Call::Eic(action.to_owned(), Push::read(&body))
    } else {
        let form = if body.is_empty() {
            Form::read(parts.uri.query().unwrap_or_default().as_bytes())
        } else {
            Form::read(&body)
        };
        if sts::is_action(form.action()) { Call::Sts(form) } else { Call::Ec2(form) }
    };
    let signature = sigv4::read(&parts);
    let (api, action) = match &call {
        Call::Ec2(form) => (Api::Ec2, form.action().to_owned()),
        Call::Sts(form) => (Api::Sts, form.action().to_owned()),
        Call::Eic(action, _) => (Api::Eic, action.clone()),
    };
    let mut entry = shared.arrived(api, action, signature.as_ref().ok());
    match &call {
        Call::Ec2(form) => entry.instance_ids = form.named_instances(),
        Call::Eic(_, push) => {
            entry.instance_ids = push.field("InstanceId").map(str::to_owned).into_iter().collect();
            entry.os_user = push.field("InstanceOSUser").map(str::to_owned);
            entry.key_fingerprint =
                push.field("SSHPublicKey").and_then(|it| keys::parse(it).ok()).map(|it| it.fingerprint);
        }
        Call::Sts(_) => {}
    }

    let mishap = shared.faults.strike(api, &entry.action, &entry.instance_ids);
    if !mishap.delay.is_zero() {
        tokio::time::sleep(mishap.delay).await;
    }
    if mishap.end == Some(FaultKind::Drop) {
        shared.decided(entry, Outcome::Dropped);
        return Verdict::Reset;
    }
    let done = judge(&shared, api, &call, signature, &parts, &body, &mishap, &mut entry);
    let request_id = entry.request_id.clone();
    let outcome = match &done {
        Ok(_) if mishap.end == Some(FaultKind::DoThenDrop) => Outcome::DoneThenDropped,
        Ok(_) => Outcome::Ok,
        Err(refusal) => Outcome::Error(refusal.code.clone()),
    };
    let is_reset = mishap.end == Some(FaultKind::DoThenDrop);
    shared.decided(entry, outcome);
    if !mishap.answer_delay.is_zero() {
        tokio::time::sleep(mishap.answer_delay).await;
    }
    if is_reset {
        return Verdict::Reset;
    }
    if mishap.end == Some(FaultKind::Garbage) {
        return Verdict::Answer(respond(StatusCode::OK, "text/html", "<html><body>Welcome to the hotel".into()));
    }
    let mut response = match done {
        Ok(body) => respond(StatusCode::OK, content_type(api), body),
        Err(refusal) => refuse(api, &refusal, &request_id),
    };
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    Verdict::Answer(response)
}

#[expect(clippy::too_many_arguments, reason = "the one place where a call meets everything that judges it")]
fn judge(
    shared: &Shared,
    api: Api,
    call: &Call,
    signature: Result<Signature, Flaw>,
    parts: &Parts,
    body: &[u8],
    mishap: &Mishap,
    entry: &mut Entry,
) -> Result<String, Refusal> {
    let is_anonymous = matches!(call, Call::Sts(form) if !sts::needs_signature(form.action()));
    let caller = if is_anonymous {
        Caller {
            access_key_id: String::new(),
            account_id: shared.config.account_id.clone(),
            arn: "anonymous".into(),
            region: String::new(),
        }
    } else {
        shared.authenticate(api, signature, parts, body, mishap)?
    };
    entry.account_id.clone_from(&caller.account_id);
    shared.afflict(api, mishap, &caller, &entry.action)?;
    let lane = match call {
        Call::Ec2(form) => form.lane(),
        Call::Eic(..) => Some(Lane::Push),
        Call::Sts(_) => None,
    };
    if let Some(lane) = lane
        && !shared.buckets.take(lane, &caller.account_id, &caller.region, shared.clock.now())
    {
        return Err(Refusal::throttled(api));
    }
    match call {
        Call::Ec2(form) => {
            let (body, count) = ec2::perform(shared, form, &caller, &entry.request_id)?;
            entry.answered = Some(count);
            Ok(body)
        }
        Call::Sts(form) => sts::perform(shared, form, &caller, &entry.request_id),
        Call::Eic(action, push) => eic::perform(shared, action, push, &caller, &entry.request_id),
    }
}

impl Shared {
    /// Begins the journal's entry of a call that just arrived.
    pub(super) fn arrived(&self, api: Api, action: String, signature: Option<&Signature>) -> Entry {
        Entry {
            sequence: 0,
            time: Timestamp::now(),
            offset: self.clock.now(),
            elapsed: Duration::ZERO,
            api,
            action,
            region: signature.map(|it| it.region.clone()).unwrap_or_default(),
            access_key_id: signature.map(|it| it.access_key_id.clone()).unwrap_or_default(),
            account_id: String::new(),
            instance_ids: Vec::new(),
            os_user: None,
            key_fingerprint: None,
            endpoint_id: None,
            answered: None,
            outcome: Outcome::Ok,
            request_id: uuid::Uuid::new_v4().to_string(),
        }
    }

    /// Writes down how a call ended.
    pub(super) fn decided(&self, mut entry: Entry, outcome: Outcome) {
        entry.elapsed = self.clock.now().saturating_sub(entry.offset);
        entry.outcome = outcome;
        self.journal.record(entry);
    }

    /// Says who asks.
    pub(super) fn authenticate(
        &self,
        api: Api,
        signature: Result<Signature, Flaw>,
        parts: &Parts,
        body: &[u8],
        mishap: &Mishap,
    ) -> Result<Caller, Refusal> {
        let flawed = |flaw| Refusal::flawed(api, flaw);
        let signature = signature.map_err(flawed)?;
        let service = match api {
            Api::Ec2 => "ec2",
            Api::Sts => "sts",
            Api::Eic | Api::Tunnel | Api::Metadata => "ec2-instance-connect",
        };
        if signature.service != service {
            let text = format!("Credential should be scoped to correct service: '{service}'.");
            return Err(flawed(Flaw::Malformed(text)));
        }
        let now = Timestamp::now() + SignedDuration::from_secs(mishap.skew);
        signature.judge_time(now, self.config.clock_skew_max).map_err(flawed)?;
        let session = self.sessions.get(&signature.access_key_id);
        let known = self.config.credentials.iter().find(|it| it.access_key_id == signature.access_key_id);
        let (secret, token, account_id, arn) = match (&session, known) {
            (Some(it), _) => (Some(&it.secret), Some(&it.token), &it.account_id, it.arn.clone()),
            (None, Some(it)) => (
                Some(&it.secret_access_key),
                it.session_token.as_ref(),
                &it.account_id,
                format!("arn:aws:iam::{}:user/lab", it.account_id),
            ),
            (None, None) if self.config.credentials.is_empty() => {
                let account = &self.config.account_id;
                (None, None, account, format!("arn:aws:iam::{account}:user/lab"))
            }
            (None, None) => return Err(Refusal::unknown_key(api)),
        };
        if secret.is_some() && token != signature.token.as_ref() {
            return Err(Refusal::unknown_key(api));
        }
        if let Some(secret) = secret {
            signature.judge(parts, body, secret).map_err(flawed)?;
        }
        if session.as_ref().is_some_and(|it| it.expires <= Timestamp::now()) {
            return Err(Refusal::expired(api));
        }
        Ok(Caller {
            account_id: account_id.clone(),
            arn,
            access_key_id: signature.access_key_id,
            region: signature.region,
        })
    }

    /// Refuses what a fault says is to be refused.
    pub(super) fn afflict(&self, api: Api, mishap: &Mishap, caller: &Caller, action: &str) -> Result<(), Refusal> {
        Err(match &mishap.end {
            None | Some(FaultKind::Slow(_) | FaultKind::SlowAnswer(_) | FaultKind::ClockSkew(_)) => {
                return Ok(());
            }
            Some(FaultKind::Drop | FaultKind::DoThenDrop | FaultKind::Garbage) => return Ok(()),
            Some(FaultKind::Throttle) => Refusal::throttled(api),
            Some(FaultKind::ServerError(status)) => Refusal::broken(api, *status),
            Some(FaultKind::Deny) => Refusal::denied(api, caller, action),
            Some(FaultKind::ExpiredCredentials) => Refusal::expired(api),
            Some(FaultKind::BadSignature) => Refusal::flawed(api, Flaw::Mismatch),
            Some(FaultKind::Error { code, message, status }) => {
                Refusal { code: code.clone(), message: message.clone(), status: *status }
            }
        })
    }
}

fn content_type(api: Api) -> &'static str {
    match api {
        Api::Ec2 => "text/xml;charset=UTF-8",
        Api::Sts => "text/xml",
        Api::Eic => "application/x-amz-json-1.1",
        Api::Tunnel => "application/json",
        Api::Metadata => "text/plain",
    }
}

/// An error in the form of the service.
pub(super) fn refuse(api: Api, refusal: &Refusal, request_id: &str) -> Response<Body> {
    let mut xml = Xml::default();
    let body = match api {
        Api::Ec2 => {
            xml.0.push_str("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
            xml.node("Response", |xml| {
                xml.node("Errors", |xml| {
                    xml.node("Error", |xml| {
                        xml.leaf("Code", &refusal.code);
                        xml.leaf("Message", &refusal.message);
                    });
                });
                xml.leaf("RequestID", request_id);
            });
            xml.0
        }
        Api::Sts => {
            xml.0.push_str("<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">");
            xml.node("Error", |xml| {
                xml.leaf("Type", if refusal.status < 500 { "Sender" } else { "Receiver" });
                xml.leaf("Code", &refusal.code);
                xml.leaf("Message", &refusal.message);
            });
            xml.leaf("RequestId", request_id);
            xml.0.push_str("</ErrorResponse>");
            xml.0
        }
        Api::Eic => json!({ "__type": refusal.code, "Message": refusal.message }).to_string(),
        Api::Tunnel => json!({ "ErrorCode": refusal.code, "Message": refusal.message }).to_string(),
        Api::Metadata => refusal.message.clone(),
    };
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = respond(status, content_type(api), body);
    if let (Api::Eic, Ok(code)) = (api, HeaderValue::from_str(&refusal.code)) {
        response.headers_mut().insert("x-amzn-errortype", code);
    }
    response
}

pub(super) fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
