//! Instances: real sshds on loopback addresses of the lab's own, which ask the stand-in's metadata for keys.
//!
//! As root an instance is a PID namespace, and everything in it dies with its sshd. As an ordinary user, who may not
//! have one, its processes are found by their `SSH_CONNECTION` and by their log.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use anyhow::Context;

use crate::{
    ids, poll,
    proc::{self, SessionProcess},
    process::Process,
    ssh,
    standin::{self, StandIn},
    workspace::Workspace,
};

/// The region that everything is in.
pub const REGION: &str = "us-west-2";
/// The users that exist on every instance. As an ordinary user they are all that user by another name.
pub const OS_USERS: [&str; 2] = ["ec2-user", "ops"];

/// The uid of the first of [`OS_USERS`] when the lab is root's: no person, and no service of systemd's, has it.
const UID_BASE: u32 = 61_000;
/// How long sshd may take to listen, and its sessions to be gone: milliseconds, unless the machine is starved.
const BOUND: Duration = Duration::from_secs(120);

/// An instance, as one made it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Its name, also its tag `Name`.
    pub name: String,
    /// Its other tags.
    pub tags: BTreeMap<String, String>,
    /// Whether it has a public address; without, only an endpoint leads to it.
    pub public: bool,
    /// Whether it has an IPv6 address: `::1`, with a port of its own, for there is no second one that needs no configuration.
    pub ipv6: bool,
    /// Whether it runs.
    pub running: bool,
}

impl Launch {
    /// A running instance with a public address and no tag but `Name`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tags: BTreeMap::new(), public: true, ipv6: false, running: true }
    }

    /// With a tag.
    pub fn tag(mut self, key: &str, value: &str) -> Self {
        self.tags.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With a private address only.
    pub fn private(mut self) -> Self {
        self.public = false;
        self
    }

    /// With an IPv6 address, and no public IPv4 one.
    pub fn ipv6(mut self) -> Self {
        (self.public, self.ipv6) = (false, true);
        self
    }

    /// Not running.
    pub fn stopped(mut self) -> Self {
        self.running = false;
        self
    }
}

/// An instance, as the lab knows it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its id, random in every lab.
    pub id: String,
    /// Its state, in EC2's words.
    pub state: String,
    /// Its private address, which is also how the metadata service knows it.
    pub private_ip: IpAddr,
    /// Its public address, while it runs.
    pub public_ip: Option<IpAddr>,
    /// Its IPv6 address.
    pub ipv6: Option<IpAddr>,
    /// Its availability zone.
    pub availability_zone: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Its subnet.
    pub subnet_id: String,
    /// The port of its sshd.
    pub port: u16,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its host key's public half.
    pub host_key: String,
    /// What its sshd says, at level VERBOSE.
    pub log: PathBuf,
}

impl Instance {
    /// Where a client that takes the direct way connects.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.public_ip.or(self.ipv6).unwrap_or(self.private_ip), self.port)
    }

    /// As AWS describes it.
    fn description(&self) -> standin::Instance {
        let running = self.state == "running";
        standin::Instance {
            id: self.id.clone(),
            state: self.state.clone(),
            availability_zone: self.availability_zone.clone(),
            region: REGION.to_owned(),
            account_id: standin::ACCOUNT_ID.to_owned(),
            vpc_id: self.vpc_id.clone(),
            subnet_id: self.subnet_id.clone(),
            private_ip: (self.state != "terminated").then_some(self.private_ip),
            public_ip: self.public_ip.filter(|_| running),
            ipv6: self.ipv6,
            tags: self.tags.clone(),
            host_addr: Some(SocketAddr::new(self.private_ip, self.port)),
        }
    }
}

#[derive(Debug)]
struct Machine {
    instance: Instance,
    /// Every address that its sshd listens on, also while it is stopped.
    addresses: Vec<IpAddr>,
    public: Option<IpAddr>,
    /// Present while it runs.
    sshd: Option<Process>,
    config: PathBuf,
    environment: [(&'static str, String); 3],
}

/// All instances of a lab.
pub(crate) struct Fleet {
    workspace: Arc<Workspace>,
    standin: Arc<StandIn>,
    port: u16,
    vpc_id: String,
    subnet_id: String,
    endpoint_id: String,
    machines: Mutex<BTreeMap<String, Machine>>,
    /// Held while an instance is made: its name and addresses are taken from how many there are.
    making: tokio::sync::Mutex<()>,
}

impl Fleet {
    /// An empty VPC with an endpoint; sshds will listen on `port`.
    pub fn new(workspace: Arc<Workspace>, standin: Arc<StandIn>, port: u16) -> anyhow::Result<Self> {
        let [vpc_id, subnet_id, endpoint_id] = ["vpc", "subnet", "eice"].map(ids::aws);
        standin.put_endpoint(standin::Endpoint {
            id: endpoint_id.clone(),
            region: REGION.to_owned(),
            vpc_id: vpc_id.clone(),
            subnet_id: subnet_id.clone(),
            state: "create-complete".to_owned(),
            // AWS has a name with a certificate of its own here; in a lab the stand-in itself answers.
            dns_name: standin.api_addr().to_string(),
        });
        if nix::unistd::geteuid().is_root() {
            // sshd's own; it is gone after every boot.
            fs::DirBuilder::new().recursive(true).mode(0o755).create("/run/sshd")?;
        }
        Ok(Self {
            workspace,
            standin,
            port,
            vpc_id,
            subnet_id,
            endpoint_id,
            machines: Mutex::default(),
            making: tokio::sync::Mutex::default(),
        })
    }

    pub fn endpoint_id(&self) -> &str {
        &self.endpoint_id
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn known_hosts(&self) -> PathBuf {
        self.workspace.dir.join("known_hosts")
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<String, Machine>> {
        self.machines.lock().expect("no holder of this lock panics")
    }

    /// Makes an instance, and starts it if it is to run.
    pub async fn launch(&self, launch: Launch) -> anyhow::Result<Instance> {
        let making = self.making.lock().await;
        let name = launch.name;
        let number = self.machines().len();
        anyhow::ensure!(!self.machines().contains_key(&name), "there is an instance {name} already");
        anyhow::ensure!(number < 100, "a lab has addresses for 100 instances");
        let nth = u8::try_from(number).expect("fewer than 100");
        let private_ip = self.workspace.address(110 + nth);
        let public_ip = launch.public.then(|| self.workspace.address(10 + nth));
        let ipv6 = launch.ipv6.then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        let port = match ipv6 {
            Some(ip) => TcpListener::bind((ip, 0)).and_then(|it| it.local_addr())?.port(),
            None => self.port,
        };

        let dir = self.workspace.dir.join("instances").join(&name);
        fs::create_dir_all(&dir)?;
        let host_key = ssh::keygen(&dir.join("host_key"), &["-t", "ed25519"]).await?;
        let mut tags = launch.tags;
        tags.insert("Name".to_owned(), name.clone());
        let instance = Instance {
            id: ids::aws("i"),
            state: if launch.running { "pending" } else { "stopped" }.to_owned(),
            private_ip,
            public_ip: None,
            ipv6,
            availability_zone: format!("{REGION}a"),
            vpc_id: self.vpc_id.clone(),
            subnet_id: self.subnet_id.clone(),
            port,
            tags,
            host_key: host_key.public.clone(),
            log: self.workspace.log(&name),
            name: name.clone(),
        };
        let addresses: Vec<IpAddr> = [Some(private_ip), public_ip, ipv6].into_iter().flatten().collect();

        let environment = self.people(&name)?;
        let config = dir.join("sshd_config");
        fs::write(&config, self.sshd_config(&host_key.private, &addresses, port, &environment)?)?;
        let known = ssh::known_hosts_line(&instance.id, &addresses, port, &instance.host_key);
        let mut file = fs::File::options().create(true).append(true).open(self.known_hosts())?;
        std::io::Write::write_all(&mut file, known.as_bytes())?;

        self.standin.put_instance(instance.description());
        let machine = Machine { instance, addresses, public: public_ip, sshd: None, config, environment };
        self.machines().insert(name.clone(), machine);
        drop(making);
        if launch.running { self.start(&name).await } else { Ok(self.instance(&name)) }
    }

    /// Makes the instance's people: homes, and the files from which `nss_wrapper` answers who they are.
    fn people(&self, instance: &str) -> anyhow::Result<[(&'static str, String); 3]> {
        let dir = self.workspace.hosts.join(instance);
        // Whoever logs in reads the files here, and its own home below.
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let user = nix::unistd::geteuid();
        let (mut passwd, mut group) = (String::new(), String::new());
        for (os_user, nth) in OS_USERS.into_iter().zip(0..) {
            let (uid, gid) = match user.is_root() {
                true => (UID_BASE + nth, UID_BASE + nth),
                false => (user.as_raw(), nix::unistd::getegid().as_raw()),
            };
            let home = dir.join(os_user);
            fs::DirBuilder::new().mode(0o700).create(&home)?;
            std::os::unix::fs::chown(&home, Some(uid), Some(gid))?;
            passwd += &format!("{os_user}:x:{uid}:{gid}:{os_user}:{}:/bin/bash\n", home.display());
            group += &format!("{os_user}:x:{gid}:\n"); // and no group tty, or an ordinary user gets no terminal
        }
        if user.is_root() {
            let sshd =
                nix::unistd::User::from_name("sshd")?.context("there is no user sshd; run tests/lab/setup.sh")?;
            passwd +=
                &format!("root:x:0:0:root:/root:/bin/sh\nsshd:x:{}:65534::/run/sshd:/usr/sbin/nologin\n", sshd.uid);
            passwd += "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
            group += "root:x:0:\nnogroup:x:65534:\n";
        }
        let files = [("passwd", passwd), ("group", group)].map(|(name, text)| -> anyhow::Result<String> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
            Ok(path.display().to_string())
        });
        let [passwd, group] = files;
        Ok([("LD_PRELOAD", nss_wrapper()?), ("NSS_WRAPPER_PASSWD", passwd?), ("NSS_WRAPPER_GROUP", group?)])
    }

    fn sshd_config(
        &self,
        host_key: &Path,
        addresses: &[IpAddr],
        port: u16,
        environment: &[(&str, String)],
    ) -> anyhow::Result<String> {
        let metadata = self.standin.metadata_addr();
        let keys = format!("http://{metadata}/latest/meta-data/managed-ssh-keys/active-keys/%u");
        let asker = if nix::unistd::geteuid().is_root() { "nobody" } else { OS_USERS[0] };
        let listen: String = addresses.iter().map(|address| format!("ListenAddress {address}\n")).collect();
        let session: Vec<String> = environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Ok(format!(
            "Port {port}\n{listen}HostKey {host_key}\nPidFile none\n\
             # The source address tells the metadata service which instance asks.\n\
             AuthorizedKeysCommand {curl} -sf -m 30 --interface {address} {keys}\n\
             AuthorizedKeysCommandUser {asker}\nAuthorizedKeysFile none\n\
             PubkeyAuthentication yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             UsePAM no\nUseDNS no\nLogLevel VERBOSE\nPrintMotd no\nPrintLastLog no\n\
             # Many logins at once are what tests are made of.\nMaxStartups 200\nMaxSessions 200\n\
             Subsystem sftp internal-sftp\nAcceptEnv LANG LC_*\n\
             # So that people in a session are who sshd thinks they are, and the lab finds what they leave behind.\n\
             SetEnv {session} {mark}={dir}\n",
            host_key = host_key.display(),
            curl = proc::program("curl")?.display(),
            address = addresses[0],
            session = session.join(" "),
            mark = proc::MARK,
            dir = self.workspace.dir.display(),
        ))
    }

    /// The instance of that name.
    ///
    /// # Panics
    /// If there is none: the test is wrong.
    #[track_caller]
    pub fn instance(&self, name: &str) -> Instance {
        self.with(name, |machine| machine.instance.clone())
    }

    /// All instances, by name.
    pub fn instances(&self) -> Vec<Instance> {
        self.machines().values().map(|machine| machine.instance.clone()).collect()
    }

    #[track_caller]
    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machines = self.machines();
        let Some(machine) = machines.get_mut(name) else {
            let known = machines.keys().cloned().collect::<Vec<_>>().join(", ");
            drop(machines);
            panic!("no instance is called {name}; there are {known}")
        };
        act(machine)
    }

    fn set_state(&self, name: &str, state: &str) -> Instance {
        let instance = self.with(name, |machine| {
            machine.instance.state = state.to_owned();
            // AWS gives another one at the next start; here it stays, and is only gone for the time being.
            machine.instance.public_ip = machine.public.filter(|_| state == "running");
            machine.instance.clone()
        });
        self.standin.put_instance(instance.description());
        instance
    }

    /// Starts an instance; returns when its sshd listens.
    pub async fn start(&self, name: &str) -> anyhow::Result<Instance> {
        let state = self.instance(name).state;
        anyhow::ensure!(["pending", "stopped"].contains(&state.as_str()), "{name} is {state}: it cannot be started");
        self.set_state(name, "pending");
        self.with(name, |machine| {
            let sshd = proc::program("sshd")?; // by absolute path, as it demands
            let mut command = match pid_namespaces() {
                true => {
                    let mut command = Command::new("unshare");
                    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(sshd);
                    command
                }
                false => Command::new(sshd),
            };
            command.args(["-D", "-f"]).arg(&machine.config).arg("-E").arg(&machine.instance.log);
            command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
            command.envs(machine.environment.iter().cloned()).env(proc::MARK, &self.workspace.dir).current_dir("/");
            machine.sshd = Some(Process::spawn(&format!("sshd of {name}"), command, machine.instance.log.clone())?);
            anyhow::Ok(())
        })?;
        let what = format!("sshd of {name} to listen");
        let listens = poll::until_ok(&what, BOUND, || {
            self.with(name, |machine| {
                if let Some(death) = machine.sshd.as_mut().and_then(Process::death) {
                    return Ok(Err(anyhow::anyhow!(death)));
                }
                let port = machine.instance.port;
                for address in machine.addresses.iter().map(|ip| SocketAddr::new(*ip, port)) {
                    if !proc::listening(address)? {
                        anyhow::bail!("nobody listens on {address}");
                    }
                }
                anyhow::Ok(Ok(()))
            })
        });
        listens.await??;
        Ok(self.set_state(name, "running"))
    }

    /// Stops an instance: its sshd and all that runs in its sessions is gone when this returns.
    pub async fn stop(&self, name: &str) -> anyhow::Result<Instance> {
        self.halt(name, "stopping", "stopped").await
    }

    /// Ends an instance for ever.
    pub async fn terminate(&self, name: &str) -> anyhow::Result<Instance> {
        self.halt(name, "shutting-down", "terminated").await
    }

    async fn halt(&self, name: &str, meanwhile: &str, then: &str) -> anyhow::Result<Instance> {
        self.set_state(name, meanwhile);
        let log = self.with(name, |machine| {
            machine.sshd = None;
            machine.instance.log.clone()
        });
        let what = format!("{name} to be empty");
        let empty = poll::until_ok(&what, BOUND, || {
            let mut left = proc::logging_to(&log);
            left.extend(self.session_processes(name).iter().map(|process| process.pid));
            proc::kill(&left);
            if left.is_empty() { Ok(()) } else { Err(format!("processes {left:?}")) }
        });
        empty.await?;
        Ok(self.set_state(name, then))
    }

    /// Makes an instance fall silent: connections stay open, and nothing is answered, as in a black hole.
    pub fn freeze(&self, name: &str) -> anyhow::Result<()> {
        self.with(name, |machine| machine.sshd.as_ref().with_context(|| format!("{name} does not run"))?.freeze_tree())
    }

    /// Ends a freeze.
    pub fn thaw(&self, name: &str) -> anyhow::Result<()> {
        self.with(name, |machine| machine.sshd.as_ref().with_context(|| format!("{name} does not run"))?.thaw_tree())
    }

    /// Replaces an instance's tags.
    pub fn retag(&self, name: &str, tags: BTreeMap<String, String>) -> Instance {
        let instance = self.with(name, |machine| {
            machine.instance.tags = tags;
            machine.instance.clone()
        });
        self.standin.put_instance(instance.description());
        instance
    }

    /// What lives in sessions on an instance, seen from outside.
    pub fn session_processes(&self, name: &str) -> Vec<SessionProcess> {
        let (addresses, port) = self.with(name, |machine| (machine.addresses.clone(), machine.instance.port));
        proc::session_processes(&addresses, port)
    }
}

/// Whether we may make PID namespaces: root may, unless a container denies it.
fn pid_namespaces() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let mut attempt = Command::new("unshare");
        attempt.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--", "true"]);
        attempt.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        nix::unistd::geteuid().is_root() && attempt.status().is_ok_and(|status| status.success())
    })
}

/// Where the distribution puts the library: a directory named after the machine, or not.
fn nss_wrapper() -> anyhow::Result<String> {
    let machine = std::env::consts::ARCH;
    let places = [format!("/usr/lib/{machine}-linux-gnu"), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
    let found = places.map(|dir| format!("{dir}/libnss_wrapper.so")).into_iter().find(|path| Path::new(path).exists());
    found.context("libnss_wrapper is not installed; run tests/lab/setup.sh")
}
