use std::net::SocketAddr;
use std::process::Command;

use aws_config::BehaviorVersion;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::*;
use crate::domain::cloud::{Place, Region};

const HOST: &str = "eice-0123456789abcdef0.b8f7e0.ec2-instance-connect-endpoint.us-west-2.amazonaws.com";

fn to(address: &str) -> TunnelTo {
    TunnelTo {
        place: Place { region: Region::parse("us-west-2").unwrap() },
        vpc_id: "vpc-1".into(),
        endpoint_id: "eice-0123456789abcdef0".into(),
        address: address.parse().unwrap(),
        port: 22,
        end_time: "2026-11-27T20:00:00Z".parse().unwrap(),
    }
}

/// What botocore 1.40.0 (`SigV4QueryAuth`, with the query of AWS's own client) makes of the same.
#[test]
fn the_signature_is_that_of_awss_own_client() {
    let now: Timestamp = "2026-11-27T14:27:10Z".parse().unwrap();
    for (address, token, signature) in [
        ("10.0.0.5", None, "f481a75e62569b7a2e26507ff463b7ec0581841c245a1b4b7991af99872297ea"),
        (
            "2001:db8::17",
            Some("IQoJb3JpZ2luX2VjEXAMPLE//+=token"),
            "02037681d97df3f3c6973ace625764b37cc2d56474c64bc4094f84632201e307",
        ),
    ] {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let credentials = Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test");
        let target = signed(&to(address), 3600, HOST, &credentials, now).unwrap();
        let query = target.strip_prefix("/openTunnel?").unwrap();
        let fields: std::collections::BTreeMap<&str, &str> =
            query.split('&').map(|field| field.split_once('=').unwrap()).collect();
        assert_eq!(fields["X-Amz-Signature"], signature, "{target}");
        for (name, value) in [
            ("instanceConnectEndpointId", "eice-0123456789abcdef0"),
            ("maxTunnelDuration", "3600"),
            ("privateIpAddress", &*address.replace(':', "%3A")),
            ("remotePort", "22"),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", "AKIDEXAMPLE%2F20261127%2Fus-west-2%2Fec2-instance-connect%2Faws4_request"),
            ("X-Amz-Date", "20261127T142710Z"),
            ("X-Amz-Expires", "60"),
            ("X-Amz-SignedHeaders", "host"),
        ] {
            assert_eq!(fields[name], value, "{name}");
        }
        assert_eq!(
            fields.get("X-Amz-Security-Token").copied(),
            token.map(|_| "IQoJb3JpZ2luX2VjEXAMPLE%2F%2F%2B%3Dtoken")
        );
        assert!(!target.contains(secret));
    }
}

#[test]
fn a_tunnel_without_tls_goes_no_further_than_this_machine() {
    for (url, expected) in [
        ("http://127.0.0.1:4566", Some("127.0.0.1:4566")),
        ("http://127.0.0.1:4566/", Some("127.0.0.1:4566")),
        ("http://[::1]:4566", Some("[::1]:4566")),
        ("http://10.0.0.5:80", None),
        ("http://localhost:4566", None),
        ("http://127.0.0.1", None),
        ("http://127.0.0.1:4566/path", None),
        ("http://127.0.0.1:4566@evil.example:80", None),
        ("https://127.0.0.1:4566", None),
        ("https://ec2-instance-connect.us-west-2.amazonaws.com", None),
        ("", None),
    ] {
        assert_eq!(loopback(url).as_deref(), expected, "{url}");
    }
    let config = |url: &str| {
        aws_config::SdkConfig::builder().behavior_version(BehaviorVersion::latest()).endpoint_url(url).build()
    };
    assert_eq!(configured(&config("http://127.0.0.1:1")).as_deref(), Some("http://127.0.0.1:1"));
    assert_eq!(configured(&aws_config::SdkConfig::builder().build()), None);
}

#[test]
fn a_host_is_a_name() {
    assert!(is_host_name(HOST) && is_host_name("eice-1.example.test"));
    for name in [
        "",
        "localhost",
        "10.0.0.5",
        "::1",
        "127.0.0.1:4566",
        "a.b/c",
        "a.b:443",
        "a.b\r\nHost: c",
        "é.b",
        "a b.c",
        "a_b.c",
        &"a.".repeat(200),
    ] {
        assert!(!is_host_name(name), "{name:?}");
    }
}

/// A certificate authority, and a certificate of it for a name.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"];
        let openssl = |more: &[&str]| {
            let made =
                Command::new("openssl").current_dir(dir.path()).args(["req", "-x509"]).args(key).args(more).output();
            let made = made.unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        openssl(&["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"]);
        let extensions =
            ["-addext", "subjectAltName=DNS:eice-1.example.test", "-addext", "basicConstraints=critical,CA:FALSE"];
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=endpoint", "-keyout", "key", "-out", "pem"];
        openssl(&[&extensions[..], &signed].concat());
        Self(dir)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.0.path().join("ca.pem")).unwrap()).unwrap();
        roots
    }

    /// An endpoint with TLS that says back what it hears.
    async fn endpoint(&self) -> SocketAddr {
        let certificate = CertificateDer::from_pem_file(self.0.path().join("pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(acceptor.accept(stream).await?);
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }
}

#[tokio::test]
async fn an_endpoint_proves_its_name_or_is_not_spoken_to() {
    let (authority, other) = (Authority::new(), Authority::new());
    let address = authority.endpoint().await;
    let dialled = async |roots: RootCertStore, name: &str| {
        let tls = trusting(roots).unwrap();
        secured(&tls, TcpStream::connect(address).await.unwrap(), name).await
    };
    let mut wire = dialled(authority.roots(), "eice-1.example.test").await.unwrap();
    wire.write_all(b"there?").await.unwrap();
    wire.flush().await.unwrap();
    let mut heard = [0; 6];
    wire.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"there?");
    for (roots, name) in [
        (authority.roots(), "eice-2.example.test"),
        (authority.roots(), "example.test"),
        (other.roots(), "eice-1.example.test"),
        (RootCertStore::empty(), "eice-1.example.test"),
    ] {
        let failed = dialled(roots, name).await.err().unwrap_or_else(|| panic!("{name} was believed"));
        assert_eq!((failed.class, failed.code.as_str()), (FailureClass::Retry, TLS_FAILURE), "{failed}");
    }
}
