//! The operator's command line: controller, gateway, crds, admission, ready, audit.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use instance_access::audit::{self, Expectation};
use instance_access::config::{
    AdmissionArgs, AuditCommand, Command, CommandLine, ControllerArgs, GatewayArgs, HostKeyArgs, ReadyArgs, VerifyArgs,
};
use instance_access::gateway::HostKey;
use instance_access::{admission, api, ready};

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
            host_key(&host_key_file).and_then(|key| print(key.known_hosts_line(&host) + "\n"))
        }
        Command::Crds => print(api::crds_yaml().into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect()),
        Command::Admission(AdmissionArgs { operator_service_account, without_mutating }) => {
            print(admission::yaml(&operator_service_account, !without_mutating))
        }
        Command::Ready(ReadyArgs { at, wait_seconds }) => ready::ask(&at, std::time::Duration::from_secs(wait_seconds))
            .map_err(Into::into)
            .and_then(|said| print(format!("{at}: {said}\n"))),
        Command::Audit(AuditCommand::Verify(args)) => verify(args),
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

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn print(text: String) -> Outcome {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn verify(args: VerifyArgs) -> Outcome {
    let VerifyArgs { files, head, after } = args;
    let summary = audit::verify_files(&files, Expectation { after, heads: head })?;
    let time = |time: Option<jiff::Timestamp>| time.map_or_else(|| "never".to_owned(), |time| time.to_string());
    println!(
        "verified: {} records in {} segments, from {} to {}",
        summary.records,
        summary.segments,
        time(summary.first_time),
        time(summary.last_time)
    );
    if let Some(head) = summary.head {
        println!("head: {}:{}", head.sequence, head.digest);
    }
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
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
}

#[cfg(feature = "aws")]
async fn run(args: ControllerArgs) -> Outcome {
    use instance_access::audit::Sinks;
    use instance_access::aws::{Cloud, LookupLimits, PushLimits, SdkCloud};
    use instance_access::clock;
    use instance_access::controller::{Controller, Parts, Records};
    use instance_access::domain::lifecycle::Settings;
    use instance_access::server::Pages;
    use instance_access::telemetry::Metrics;
    use tokio_util::sync::CancellationToken;

    let ControllerArgs { audit_file, audit_stdout, listen, pushes_per_second, principal, log_format: _ } = args;
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let clock = clock::system();
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| format!("--listen {listen}: {error}; give another address"))?;
    // With port 0 the system chose one, and whoever asked for that reads here which.
    let listen = listener.local_addr()?;
    let sinks = Sinks { file: audit_file, stdout: audit_stdout };
    let records = Arc::new(Records::default());
    let opening = {
        let (records, clock, stop) = (Arc::clone(&records), Arc::clone(&clock), stop.clone());
        tokio::spawn(async move { records.open(sinks, &clock, &stop).await })
    };
    let cloud = SdkCloud::load().await;
    let region = cloud.region();
    if region.is_none() {
        tracing::warn!("the AWS configuration names no region: requests must name theirs, in spec.target.region");
    }
    let client = instance_access::kubernetes::client().await?;
    let metrics = Arc::new(Metrics::default());
    let rate_per_second_max = f64::from(pushes_per_second);
    let controller = Controller::new(Parts {
        client,
        cloud: Arc::new(cloud) as Arc<dyn Cloud>,
        push_limits: PushLimits { rate_per_second_max, ..PushLimits::default() },
        lookup_limits: LookupLimits::default(),
        records: Arc::clone(&records),
        clock: Arc::clone(&clock),
        settings: Settings { region, principals: principal.unwrap_or_default() },
        metrics: Arc::clone(&metrics),
    });
    let health = controller.health();
    let server = tokio::spawn(instance_access::server::serve(
        listener,
        Pages::of_controller(health, clock, metrics),
        stop.clone(),
    ));
    let running = tokio::spawn(controller.run(stop.clone()));
    tracing::info!(%listen, "started");
    let refused = tokio::select! {
        _ = terminate.recv() => None,
        _ = tokio::signal::ctrl_c() => None,
        Some(error) = refused(opening) => Some(error),
        _ = stop.cancelled() => None,
    };
    tracing::info!("stopping");
    stop.cancel();
    let ran = running.await?;
    server.await?;
    records.close().await;
    tracing::info!("stopped");
    refused.map_or(Ok(()), |error| Err(error.into())).and(ran.map_err(Into::into))
}

fn host_key(path: &std::path::Path) -> Result<HostKey, Box<dyn std::error::Error>> {
    HostKey::load(path).map_err(Into::into)
}

fn gateway(args: GatewayArgs) -> Outcome {
    instance_access::telemetry::start_logs(args.log_format);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run_gateway(args))
}

async fn run_gateway(args: GatewayArgs) -> Outcome {
    use instance_access::audit::{Begin, Limits, Sinks, Trail};
    use instance_access::clock;
    use instance_access::domain::session::{Dialling, EndpointLimits, Networks};
    use instance_access::gateway::{Gateway, GatewayLimits, GatewayMetrics, GatewayParts, READ_TIMEOUT};
    use instance_access::server::Pages;
    use std::time::Duration;
    use tokio::signal::unix::{SignalKind, signal};
    use tokio_util::sync::CancellationToken;

    let GatewayArgs {
        host_key_file,
        name,
        audit_file,
        audit_stdout,
        ssh_listen,
        listen,
        never_dial,
        ports,
        private_vpcs,
        endpoint_connections_max,
        endpoint_connections_per_grant_max,
        api_silence_seconds,
        login_seconds,
        connections_max,
        logins_max,
        logins_per_source_max,
        connections_per_key_max,
        sessions_per_grant_max,
        drain_seconds,
        log_format: _,
    } = args;
    let seconds = |seconds: u16| Duration::from_secs(seconds.into());
    let mut terminate = signal(SignalKind::terminate())?;
    let clock = clock::system();
    let host_key = host_key(&host_key_file)?;
    let bind = async |flag, address| {
        let bound = tokio::net::TcpListener::bind(address).await;
        bound.map_err(|error| format!("{flag} {address}: {error}; give another address"))
    };
    let (ssh_listener, listener) = (bind("--ssh-listen", ssh_listen).await?, bind("--listen", listen).await?);
    // With port 0 the system chose one, and whoever asked for that reads here which.
    let (ssh_listen, listen) = (ssh_listener.local_addr()?, listener.local_addr()?);
    // Without a trail nothing is opened, and nothing is open yet: whoever started this hears of it at once.
    let sinks = Sinks { file: audit_file, stdout: audit_stdout };
    let (trail, opened) = Trail::open(sinks, Limits::default(), Begin { now: clock(), known_head: None }).await?;
    if let Some(torn) = &opened.torn {
        tracing::warn!(path = %torn.path.display(), bytes = torn.bytes, "set aside the torn end of the audit trail");
    }
    let metrics = Arc::new(GatewayMetrics::default());
    let known_hosts = host_key.known_hosts_line("GATEWAY");
    tracing::info!(fingerprint = host_key.fingerprint(), known_hosts, "read the host key");
    let gateway = Gateway::new(GatewayParts {
        client: instance_access::kubernetes::client_with(READ_TIMEOUT).await?,
        trail,
        clock: Arc::clone(&clock),
        name,
        host_key,
        limits: GatewayLimits {
            connections_max: connections_max.into(),
            logins_max: logins_max.into(),
            logins_per_source_max: logins_per_source_max.into(),
            login: seconds(login_seconds),
            connections_per_key_max: connections_per_key_max.into(),
            sessions_per_grant_max: sessions_per_grant_max.into(),
            endpoints: EndpointLimits {
                per_endpoint_max: endpoint_connections_max.into(),
                per_grant_max: endpoint_connections_per_grant_max.into(),
            },
            silence_max: seconds(api_silence_seconds),
            drain: seconds(drain_seconds),
        },
        dialling: Dialling { never: Networks::new(never_dial), ports, private_vpcs, endpoints: true },
        tunnels: if endpoint_connections_max > 0 { tunnels(&clock).await } else { None },
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

/// How the gateway dials endpoints.
#[cfg(feature = "aws")]
async fn tunnels(clock: &instance_access::clock::Clock) -> Option<Arc<dyn instance_access::aws::Tunnels>> {
    use instance_access::aws::{SdkCloud, SdkTunnels};
    let cloud = Arc::new(SdkCloud::load().await);
    Some(Arc::new(SdkTunnels::new(cloud, Arc::clone(clock))))
}

/// Without the feature aws it dials none.
#[cfg(not(feature = "aws"))]
async fn tunnels(_: &instance_access::clock::Clock) -> Option<Arc<dyn instance_access::aws::Tunnels>> {
    None
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
