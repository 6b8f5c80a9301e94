//! A small client that shares nothing with the stand-in, and an instance to ask for.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use lab::standin::{Config, Instance, StandIn};
use serde_json::{Value, json};

pub const ID: &str = "i-0123456789abcdef0";
pub const ED25519: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2Ml6VpY6iYEI1xJd0h5m6j8m8b8X8kq3c4o1m5Zr7p alice@example.com";

/// An answer of any of the services.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub error_type: Option<String>,
    pub body: String,
}

impl Answer {
    /// The text of the first element with this name.
    pub fn text(&self, element: &str) -> Option<&str> {
        let (_, rest) = self.body.split_once(&format!("<{element}>"))?;
        rest.split_once(&format!("</{element}>")).map(|(text, _)| text)
    }

    /// The texts of all elements with this name.
    pub fn texts(&self, element: &str) -> Vec<&str> {
        self.body
            .split(&format!("<{element}>"))
            .skip(1)
            .filter_map(|rest| rest.split_once(&format!("</{element}>")))
            .map(|(text, _)| text)
            .collect()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the body is JSON")
    }

    /// The error code, of whichever service.
    pub fn code(&self) -> Option<String> {
        match &self.error_type {
            Some(code) => Some(code.clone()),
            None => self.text("Code").map(str::to_owned),
        }
    }
}

/// A stand-in and a client of it.
pub struct World {
    pub stand_in: StandIn,
    pub http: reqwest::Client,
}

pub async fn world() -> World {
    world_with(Config::default()).await
}

pub async fn world_with(config: Config) -> World {
    let stand_in = StandIn::start(config).await.expect("loopback can be bound");
    stand_in.put_instance(instance(ID));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client without TLS");
    World { stand_in, http }
}

pub fn instance(id: &str) -> Instance {
    Instance { id: id.into(), private_ip: Some(IpAddr::from([10, 0, 0, 5])), ..Instance::default() }
}

/// The form of a signature; nothing judges the digest.
pub fn authorization(service: &str, region: &str) -> [(&'static str, String); 2] {
    let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let day = &date[..8];
    let text = format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{day}/{region}/{service}/aws4_request, SignedHeaders=host;x-amz-date, \
         Signature={}",
        "0".repeat(64)
    );
    [("authorization", text), ("x-amz-date", date)]
}

impl World {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.stand_in.api_addr())
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        self.try_send(request).await.expect("there is an answer")
    }

    pub async fn try_send(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let response = request.send().await?;
        let error_type = response.headers().get("x-amzn-errortype").and_then(|it| it.to_str().ok()).map(str::to_owned);
        Ok(Answer { status: response.status().as_u16(), error_type, body: response.text().await? })
    }

    /// A call of a Query service, signed for us-west-2.
    pub fn query(&self, service: &str, parameters: &[(&str, &str)]) -> reqwest::RequestBuilder {
        self.query_in("us-west-2", service, parameters)
    }

    pub fn query_in(&self, region: &str, service: &str, parameters: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("Version", if service == "ec2" { "2016-11-15" } else { "2011-06-15" });
        form.extend_pairs(parameters);
        let mut request = self
            .http
            .post(self.url("/"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish());
        for (name, value) in authorization(service, region) {
            request = request.header(name, value);
        }
        request
    }

    pub async fn ec2(&self, parameters: &[(&str, &str)]) -> Answer {
        self.send(self.query("ec2", parameters)).await
    }

    /// DescribeInstances.
    pub async fn look_up(&self, parameters: &[(&str, &str)]) -> Answer {
        let mut all = vec![("Action", "DescribeInstances")];
        all.extend_from_slice(parameters);
        self.ec2(&all).await
    }

    pub fn push_request(&self, body: &Value) -> reqwest::RequestBuilder {
        let mut request = self
            .http
            .post(self.url("/"))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "AWSEC2InstanceConnectService.SendSSHPublicKey")
            .body(body.to_string());
        for (name, value) in authorization("ec2-instance-connect", "us-west-2") {
            request = request.header(name, value);
        }
        request
    }

    pub async fn push(&self, body: &Value) -> Answer {
        self.send(self.push_request(body)).await
    }

    /// What the instance's host reads, asking from its own address.
    pub async fn active_keys(&self, host: IpAddr, os_user: &str) -> Answer {
        let client = reqwest::Client::builder().no_proxy().local_address(host).build().expect("a client without TLS");
        let addr = self.stand_in.metadata_addr();
        let path = format!("http://{addr}/latest/meta-data/managed-ssh-keys/active-keys/{os_user}");
        self.send(client.get(path)).await
    }
}

/// A good push, with some fields changed; null takes a field away.
pub fn push_body(changes: Value) -> Value {
    let mut body = json!({ "InstanceId": ID, "InstanceOSUser": "ec2-user", "SSHPublicKey": ED25519 });
    let fields = body.as_object_mut().expect("it is one");
    for (name, value) in changes.as_object().expect("changes are an object") {
        if value.is_null() {
            fields.remove(name);
        } else {
            fields.insert(name.clone(), value.clone());
        }
    }
    body
}

pub fn host(last: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], 22))
}
