//! The process, as every exporter shows it (`process_…`); elsewhere than on Linux there is nothing.

use crate::metrics::Sample;

/// What the process takes, now. A part that cannot be read is not on the page.
#[cfg(target_os = "linux")]
pub fn samples() -> Vec<Sample> {
    use procfs::process::{LimitValue, Process};

    use crate::metrics::Value;

    let Ok(process) = Process::myself() else { return Vec::new() };
    let mut samples = Vec::new();
    if let Ok(stat) = process.stat() {
        let ticks = procfs::ticks_per_second() as f64;
        samples.extend([
            Sample {
                name: "process_cpu_seconds",
                help: "Processor time, of user and system together",
                value: Value::TotalSeconds((stat.utime + stat.stime) as f64 / ticks),
            },
            Sample::now("process_virtual_memory_bytes", "Virtual memory", stat.vsize),
            Sample::now("process_resident_memory_bytes", "Resident memory", stat.rss * procfs::page_size()),
        ]);
        if let Ok(boot) = procfs::boot_time_secs() {
            samples.push(Sample {
                name: "process_start_time_seconds",
                help: "When the process started, in seconds since 1970",
                value: Value::Seconds(boot as f64 + stat.starttime as f64 / ticks),
            });
        }
    }
    if let Ok(open) = process.fd_count() {
        samples.push(Sample::now("process_open_fds", "Open file descriptors", open as u64));
    }
    if let Ok(limits) = process.limits()
        && let LimitValue::Value(max) = limits.max_open_files.soft_limit
    {
        samples.push(Sample::now("process_max_fds", "File descriptors that may be open", max));
    }
    samples
}

/// Nothing: there is no /proc.
#[cfg(not(target_os = "linux"))]
pub fn samples() -> Vec<Sample> {
    Vec::new()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::metrics::Value;

    #[test]
    fn the_process_is_seen_as_it_is() {
        let value = |name: &str| match samples().into_iter().find(|sample| sample.name == name).map(|it| it.value) {
            Some(Value::Now(value)) => value as f64,
            Some(Value::Seconds(value) | Value::TotalSeconds(value)) => value,
            other => panic!("{name}: {other:?}"),
        };
        let (resident, all) = (value("process_resident_memory_bytes"), value("process_virtual_memory_bytes"));
        assert!((1e6..all).contains(&resident), "{resident} of {all}");
        let now = crate::clock::system()().as_second() as f64;
        let started = value("process_start_time_seconds");
        assert!((now - 3600.0..now + 2.0).contains(&started), "{started}, it is {now}");
        let (open, most) = (value("process_open_fds"), value("process_max_fds"));
        assert!((3.0..=most).contains(&open), "{open} of {most}");
        assert!((0.0..3600.0).contains(&value("process_cpu_seconds")));
    }
}
