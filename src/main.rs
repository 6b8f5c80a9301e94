//! The operator's command line: controller, crds, admission, audit.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use instance_access::audit::{self, Begin, Expectation, Limits, Sinks, Trail};
use instance_access::config::{AdmissionArgs, AuditCommand, Command, CommandLine, ControllerArgs, VerifyArgs};
use instance_access::{admission, api};

fn main() -> ExitCode {
    // Before anything speaks TLS: two crates would otherwise each pick a provider.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("error: another TLS provider is installed already");
        return ExitCode::FAILURE;
    }
    let CommandLine { command } = CommandLine::parse();
    let outcome = match command {
        Command::Controller(args) => controller(args),
        Command::Crds => print(api::crds_yaml().into_iter().map(|(_, yaml)| format!("---\n{yaml}")).collect()),
        Command::Admission(AdmissionArgs { operator_service_account, without_mutating }) => {
            print(admission::yaml(&operator_service_account, !without_mutating))
        }
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
    Err("this binary was built without the feature aws, and has no cloud to serve; build it with the default features".into())
}

#[cfg(feature = "aws")]
fn controller(args: ControllerArgs) -> Outcome {
    instance_access::telemetry::start_logs(args.log_format);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
}

#[cfg(feature = "aws")]
async fn run(args: ControllerArgs) -> Outcome {
    use instance_access::aws::{Cloud, LookupLimits, PushLimits, SdkCloud};
    use instance_access::clock;
    use instance_access::controller::{Controller, Parts};
    use instance_access::domain::lifecycle::Settings;
    use instance_access::telemetry::Metrics;
    use tokio_util::sync::CancellationToken;

    let ControllerArgs { audit_file, audit_stdout, listen, pushes_per_second, log_format: _ } = args;
    let stop = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let clock = clock::system();
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| format!("--listen {listen}: {error}; give another address"))?;
    // With port 0 the system chose one, and whoever asked for that reads here which.
    let listen = listener.local_addr()?;
    let sinks = Sinks { file: audit_file, stdout: audit_stdout };
    let (trail, opened) = Trail::open(sinks, Limits::default(), Begin { now: clock(), known_head: None }).await?;
    if let Some(torn) = &opened.torn {
        tracing::warn!(path = %torn.path.display(), bytes = torn.bytes, "set aside the torn end of the audit trail");
    }
    tracing::info!(sequence = opened.head.sequence, digest = opened.head.digest, "opened the audit trail");
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
        trail: trail.clone(),
        clock: Arc::clone(&clock),
        settings: Settings { region },
        metrics: Arc::clone(&metrics),
    });
    let (health, refresh) = (controller.health(), controller.refresh_metrics());
    let server = tokio::spawn(instance_access::server::serve(listener, health, clock, metrics, refresh, stop.clone()));
    let running = tokio::spawn(controller.run(stop.clone()));
    tracing::info!(%listen, "started");
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = tokio::signal::ctrl_c() => tracing::info!("told to stop"),
    }
    stop.cancel();
    running.await?;
    server.await?;
    trail.close().await;
    tracing::info!("stopped");
    Ok(())
}
