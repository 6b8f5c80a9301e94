//! AWS's endpoints themselves: found by EC2, signed for by the SDK's signer, over TLS to the endpoint's own name.
//!
//! The request is presigned, as AWS's own client has it: the signature stands in the query, is good for a minute, and
//! covers everything that is asked for. It is never logged.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_types::service_config::ServiceConfigKey;
use futures::FutureExt;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use super::{Tunnel, Tunnels, Wire};
use crate::aws::class::{self, failure};
use crate::aws::lookups::{LookupLimits, Lookups};
use crate::aws::pushes::Clock;
use crate::aws::{Reply, SdkCloud};
use crate::domain::cloud::{Failure, FailureClass, TunnelTo};

/// What an endpoint's signature is for.
const SERVICE: &str = "ec2-instance-connect";
/// How long a signature is good for, as AWS's own client has it.
const SIGNATURE_SECONDS: u64 = 60;
/// How long it may take until an endpoint can be asked: to find it, to have credentials, to reach it.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// Credentials that end sooner are fetched anew.
const CREDENTIALS_LEFT_MIN: Duration = Duration::from_secs(300);
/// The longest name of a host. Source: RFC 1035.
const HOST_LENGTH_MAX: usize = 253;
/// An endpoint takes TLS there.
const TLS_PORT: u16 = 443;

/// The code of a failure to find the endpoint.
const ENDPOINT_GONE: &str = "EndpointGone";
const TLS_FAILURE: &str = "TlsFailure";

/// Opens tunnels through AWS's endpoints.
pub struct SdkTunnels {
    config: SdkConfig,
    lookups: Lookups,
    clock: Clock,
    /// Where tunnels go instead, as the SDK's calls do: `127.0.0.1:4566`.
    redirect: Option<String>,
    tls: OnceCell<TlsConnector>,
    credentials: Mutex<Option<Credentials>>,
}

impl std::fmt::Debug for SdkTunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SdkTunnels").field("redirect", &self.redirect).finish_non_exhaustive()
    }
}

impl SdkTunnels {
    /// By the configuration of `cloud`, which finds the endpoints.
    pub fn new(cloud: Arc<SdkCloud>, clock: Clock) -> Self {
        let config = cloud.config().clone();
        let redirect = configured(&config).and_then(|url| loopback(&url));
        let lookups = Lookups::new(cloud, LookupLimits::default());
        Self { config, lookups, clock, redirect, tls: OnceCell::new(), credentials: Mutex::new(None) }
    }

    /// The endpoint's name, as EC2 has it now.
    async fn name(&self, to: &TunnelTo) -> Result<String, Failure> {
        let endpoints = self.lookups.endpoints(&to.place, &to.vpc_id).await?;
        let found = endpoints.into_iter().find(|endpoint| endpoint.id == to.endpoint_id);
        let name = found.map(|endpoint| endpoint.dns_name).ok_or_else(|| {
            let text = format!("{} is none of the endpoints of {} that take connections", to.endpoint_id, to.vpc_id);
            failure(FailureClass::Gone, ENDPOINT_GONE, &text)
        })?;
        match &self.redirect {
            Some(redirect) => Ok(redirect.clone()),
            None if is_host_name(&name) => Ok(name),
            None => Err(failure(FailureClass::Bug, ENDPOINT_GONE, "EC2 names a host that is none")),
        }
    }

    async fn wire(&self, name: &str) -> Result<Box<dyn Wire>, Failure> {
        let unreached = |error: std::io::Error| {
            failure(FailureClass::Retry, class::DISPATCH_FAILURE, &format!("{name} was not reached: {error}"))
        };
        if self.redirect.is_some() {
            let wire = TcpStream::connect(name).await.map_err(unreached)?;
            let _ = wire.set_nodelay(true); // a socket that takes no options is one that is gone
            return Ok(Box::new(wire));
        }
        let tls = self.tls.get_or_try_init(trusting_the_machines_roots).await?;
        let wire = TcpStream::connect((name, TLS_PORT)).await.map_err(unreached)?;
        let _ = wire.set_nodelay(true); // as above
        secured(tls, wire, name).await
    }

    /// Returns credentials that are good for a while; those that end are kept until then.
    async fn credentials(&self, now: SystemTime) -> Result<Credentials, Failure> {
        let mut kept = self.credentials.lock().await;
        let ends_late =
            |credentials: &Credentials| credentials.expiry().is_some_and(|expiry| expiry > now + CREDENTIALS_LEFT_MIN);
        if let Some(credentials) = kept.as_ref().filter(|credentials| ends_late(credentials)) {
            return Ok(credentials.clone());
        }
        let unavailable = |text: &str| failure(FailureClass::Refused, class::CREDENTIALS_UNAVAILABLE, text);
        let provider = self.config.credentials_provider().ok_or_else(|| unavailable("there are no AWS credentials"))?;
        let credentials = provider.provide_credentials().await.map_err(|error| unavailable(&error.to_string()))?;
        *kept = Some(credentials.clone());
        Ok(credentials)
    }

    async fn reached(&self, to: &TunnelTo) -> Result<(String, Box<dyn Wire>, Credentials), Failure> {
        let name = self.name(to).await?;
        let credentials = self.credentials((self.clock)().into()).await?;
        let wire = self.wire(&name).await?;
        Ok((name, wire, credentials))
    }
}

impl Tunnels for SdkTunnels {
    fn open<'a>(&'a self, to: &'a TunnelTo) -> Reply<'a, Tunnel> {
        async move {
            let Ok(reached) = timeout(REACH_TIMEOUT, self.reached(to)).await else {
                let text = format!("{} was not reached within {} s", to.endpoint_id, REACH_TIMEOUT.as_secs());
                return Err(failure(FailureClass::Retry, class::TIMEOUT, &text));
            };
            let (name, wire, credentials) = reached?;
            // Signed when nothing but the question is left: from now on AWS's clock runs.
            let now = (self.clock)();
            let seconds = to.seconds(now).ok_or_else(|| {
                failure(FailureClass::Invalid, class::CONSTRUCTION_FAILURE, "there is no second of the grant left")
            })?;
            let target = signed(to, seconds, &name, &credentials, now)?;
            Tunnel::ask(wire, &name, &target, Duration::from_secs(seconds.into())).await
        }
        .boxed()
    }
}

/// Speaks TLS, and makes sure that it is with `name`.
async fn secured(tls: &TlsConnector, wire: TcpStream, name: &str) -> Result<Box<dyn Wire>, Failure> {
    let failed = |text: &str| failure(FailureClass::Retry, TLS_FAILURE, &format!("{name}: {text}"));
    let server = ServerName::try_from(name.to_owned()).map_err(|error| failed(&error.to_string()))?;
    Ok(Box::new(tls.connect(server, wire).await.map_err(|error| failed(&error.to_string()))?))
}

/// TLS that trusts whom the machine trusts, as the SDK's own client does.
async fn trusting_the_machines_roots() -> Result<TlsConnector, Failure> {
    let failed = |text: &str| failure(FailureClass::Refused, TLS_FAILURE, text);
    // Reads files.
    let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let found = found.await.map_err(|error| failed(&error.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        return Err(failed(
            "this machine trusts no certificate authority: mount its certificates, or set SSL_CERT_FILE",
        ));
    }
    trusting(roots)
}

fn trusting(roots: RootCertStore) -> Result<TlsConnector, Failure> {
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failure(FailureClass::Bug, TLS_FAILURE, &error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Where the SDK's calls of EC2 Instance Connect are redirected to.
fn configured(config: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("EC2 Instance Connect")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let own = config.service_config().and_then(|services| services.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// The address behind `http://` if it is this machine's own. Calls may be redirected to wherever AWS's service is; a
/// tunnel's place is the endpoint itself, whose name TLS proves. Without either it goes no further than this machine.
fn loopback(url: &str) -> Option<String> {
    let address = url.strip_prefix("http://")?.trim_end_matches('/');
    let socket: std::net::SocketAddr = address.parse().ok()?;
    socket.ip().is_loopback().then(|| socket.to_string())
}

fn is_host_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    name.len() <= HOST_LENGTH_MAX && name.contains('.') && name.bytes().all(is_plain) && name.parse::<IpAddr>().is_err()
}

/// Returns the path and the query, signed.
fn signed(
    to: &TunnelTo,
    seconds: u16,
    host: &str,
    credentials: &Credentials,
    now: Timestamp,
) -> Result<String, Failure> {
    let failed = |text: String| failure(FailureClass::Bug, class::CONSTRUCTION_FAILURE, &text);
    let asked = [
        ("instanceConnectEndpointId", to.endpoint_id.clone()),
        ("maxTunnelDuration", seconds.to_string()),
        ("privateIpAddress", to.address.to_string()),
        ("remotePort", to.port.to_string()),
    ];
    let query = asked.map(|(name, value)| format!("{name}={}", encoded(&value))).join("&");
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(Duration::from_secs(SIGNATURE_SECONDS));
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(to.place.region.as_str())
        .name(SERVICE)
        .time(now.into())
        .settings(settings)
        .build()
        .map_err(|error| failed(error.to_string()))?
        .into();
    let target = format!("/openTunnel?{query}");
    let url = format!("https://{host}{target}");
    let request = SignableRequest::new("GET", url, [("host", host)].into_iter(), SignableBody::empty())
        .map_err(|error| failed(error.to_string()))?;
    let (instructions, _) = sign(request, &params).map_err(|error| failed(error.to_string()))?.into_parts();
    let signature = instructions.params().iter().map(|(name, value)| format!("&{name}={}", encoded(value)));
    Ok(target + &signature.collect::<String>())
}

/// RFC 3986's encoding of everything that is not unreserved, which is what is signed.
fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // a String takes all
        }
        encoded
    })
}

#[cfg(test)]
mod tests;
