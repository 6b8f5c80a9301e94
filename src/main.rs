//! The operator's command line: controller, gateway, crds, admission, ready, audit.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use instance_access::config::{
    AdmissionArgs, AuditCommand, Command, CommandLine, ControllerArgs, GatewayArgs, HostKeyArgs, LeaseName, ReadyArgs,
};
use instance_access::gateway::{HostKeys, known_hosts_lines};
use instance_access::{admission, api, ready, verify};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Two arenas, whatever the number of cores (its default is four for each): a controller waits more than it computes, and
/// each arena keeps pages of its own. Pages that are not used go back after two seconds, not ten. `MALLOC_CONF` does not
/// overrule it, `_RJEM_MALLOC_CONF` does.
#[expect(
    unsafe_code,
    reason = "jemalloc reads its configuration from a symbol of this name, and there is no other way"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_CONFIGURATION: &std::ffi::CStr = c"narenas:2,dirty_decay_ms:2000,muzzy_decay_ms:0";

fn main() -> ExitCode {
    // Before anything speaks TLS: two crates would otherwise each pick a provider.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let CommandLine { command } = CommandLine::parse();
    let outcome = match command {
        Command::Controller(args) => controller(args),
        Command::Gateway(args) => gateway(args),
        Command::HostKey(HostKeyArgs { host_key_file, host }) => {
            known_hosts_lines(&host_key_file, &host).map_err(Into::into).and_then(print)
        }
        Command::Crds => print(api::crds_yaml().into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect()),
        Command::Admission(AdmissionArgs { operator_service_account, gateway_service_account, without_mutating }) => {
            let writers = admission::Writers::new(operator_service_account, gateway_service_account);
            print(admission::yaml(&writers, !without_mutating))
        }
        Command::Ready(ReadyArgs { at, ssh, wait_seconds }) => {
            ready::ask(&at, ssh.as_deref(), std::time::Duration::from_secs(wait_seconds))
                .map_err(Into::into)
                .and_then(|said| print(format!("{at}: {said}\n")))
        }
        Command::Audit(AuditCommand::Verify(args)) => verify::tell(args, &mut std::io::stdout()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// A size in bytes; none for 0.
fn mebibytes(number: u32) -> Option<u64> {
    (number > 0).then(|| u64::from(number) << 20)
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Spans, if OpenTelemetry's variables ask for them.
fn start_traces(service: &str) {
    instance_access::traces::start(service, |name| std::env::var(name).ok());
}

fn print(text: String) -> Outcome {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(not(feature = "aws"))]
fn controller(_: ControllerArgs) -> Outcome {
    Err("this binary was built without the feature aws, and has no cloud to serve; build it with the default features"
        .into())
}

#[cfg(feature = "aws")]
fn controller(args: ControllerArgs) -> Outcome {
    instance_access::telemetry::start_logs(args.log_format);
    start_traces("instance-access-controller");
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args));
    instance_access::traces::finish();
    outcome
}

#[cfg(feature = "aws")]
async fn run(args: ControllerArgs) -> Outcome {
    use std::sync::OnceLock;
    use std::time::Duration;

    use instance_access::audit::Sinks;
    use instance_access::aws::{Cloud, LookupLimits, PushLimits, SdkCloud};
    use instance_access::clock;
    use instance_access::controller::{Candidate, Controller, Health, Leads, Parts, Records, Term, WhyNotReady};
    use instance_access::domain::lease::{Loss, Terms};
    use instance_access::domain::lifecycle::Settings;
    use instance_access::server::Pages;
    use instance_access::telemetry::Metrics;
    use tokio_util::sync::CancellationToken;

    /// How long the last records may take to be durable at the end.
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

    let ControllerArgs {
        audit_file,
        audit_file_max_mebibytes,
        audit_stdout,
        listen,
        pushes_per_second,
        gateway_address,
        principal,
        lease,
        lease_seconds,
        gateway_service_account,
        log_format: _,
    } = args;
    let stop = CancellationToken::new();
    let told = {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        }
    };
    tokio::spawn(told);
    let clock = clock::system();
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| format!("--listen {listen}: {error}; give another address"))?;
    // With port 0 the system chose one, and whoever asked for that reads here which.
    let listen = listener.local_addr()?;
    let sinks = Sinks { file: audit_file, stdout: audit_stdout };
    let records = Arc::new(Records::default());
    let client = instance_access::kubernetes::client().await?;
    let metrics = Arc::new(Metrics::default());
    // Before it leads: who leads must renew, and asking for a region may take its time.
    let cloud = SdkCloud::load().await;
    let mut candidate = lease.map(|lease| {
        let head = Arc::clone(&records);
        Candidate::new(
            client.clone(),
            &lease.namespace,
            &lease.name,
            Terms { identity: identity(&clock), lease: Duration::from_secs(lease_seconds.into()) },
            Arc::clone(&clock),
            Arc::new(move || head.head()),
        )
    });
    let leads: Leads = candidate.as_ref().map_or_else(|| Arc::new(|| true) as Leads, Candidate::leads);
    metrics.led_by({
        let leads = Arc::clone(&leads);
        move || leads()
    });
    let starting: WhyNotReady = Arc::new(|| Some("starting"));
    let standing_by = candidate.as_ref().map_or(starting, Candidate::why_not_ready);
    let life: Arc<OnceLock<Health>> = Arc::new(OnceLock::new());
    let served = CancellationToken::new();
    let server = tokio::spawn(instance_access::server::serve(
        listener,
        Pages::of_controller(Arc::clone(&life), standing_by, Arc::clone(&clock), Arc::clone(&metrics)),
        served.clone(),
    ));
    tracing::info!(%listen, "started");
    let mut term = Term::Alone;
    if let Some(candidate) = &mut candidate {
        let listening = tokio::spawn(instance_access::controller::remember(
            client.clone(),
            Arc::clone(&records),
            Arc::clone(&clock),
        ));
        let won = candidate.until_leads(&stop).await;
        listening.abort();
        let Some(won) = won? else {
            served.cancel();
            server.await?;
            return Ok(());
        };
        term = Term::next(won, lease_seconds);
    }
    let bytes_max = mebibytes(audit_file_max_mebibytes);
    let opening = {
        let (records, clock, stop) = (Arc::clone(&records), Arc::clone(&clock), stop.clone());
        tokio::spawn(async move { records.open(sinks, bytes_max, &term, &clock, &stop).await })
    };
    let region = cloud.region();
    if region.is_none() {
        tracing::warn!("the AWS configuration names no region: requests must name theirs, in spec.target.region");
    }
    let rate_per_second_max = f64::from(pushes_per_second);
    let vouched = candidate.as_ref().and_then(Candidate::vouched);
    let controller = Controller::new(Parts {
        client,
        cloud: Arc::new(cloud) as Arc<dyn Cloud>,
        push_limits: PushLimits { rate_per_second_max, ..PushLimits::default() },
        lookup_limits: LookupLimits::default(),
        records: Arc::clone(&records),
        leads,
        vouched,
        clock: Arc::clone(&clock),
        settings: Settings { region, principals: principal.unwrap_or_default(), gateway: gateway_address },
        gateways: gateway_service_account,
        metrics: Arc::clone(&metrics),
    });
    drop(life.set(controller.health())); // it is set nowhere else
    let vouching = controller.vouched();
    let running = tokio::spawn(controller.run(stop.clone()));
    // The lease is kept until nothing is done any more.
    let (kept, lost) = (CancellationToken::new(), CancellationToken::new());
    let keeping = candidate.map(|mut candidate| {
        let (stop, kept, lost) = (stop.clone(), kept.clone(), lost.clone());
        candidate.vouch(vouching);
        tokio::spawn(async move {
            // However this ends, nobody works on without a lease.
            let (_stop, lost) = (stop.drop_guard(), lost.drop_guard());
            candidate.keep(&kept).await?;
            lost.disarm();
            candidate.release().await;
            Ok::<(), Loss>(())
        })
    });
    let refused = tokio::select! {
        Some(error) = refused(opening) => Some(error),
        () = stop.cancelled() => None,
    };
    stop.cancel();
    let stopped = async {
        let ran = running.await;
        // A disk that hangs must not keep the lease.
        if tokio::time::timeout(CLOSE_TIMEOUT, records.close()).await.is_err() {
            tracing::error!("the audit trail does not close; stopping without");
        }
        ran
    };
    let ran = tokio::select! {
        ran = stopped => ran?,
        // Nothing that is left to do may be done, and the next leader waits for the trail.
        () = lost.cancelled() => Ok(()),
    };
    kept.cancel();
    if let Some(keeping) = keeping {
        keeping.await??;
    }
    served.cancel();
    server.await?;
    tracing::info!("stopped");
    if let Some(error) = refused {
        return Err(error.into());
    }
    ran.map_err(Into::into)
}

/// This process, and no other one that ever was: in a pod its name, and what tells its lives apart.
#[cfg(feature = "aws")]
fn identity(clock: &instance_access::clock::Clock) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}_{:x}", host.trim(), std::process::id(), clock().as_nanosecond())
}

fn gateway(args: GatewayArgs) -> Outcome {
    instance_access::telemetry::start_logs(args.log_format);
    start_traces("instance-access-gateway");
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run_gateway(args));
    instance_access::traces::finish();
    outcome
}

/// AWS for the gateway, which serves meanwhile all that needs none: reading the configuration may ask the network.
#[cfg(feature = "aws")]
fn coming_aws(
    clock: &instance_access::clock::Clock,
) -> (instance_access::aws::ComingCloud, instance_access::aws::ComingTunnels) {
    use futures::FutureExt;
    use instance_access::aws::{Cloud, ComingTunnels, SdkCloud, SdkTunnels, Tunnels};

    let loading = tokio::spawn(async {
        let cloud = Arc::new(SdkCloud::load().await);
        let looking = Arc::clone(&cloud);
        tokio::spawn(async move {
            if looking.has_credentials().await {
                tracing::info!("found AWS credentials; keyDelivery OnConnect and endpoints are served");
            } else {
                tracing::warn!(
                    "found no AWS credentials; keyDelivery OnConnect and endpoints are refused until there are some"
                );
            }
        });
        cloud
    });
    let loaded = async move { loading.await.ok() }.boxed().shared();
    let (cloud, clock) = (loaded.clone(), Arc::clone(clock));
    let cloud = async move { cloud.await.map(|cloud| cloud as Arc<dyn Cloud>) };
    let tunnels = async move { loaded.await.map(|cloud| Arc::new(SdkTunnels::new(cloud, clock)) as Arc<dyn Tunnels>) };
    (cloud.boxed().shared(), ComingTunnels(tunnels.boxed().shared()))
}

#[cfg(not(feature = "aws"))]
fn coming_aws(
    _: &instance_access::clock::Clock,
) -> (instance_access::aws::ComingCloud, instance_access::aws::ComingTunnels) {
    use futures::FutureExt;

    tracing::warn!("this binary was built without the feature aws; keyDelivery OnConnect and endpoints are refused");
    let none = instance_access::aws::ComingTunnels(std::future::ready(None).boxed().shared());
    (std::future::ready(None).boxed().shared(), none)
}

async fn run_gateway(args: GatewayArgs) -> Outcome {
    use instance_access::audit::{Begin, Limits, Sinks, Trail};
    use instance_access::aws::Tunnels;
    use instance_access::clock;
    use instance_access::domain::session::{Dialling, EndpointLimits, Networks};
    use instance_access::gateway::{Gateway, GatewayLimits, GatewayMetrics, GatewayParts, LeaderLease};
    use instance_access::server::Pages;
    use std::time::Duration;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio_util::sync::CancellationToken;

    let GatewayArgs {
        host_key_file,
        name,
        audit_file,
        audit_file_max_mebibytes,
        audit_stdout,
        ssh_listen,
        listen,
        lease,
        never_dial,
        ports,
        private_vpcs,
        endpoint_connections_max,
        endpoint_connections_per_user_max,
        api_silence_seconds,
        login_seconds,
        connections_max,
        connections_per_source_max,
        logins_max,
        logins_per_source_max,
        connections_per_key_max,
        sessions_per_grant_max,
        idle_timeout_seconds,
        drain_seconds,
        log_format: _,
    } = args;
    let seconds = |seconds: u16| Duration::from_secs(seconds.into());
    let mut terminate = signal(SignalKind::terminate())?;
    let clock = clock::system();
    let host_keys = HostKeys::load(&host_key_file)?;
    let bind = async |flag, address| {
        let bound = tokio::net::TcpListener::bind(address).await;
        bound.map_err(|error| format!("{flag} {address}: {error}; give another address"))
    };
    let (ssh_listener, listener) = (bind("--ssh-listen", ssh_listen).await?, bind("--listen", listen).await?);
    // With port 0 the system chose one, and whoever asked for that reads here which.
    let (ssh_listen, listen) = (ssh_listener.local_addr()?, listener.local_addr()?);
    // Without a trail nothing is opened, and nothing is open yet: whoever started this hears of it at once.
    let sinks = Sinks { file: audit_file, stdout: audit_stdout };
    let limits = Limits { file_bytes_max: mebibytes(audit_file_max_mebibytes), ..Limits::default() };
    let (trail, opened) = Trail::open(sinks, limits, Begin { now: clock(), known_head: None, leader: None }).await?;
    if let Some(torn) = &opened.torn {
        tracing::warn!(path = %torn.path.display(), bytes = torn.bytes, "set aside the torn end of the audit trail");
    }
    let metrics = Arc::new(GatewayMetrics::default());
    for key in host_keys.all() {
        let known_hosts = key.known_hosts_line("GATEWAY");
        tracing::info!(fingerprint = key.fingerprint(), known_hosts, "read a host key");
    }
    let (cloud, tunnels) = coming_aws(&clock);
    let gateway = Gateway::new(GatewayParts {
        client: instance_access::kubernetes::client().await?,
        cloud,
        trail,
        clock: Arc::clone(&clock),
        name,
        host_keys,
        limits: GatewayLimits {
            connections_max: connections_max.into(),
            connections_per_source_max: connections_per_source_max.into(),
            logins_max: logins_max.into(),
            logins_per_source_max: logins_per_source_max.into(),
            login: seconds(login_seconds),
            connections_per_key_max: connections_per_key_max.into(),
            sessions_per_grant_max: sessions_per_grant_max.into(),
            idle_max: idle_timeout_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            endpoints: EndpointLimits {
                per_endpoint_max: endpoint_connections_max.into(),
                per_user_max: endpoint_connections_per_user_max.into(),
            },
            silence_max: seconds(api_silence_seconds),
            drain: seconds(drain_seconds),
        },
        dialling: Dialling {
            never: Networks::new(never_dial),
            ports,
            private_vpcs,
            endpoints: endpoint_connections_max > 0,
        },
        tunnels: (endpoint_connections_max > 0).then(|| Arc::new(tunnels) as Arc<dyn Tunnels>),
        lease: lease.map(|LeaseName { namespace, name }| LeaderLease { namespace, name }),
        metrics: Arc::clone(&metrics),
    });
    let health = gateway.health();
    let pages = Pages {
        // Each session looks at the clock by itself: there is no one timer that could stand still.
        is_live: Box::new(|| true),
        why_not_ready: Box::new(move || health.why_not_ready()),
        metrics: Box::new(move || metrics.page()),
    };
    let (stop, served) = (CancellationToken::new(), CancellationToken::new());
    let server = tokio::spawn(instance_access::server::serve(listener, pages, served.clone()));
    let running = tokio::spawn(gateway.run(ssh_listener, stop.clone()));
    tracing::info!(%ssh_listen, %listen, "started");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
    running.await?;
    served.cancel();
    server.await?;
    tracing::info!("stopped");
    Ok(())
}

/// Waits for an audit trail that can never be opened; one that is open, or may yet be, is nothing to stop for.
#[cfg(feature = "aws")]
async fn refused(
    opening: tokio::task::JoinHandle<Result<(), instance_access::audit::OpenError>>,
) -> Option<instance_access::audit::OpenError> {
    match opening.await {
        Ok(outcome) => outcome.err(),
        Err(_) => None,
    }
}
