//! The real SDK against a server that answers as AWS does, and as it should not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

#[expect(deprecated, reason = "the name that is not deprecated would be one more dependency")]
use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use axum::Router;
use axum::http::StatusCode;
use tokio::net::TcpListener;

use super::*;
use crate::aws::fake::{id, place, push};
use crate::domain::cloud::InstanceState;

/// What the server says next, after a pause.
#[derive(Clone, Debug)]
struct Says {
    status: u16,
    kind: &'static str,
    body: String,
    pause: Duration,
}

fn json(status: u16, body: &str) -> Says {
    Says { status, kind: "application/x-amz-json-1.1", body: body.into(), pause: Duration::ZERO }
}

fn xml(status: u16, body: &str) -> Says {
    Says { status, kind: "text/xml", body: body.into(), pause: Duration::ZERO }
}

fn ec2_error(status: u16, code: &str, message: &str) -> Says {
    let body = format!(
        "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors><RequestID>r-1</RequestID></Response>"
    );
    xml(status, &body)
}

fn delivered() -> Says {
    json(200, r#"{"RequestId":"eic-1","Success":true}"#)
}

/// The server: says what it was told to, one answer after the other, and keeps what it was asked.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

async fn server(says: impl IntoIterator<Item = Says>) -> Server {
    let says = Arc::new(Mutex::new(says.into_iter().collect::<VecDeque<_>>()));
    let asked = Arc::<Mutex<Vec<(String, String)>>>::default();
    let journal = asked.clone();
    let app = Router::new().fallback(move |uri: axum::http::Uri, body: String| async move {
        locked(&journal).push((uri.path().to_owned(), body));
        let next = locked(&says).pop_front();
        let says = next.unwrap_or_else(|| xml(500, "nothing more to say"));
        tokio::time::sleep(says.pause).await;
        (StatusCode::from_u16(says.status).unwrap(), [("content-type", says.kind)], says.body)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Server { port, asked }
}

impl Server {
    fn paths(&self) -> Vec<String> {
        locked(&self.asked).iter().map(|(path, _)| path.clone()).collect()
    }

    fn form(&self, n: usize) -> String {
        locked(&self.asked)[n].1.clone()
    }
}

/// For calls that are answered, on however slow a machine.
const LIMITS: CallLimits = CallLimits {
    connect: Duration::from_secs(30),
    lookup_attempt: Duration::from_secs(30),
    lookup: Duration::from_secs(60),
    lookup_attempts: 1,
    push: Duration::from_secs(30),
};
/// For calls that are not.
const SHORT: CallLimits =
    CallLimits { connect: Duration::from_millis(500), push: Duration::from_millis(400), ..LIMITS };

/// A configuration as a profile gives it, endpoints of services included: the same path as the variables take.
///
/// In a profile this SDK spells the service with hyphens, where AWS's other tools want `ec2_instance_connect`.
fn loader(port: u16) -> aws_config::ConfigLoader {
    loader_of("http", port)
}

#[expect(deprecated, reason = "the name that is not deprecated would be one more dependency")]
fn loader_of(scheme: &str, port: u16) -> aws_config::ConfigLoader {
    let profile = format!(
        "[default]\nregion = us-west-2\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = example\n\
         services = lab\n[services lab]\nec2 =\n  endpoint_url = {scheme}://127.0.0.1:{port}/ec2\n\
         ec2-instance-connect =\n  endpoint_url = {scheme}://127.0.0.1:{port}/eic\n"
    );
    let files = ProfileFiles::builder().with_contents(ProfileFileKind::Config, profile).build();
    aws_config::defaults(BehaviorVersion::latest()).profile_files(files).profile_name("default")
}

async fn cloud(port: u16, limits: CallLimits) -> SdkCloud {
    SdkCloud::new(loader(port).load().await, limits)
}

fn open() -> Gate {
    Arc::new(|| true)
}

#[track_caller]
fn expect(failure: Failure, class: FailureClass, code: &str) {
    assert_eq!((failure.class, failure.code.as_str()), (class, code), "{failure}");
}

#[tokio::test]
async fn a_push_says_what_the_permit_said_at_its_own_endpoint() {
    let server = server([delivered()]).await;
    let cloud = cloud(server.port, LIMITS).await;
    let pushed = cloud.send_ssh_public_key(&push(1), open()).await.unwrap();
    assert_eq!(pushed.request_id, "eic-1");
    assert_eq!(server.paths(), ["/eic/"]);
    let body: serde_json::Value = serde_json::from_str(&server.form(0)).unwrap();
    assert_eq!(body["InstanceId"], id(1).as_str());
    assert_eq!(body["InstanceOSUser"], "ec2-user");
    assert_eq!(body["AvailabilityZone"], "us-west-2a");
    assert_eq!(body["SSHPublicKey"], push(1).key.openssh());
    assert_eq!(cloud.region(), Some(place().region));
}

#[tokio::test]
async fn a_push_is_classed_by_its_errors_name_whatever_the_status() {
    use FailureClass::{Bug, Gone, Invalid, Refused, Retry, Throttled};
    for (says, class, code) in [
        (json(400, r#"{"__type":"AuthException","Message":"no"}"#), Refused, "AuthException"),
        (json(500, r#"{"__type":"com.amazonaws.eic#AuthException","message":"no"}"#), Refused, "AuthException"),
        (json(404, r#"{"__type":"EC2InstanceNotFoundException"}"#), Gone, "EC2InstanceNotFoundException"),
        (json(503, r#"{"__type":"EC2InstanceStateInvalidException"}"#), Gone, "EC2InstanceStateInvalidException"),
        (json(400, r#"{"__type":"EC2InstanceUnavailableException"}"#), Retry, "EC2InstanceUnavailableException"),
        (json(500, r#"{"__type":"InvalidArgsException","Message":"bad"}"#), Invalid, "InvalidArgsException"),
        (json(400, r#"{"__type":"ServiceException"}"#), Retry, "ServiceException"),
        (json(400, r#"{"__type":"ThrottlingException"}"#), Throttled, "ThrottlingException"),
        (json(500, r#"{"code":"AccessDeniedException"}"#), Refused, "AccessDeniedException"),
        (json(400, r#"{"__type":"SomethingNewException"}"#), Bug, "SomethingNewException"),
        (xml(503, "<html><body>Service Unavailable</body></html>"), Retry, "Http503"),
        (xml(502, ""), Retry, "Http502"),
        (xml(403, "<html>a proxy says no</html>"), Bug, "Http403"),
        (json(200, r#"{"RequestId":"eic-1","Success":false}"#), Retry, class::NOT_SUCCESSFUL),
    ] {
        let server = server([says, delivered()]).await;
        let failure = cloud(server.port, LIMITS).await.send_ssh_public_key(&push(1), open()).await.unwrap_err();
        expect(failure, class, code);
        assert_eq!(server.paths().len(), 1, "a push is one attempt: {code}");
    }
}

#[tokio::test]
async fn a_push_that_gets_no_answer_is_given_up_in_time_and_not_repeated() {
    let server = server([Says { pause: Duration::from_secs(120), ..delivered() }, delivered()]).await;
    let start = Instant::now();
    let failure = cloud(server.port, SHORT).await.send_ssh_public_key(&push(1), open()).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    expect(failure, FailureClass::Retry, class::TIMEOUT);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.paths().len(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_dispatch_failure_and_one_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let mut first = [0; 1];
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut first).await;
        }
    });
    let cloud = cloud(port, LIMITS).await;
    let failure = cloud.send_ssh_public_key(&push(1), open()).await.unwrap_err();
    expect(failure, FailureClass::Retry, class::DISPATCH_FAILURE);
    assert_eq!(taken.load(Ordering::Relaxed), 1);
    server.abort();
    let _ = server.await;
    // And now nobody listens.
    let failure = cloud.send_ssh_public_key(&push(1), open()).await.unwrap_err();
    expect(failure, FailureClass::Retry, class::DISPATCH_FAILURE);
}

#[tokio::test]
async fn a_shut_gate_keeps_the_bytes_here() {
    let server = server([delivered()]).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let shut: Gate = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        false
    });
    cloud(server.port, LIMITS).await.send_ssh_public_key(&push(1), shut).await.unwrap_err();
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(server.paths().len(), 0);
}

#[derive(Debug)]
struct NoCredentials(fn() -> CredentialsError);

impl ProvideCredentials for NoCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err((self.0)()))
    }
}

#[tokio::test]
async fn without_credentials_nothing_leaves_and_the_failure_says_so() {
    let server = server([]).await;
    for (error, class) in [
        (NoCredentials(|| CredentialsError::not_loaded("none here")), FailureClass::Refused),
        (NoCredentials(|| CredentialsError::provider_error("STS is away")), FailureClass::Retry),
    ] {
        let config = loader(server.port).credentials_provider(error).load().await;
        let cloud = SdkCloud::new(config, LIMITS);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let gate: Gate = Arc::new(move || count.fetch_add(1, Ordering::Relaxed) == 0);
        let failure = cloud.send_ssh_public_key(&push(1), gate).await.unwrap_err();
        expect(failure, class, class::CREDENTIALS_UNAVAILABLE);
        assert_eq!(asked.load(Ordering::Relaxed), 0, "the gate is the last question");
        let failure = cloud.describe_by_ids(&place(), &[id(1)]).await.unwrap_err();
        expect(failure, class, class::CREDENTIALS_UNAVAILABLE);
    }
    assert_eq!(server.paths().len(), 0);
}

const INSTANCE: &str = "<item><instanceId>i-00000000000000001</instanceId><instanceState><code>16</code><name>running</name></instanceState>\
    <privateIpAddress>10.0.1.7</privateIpAddress><ipAddress>203.0.113.7</ipAddress>\
    <placement><availabilityZone>us-west-2b</availabilityZone></placement><vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId>\
    <tagSet><item><key>Name</key><value>web-*</value></item></tagSet><networkInterfaceSet>\
    <item><attachment><deviceIndex>1</deviceIndex></attachment><ipv6AddressesSet><item><ipv6Address>2001:db8::bad</ipv6Address></item></ipv6AddressesSet></item>\
    <item><attachment><deviceIndex>0</deviceIndex></attachment><ipv6AddressesSet><item><ipv6Address>2001:db8::7</ipv6Address></item></ipv6AddressesSet></item>\
    </networkInterfaceSet></item>";

fn page(instances: &str, next: &str) -> Says {
    xml(
        200,
        &format!(
            "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><requestId>r</requestId><reservationSet>\
         <item><reservationId>r-1</reservationId><ownerId>123456789012</ownerId><instancesSet>{instances}</instancesSet></item>\
         </reservationSet><nextToken>{next}</nextToken></DescribeInstancesResponse>"
        ),
    )
}

#[tokio::test]
async fn a_look_up_filters_by_id_follows_pages_and_reads_what_we_need() {
    let odd = "<item><instanceId>odd</instanceId></item>";
    let gone = "<item><instanceId>i-00000000000000002</instanceId><instanceState><name>terminated</name></instanceState></item>";
    let server = server([page("", "more"), page(&format!("{INSTANCE}{odd}"), "more"), page(gone, "")]).await;
    let cloud = cloud(server.port, LIMITS).await;
    let found = cloud.describe_by_ids(&place(), &[id(1), id(2)]).await.unwrap();
    assert_eq!(found.len(), 2);
    let it = &found[0];
    assert_eq!(
        (it.id.clone(), it.account_id.as_str(), &it.region, it.state),
        (id(1), "123456789012", &place().region, InstanceState::Running)
    );
    assert_eq!(
        (it.availability_zone.as_deref(), it.vpc_id.as_deref(), it.subnet_id.as_deref()),
        (Some("us-west-2b"), Some("vpc-1"), Some("subnet-1"))
    );
    assert_eq!(it.private_ip, Some("10.0.1.7".parse().unwrap()));
    assert_eq!(it.public_ip, Some("203.0.113.7".parse().unwrap()));
    assert_eq!(it.ipv6, Some("2001:db8::7".parse().unwrap()));
    assert_eq!(it.tags, BTreeMap::from([("Name".into(), "web-*".into())]));
    assert_eq!((found[1].state, &found[1].vpc_id), (InstanceState::Terminated, &None));
    assert_eq!(server.paths(), ["/ec2/", "/ec2/", "/ec2/"]);
    let form = server.form(0);
    for part in [
        "Action=DescribeInstances",
        "Filter.1.Name=instance-id",
        "Filter.1.Value.1=i-00000000000000001",
        "MaxResults=1000",
    ] {
        assert!(form.contains(part), "{part} in {form}");
    }
    assert!(!form.contains("InstanceId.1"), "one bad id would fail the call: {form}");
    assert!(server.form(1).contains("NextToken=more"));
}

#[tokio::test]
async fn pages_without_end_are_an_error_and_not_an_absent_instance() {
    let server = server((0..100).map(|_| page("", "more"))).await;
    let failure = cloud(server.port, LIMITS).await.describe_by_ids(&place(), &[id(1)]).await.unwrap_err();
    expect(failure, FailureClass::Retry, class::PAGES_WITHOUT_END);
}

#[tokio::test]
async fn a_tags_value_is_escaped_and_only_the_living_are_asked_for() {
    let server = server([page(INSTANCE, "")]).await;
    let tags = BTreeMap::from([("Name".into(), "web-*".into())]);
    let found = cloud(server.port, LIMITS).await.describe_by_tags(&place(), &tags).await.unwrap();
    assert_eq!(found.len(), 1);
    let form = server.form(0);
    for part in [
        "Filter.1.Name=tag%3AName",
        "Filter.1.Value.1=web-%5C%2A",
        "Filter.2.Name=instance-state-name",
        "Filter.2.Value.4=stopped",
        "MaxResults=50",
    ] {
        assert!(form.contains(part), "{part} in {form}");
    }
    let nothing = cloud(server.port, LIMITS).await.describe_by_tags(&place(), &BTreeMap::new()).await.unwrap_err();
    expect(nothing, FailureClass::Invalid, "InvalidParameterValue");
}

#[tokio::test]
async fn endpoints_come_by_vpc_and_state() {
    let body = "<DescribeInstanceConnectEndpointsResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><instanceConnectEndpointSet>\
        <item><instanceConnectEndpointId>eice-1</instanceConnectEndpointId><state>update-complete</state><dnsName>eice-1.example</dnsName><vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId></item>\
        <item><instanceConnectEndpointId>eice-2</instanceConnectEndpointId><state>delete-in-progress</state><dnsName>eice-2.example</dnsName><vpcId>vpc-1</vpcId><subnetId>subnet-1</subnetId></item>\
        </instanceConnectEndpointSet></DescribeInstanceConnectEndpointsResponse>";
    let server = server([xml(200, body)]).await;
    let endpoints = cloud(server.port, LIMITS).await.describe_endpoints(&place(), "vpc-1").await.unwrap();
    let expected = Endpoint {
        id: "eice-1".into(),
        vpc_id: "vpc-1".into(),
        subnet_id: "subnet-1".into(),
        dns_name: "eice-1.example".into(),
    };
    assert_eq!(endpoints, [expected]);
    let form = server.form(0);
    assert!(form.contains("Filter.1.Value.1=vpc-1") && form.contains("Filter.2.Value.1=create-complete"), "{form}");
}

#[tokio::test]
async fn a_look_up_is_classed_by_its_errors_name_whatever_the_status() {
    use FailureClass::{Gone, Invalid, Refused, Retry, Throttled};
    let secret = "You are not authorized. Encoded authorization failure message: AAbb_cc-dd";
    for (says, class, code) in [
        (ec2_error(403, "UnauthorizedOperation", secret), Refused, "UnauthorizedOperation"),
        (ec2_error(500, "AuthFailure", "no"), Refused, "AuthFailure"),
        (ec2_error(400, "RequestExpired", "late"), Refused, "RequestExpired"),
        (ec2_error(503, "RequestLimitExceeded", "slow down"), Throttled, "RequestLimitExceeded"),
        (ec2_error(400, "InternalError", "oops"), Retry, "InternalError"),
        (ec2_error(400, "Unavailable", "oops"), Retry, "Unavailable"),
        (ec2_error(400, "InvalidInstanceID.NotFound", "gone"), Gone, "InvalidInstanceID.NotFound"),
        (ec2_error(500, "InvalidInstanceID.Malformed", "bad"), Invalid, "InvalidInstanceID.Malformed"),
        (xml(503, "<html><h1>503</h1></html>"), Retry, "Http503"),
        (xml(200, "<html>a captive portal"), Retry, class::RESPONSE_FAILURE),
    ] {
        let server = server([says]).await;
        let failure = cloud(server.port, LIMITS).await.describe_by_ids(&place(), &[id(1)]).await.unwrap_err();
        assert!(!failure.message.contains("AAbb"), "{failure}");
        expect(failure, class, code);
    }
}

#[tokio::test]
async fn a_look_up_is_tried_again_after_a_passing_fault_and_not_after_a_refusal() {
    let twice = CallLimits { lookup_attempts: 2, lookup_attempt: Duration::from_secs(3), ..LIMITS };
    for fault in [
        xml(503, "<html/>"),
        ec2_error(400, "RequestLimitExceeded", "x"),
        Says { pause: Duration::from_secs(120), ..page("", "") },
    ] {
        let server = server([fault, page(INSTANCE, "")]).await;
        let found = cloud(server.port, twice).await.describe_by_ids(&place(), &[id(1)]).await.unwrap();
        assert_eq!((found.len(), server.paths().len()), (1, 2));
    }
    let server = server([ec2_error(403, "UnauthorizedOperation", "no"), page(INSTANCE, "")]).await;
    cloud(server.port, twice).await.describe_by_ids(&place(), &[id(1)]).await.unwrap_err();
    assert_eq!(server.paths().len(), 1);
}

#[tokio::test]
async fn a_server_that_says_nothing_when_tls_begins_costs_a_connection_and_not_a_whole_call() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let patient = Duration::from_secs(60);
    let limits = CallLimits { lookup_attempt: patient, lookup: patient, push: patient, ..SHORT };
    let cloud = SdkCloud::new(loader_of("https", port).load().await, limits);
    let began = Instant::now();
    let looked = cloud.describe_by_ids(&place(), &[id(1)]).await.unwrap_err();
    let pushed = cloud.send_ssh_public_key(&push(1), open()).await.unwrap_err();
    assert!(began.elapsed() < patient / 2, "{:?}: {looked}, {pushed}", began.elapsed());
    assert_eq!((looked.class, pushed.class), (FailureClass::Retry, FailureClass::Retry), "{looked}, {pushed}");
}

#[tokio::test]
async fn clients_are_kept_for_so_many_regions_and_no_more() {
    let cloud = cloud(1, LIMITS).await;
    for n in 0..PLACES_MAX + 9 {
        cloud.clients(&Region::parse(&format!("us-west-{n}")).unwrap());
    }
    assert_eq!(locked(&cloud.clients).iter().count(), PLACES_MAX);
}
