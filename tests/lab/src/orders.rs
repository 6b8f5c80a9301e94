//! What may be asked of a running lab from another process: a line of JSON each way, on a socket in its directory.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Subcommand};
use lab::{Lab, Launch};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

/// Longest order: the name and tags of an instance fit many times over.
const ORDER_BYTES_MAX: u64 = 64 * 1024;

/// An order, on the command line and on the socket.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub enum Order {
    /// Start, stop, add or look at instances
    #[command(subcommand)]
    Instance(InstanceOrder),
    /// Take the API server away, and bring it back
    #[command(subcommand)]
    ApiServer(ApiServerOrder),
    /// Print the path of a kubeconfig
    Kubeconfig(KubeconfigOrder),
    /// Push a public key to an instance, as an AWS client does; for a login past the product
    PushKey {
        /// The instance's name
        instance: String,
        /// The login on the instance
        #[arg(long, default_value = lab::OS_USERS[0])]
        os_user: String,
    },
    /// Where things are
    #[command(skip)]
    About,
}

/// An order about instances, by their name.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub enum InstanceOrder {
    /// List them
    List,
    /// Start a stopped one
    Start { name: String },
    /// Stop one, with all that lives in sessions on it
    Stop { name: String },
    /// End one for ever
    Terminate { name: String },
    /// Make one fall silent
    Freeze { name: String },
    /// End a freeze
    Thaw { name: String },
    /// Make and start one
    Launch {
        /// Its name
        name: String,
        /// Tags, as in env=dev
        tags: Vec<String>,
        /// Without a public address
        #[arg(long)]
        private: bool,
    },
    /// Replace one's tags, all but Name
    Retag { name: String, tags: Vec<String> },
    /// What lives in sessions on one
    Sessions { name: String },
}

/// An order about the API server.
#[derive(Debug, Subcommand, Serialize, Deserialize)]
pub enum ApiServerOrder {
    /// Kill it
    Stop,
    /// Start it again
    Start,
    /// Make it hang
    Freeze,
    /// End a freeze
    Thaw,
}

/// Whose kubeconfig is wanted.
#[derive(Debug, Args, Serialize, Deserialize)]
pub struct KubeconfigOrder {
    /// A person, such as alice
    #[arg(required_unless_present = "service_account")]
    person: Option<String>,
    /// A service account, as NAMESPACE/NAME, made if missing
    #[arg(long, conflicts_with = "person")]
    service_account: Option<String>,
}

/// The socket's path by way of an open directory: a socket's path is short, a directory's may be long.
fn socket(dir: &Path) -> io::Result<(fs::File, PathBuf)> {
    let dir = fs::File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Gives an order to the lab in a directory, and returns what it says.
pub fn give(dir: &Path, order: &Order) -> anyhow::Result<String> {
    let (_held, path) = socket(dir).with_context(|| format!("opening {}", dir.display()))?;
    let mut stream = UnixStream::connect(path).with_context(|| format!("no lab answers in {}", dir.display()))?;
    stream.write_all(&serde_json::to_vec(order)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answer: Result<String, String> = serde_json::from_str(&answer).context("the lab ended before it answered")?;
    answer.map_err(anyhow::Error::msg)
}

/// The lab's end of the socket.
pub struct Inbox(tokio::net::UnixListener);

impl Inbox {
    /// Opens the socket in the lab's directory.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let (_held, path) = socket(dir)?;
        Ok(Self(tokio::net::UnixListener::bind(path)?))
    }

    /// Takes one order, and carries it out. One at a time: orders are a person's.
    pub async fn take(&self, lab: &Lab) {
        let Ok((mut stream, _)) = self.0.accept().await else { return };
        let (reader, mut writer) = stream.split();
        let mut order = Vec::new();
        let mut reader = tokio::io::BufReader::new(reader.take(ORDER_BYTES_MAX));
        if reader.read_until(b'\n', &mut order).await.is_err() {
            return;
        }
        let answer = match serde_json::from_slice(&order) {
            Ok(order) => carry_out(lab, order).await.map_err(|error| format!("{error:#}")),
            Err(error) => Err(error.to_string()),
        };
        let mut answer = serde_json::to_vec(&answer).expect("strings are JSON");
        answer.push(b'\n');
        let _ = writer.write_all(&answer).await; // whoever asked may have gone
    }
}

async fn carry_out(lab: &Lab, order: Order) -> anyhow::Result<String> {
    match order {
        Order::About => crate::about(lab),
        Order::Instance(order) => instance(lab, order).await,
        Order::ApiServer(order) => {
            anyhow::ensure!(lab.has_control_plane(), "this lab has no control plane");
            match order {
                ApiServerOrder::Stop => lab.stop_api_server(),
                ApiServerOrder::Start => lab.start_api_server().await?,
                ApiServerOrder::Freeze => lab.freeze_api_server()?,
                ApiServerOrder::Thaw => lab.thaw_api_server()?,
            }
            Ok(String::new())
        }
        Order::Kubeconfig(KubeconfigOrder { person, service_account }) => {
            anyhow::ensure!(lab.has_control_plane(), "this lab has no control plane");
            let path = match (person, service_account) {
                (_, Some(account)) => {
                    let (namespace, name) = account.split_once('/').context("a service account is NAMESPACE/NAME")?;
                    lab.kubeconfig_for_service_account(namespace, name).await?
                }
                (Some(person), None) => {
                    let known = || lab::PEOPLE.map(|(name, _)| name).join(", ");
                    anyhow::ensure!(
                        lab::PEOPLE.iter().any(|(name, _)| *name == person),
                        "{person}: there are {}",
                        known()
                    );
                    lab.kubeconfig(&person)?
                }
                (None, None) => anyhow::bail!("whose?"),
            };
            Ok(format!("{}\n", path.display()))
        }
        Order::PushKey { instance, os_user } => {
            known(lab, &instance)?;
            let private = lab.dir().join("keys/me");
            let public = fs::read_to_string(lab.dir().join("keys/me.pub"))?.trim_end().to_owned();
            lab.push_key(&lab.instance(&instance), &os_user, &lab::ssh::KeyPair { private, public }).await?;
            Ok(String::new())
        }
    }
}

async fn instance(lab: &Lab, order: InstanceOrder) -> anyhow::Result<String> {
    match order {
        InstanceOrder::List => return Ok(crate::table(lab)),
        InstanceOrder::Start { name } => drop(lab.start_instance(known(lab, &name)?).await?),
        InstanceOrder::Stop { name } => drop(lab.stop_instance(known(lab, &name)?).await?),
        InstanceOrder::Terminate { name } => drop(lab.terminate_instance(known(lab, &name)?).await?),
        InstanceOrder::Freeze { name } => lab.freeze_instance(known(lab, &name)?)?,
        InstanceOrder::Thaw { name } => lab.thaw_instance(known(lab, &name)?)?,
        InstanceOrder::Launch { name, tags, private } => {
            let mut launch = Launch::new(&name);
            launch.tags = parse(&tags)?;
            launch.public = !private;
            lab.launch_instance(launch).await?;
        }
        InstanceOrder::Retag { name, tags } => {
            let mut tags = parse(&tags)?;
            tags.insert("Name".to_owned(), name.clone());
            lab.retag_instance(known(lab, &name)?, tags);
        }
        InstanceOrder::Sessions { name } => {
            let processes = lab.session_processes(known(lab, &name)?);
            return Ok(processes.iter().map(|it| format!("{}  {}  {}\n", it.pid, it.connection, it.command)).collect());
        }
    }
    Ok(String::new())
}

/// The name, if an instance has it: what a test panics at, a person is told.
fn known<'a>(lab: &Lab, name: &'a str) -> anyhow::Result<&'a str> {
    let names: Vec<_> = lab.instances().into_iter().map(|it| it.name).collect();
    anyhow::ensure!(names.iter().any(|it| it == name), "no instance is called {name}; there are {}", names.join(", "));
    Ok(name)
}

fn parse(tags: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let parse = |tag: &String| {
        let (key, value) = tag.split_once('=').with_context(|| format!("{tag}: a tag looks like env=dev"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    tags.iter().map(parse).collect()
}
