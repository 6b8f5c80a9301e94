//! The process, as every exporter shows it (`process_…`), read from /proc; elsewhere than on Linux there is nothing.

use std::fs;

use crate::metrics::{Sample, Value};

/// Ticks of a second in /proc/self/stat: USER_HZ, which Linux has never had otherwise on the machines that we build for.
const TICKS: f64 = 100.0;
/// Bytes of a page in /proc/self/statm, if the auxiliary vector names none.
const PAGE_BYTES: u64 = 4096;
/// The auxiliary vector's key of a page's size.
const AT_PAGESZ: u64 = 6;

/// What the process takes, now.
pub fn samples() -> Vec<Sample> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (stat, machine, memory) = (read("/proc/self/stat"), read("/proc/stat"), read("/proc/self/statm"));
    let page_bytes = page_bytes(&fs::read("/proc/self/auxv").unwrap_or_default()).unwrap_or(PAGE_BYTES);
    let mut samples = times(&stat, &machine).unwrap_or_default();
    samples.extend(bytes(&memory, page_bytes).unwrap_or_default());
    // One of them is the directory that is being read.
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let open = (open.count() as u64).saturating_sub(1);
        samples.push(Sample::now("process_open_fds", "Open file descriptors", open));
    }
    let limit = files_max(&read("/proc/self/limits"));
    samples.extend(limit.map(|limit| Sample::now("process_max_fds", "File descriptors that may be open", limit)));
    samples
}

/// The processor's time and the start. The second word is the program's name in brackets, and may hold anything.
fn times(stat: &str, machine: &str) -> Option<Vec<Sample>> {
    let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // Numbers of proc(5), which counts from 1 and has two before these.
    let word = |number: usize| words.get(number - 3)?.parse::<f64>().ok();
    let (user, system, start) = (word(14)?, word(15)?, word(22)?);
    let boot: f64 = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Some(vec![
        Sample {
            name: "process_cpu_seconds",
            help: "Processor time, of user and system together",
            value: Value::TotalSeconds((user + system) / TICKS),
        },
        Sample {
            name: "process_start_time_seconds",
            help: "When the process started, in seconds since 1970",
            value: Value::Seconds(boot + start / TICKS),
        },
    ])
}

fn bytes(memory: &str, page_bytes: u64) -> Option<Vec<Sample>> {
    let mut pages = memory.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    let (all, resident) = (pages.next()?, pages.next()?);
    Some(vec![
        Sample::now("process_virtual_memory_bytes", "Virtual memory", all * page_bytes),
        Sample::now("process_resident_memory_bytes", "Resident memory", resident * page_bytes),
    ])
}

/// Pairs of machine words, key and value.
fn page_bytes(auxiliary: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_ne_bytes);
    auxiliary.chunks_exact(16).find(|pair| word(&pair[..8]) == Some(AT_PAGESZ)).and_then(|pair| word(&pair[8..]))
}

fn files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name_and_its_times_are_found() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 12300 1000 25";
        let found = times(&format!("4711 (a b) c) {tail}"), "cpu 1 2\nbtime 1000\nctxt 5").unwrap();
        let values: Vec<Value> = found.into_iter().map(|sample| sample.value).collect();
        assert_eq!(values, [Value::TotalSeconds(3.0), Value::Seconds(1123.0)]);
        assert_eq!(times("4711 (a", "btime 1000"), None);
        assert_eq!(times(&format!("4711 (a) {tail}"), "no time"), None);
    }

    #[test]
    fn memory_is_in_pages_of_the_machine() {
        let pair = |key: u64, value: u64| [key.to_ne_bytes(), value.to_ne_bytes()].concat();
        let auxiliary = [pair(33, 7), pair(6, 65536), pair(0, 0)].concat();
        assert_eq!(page_bytes(&auxiliary), Some(65536));
        assert_eq!(page_bytes(&[0; 7]), None);
        let found = bytes("1000 25 3 0 0 0 0", 65536).unwrap();
        assert_eq!(found[1].value, Value::Now(1_638_400));
        assert_eq!(files_max("Limit Soft Hard\nMax open files            1024   524288   files\n"), Some(1024));
        assert_eq!(files_max("Max open files            unlimited   unlimited   files\n"), None);
    }
}
